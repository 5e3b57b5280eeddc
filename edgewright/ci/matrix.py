"""The jobs of a matrix: one for each recipe and target, with its phones, as a CI service starts them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from artifacts import EdgewrightError
from edgewright import api
from recipes.schema import Recipe


def matrix(recipes: Sequence[str], targets: Sequence[str] = ()) -> dict[str, Any]:
    """`{"include": [{"recipe", "name", "target", "profiles"}]}`, for `strategy.matrix` of GitHub Actions.

    Phones stay together: they share runs. targets: those alone, of the recipes that have them. Raises RecipeError, and
    EdgewrightError where two recipes would build into one folder or none has a target that was asked for.
    """
    loaded = distinct(recipes)
    jobs = [
        {"recipe": given, "name": recipe.name, "target": target, "profiles": list(recipe.validation.profiles)}
        for given, recipe in loaded
        for target in recipe.targets
        if not targets or target in targets
    ]
    if unknown := [name for name in targets if all(job["target"] != name for job in jobs)]:
        raise EdgewrightError(f"--target: no recipe has the target {unknown[0]!r}")
    return {"include": jobs}


def distinct(recipes: Sequence[str]) -> list[tuple[str, Recipe]]:
    """Recipes as they were given, each with what was read. Raises RecipeError, and EdgewrightError as `matrix` does."""
    loaded = [(given, api.load_recipe(given)) for given in recipes]
    seen: dict[str, str] = {}
    for given, recipe in loaded:
        if recipe.name in seen:
            raise EdgewrightError(f"{seen[recipe.name]} and {given} are both named {recipe.name}; rename one of them")
        seen[recipe.name] = given
    return loaded
