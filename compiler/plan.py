"""What a recipe would come to, from the checkpoint's config alone: sizes, memory, and the longest context that fits.

Reads no weights and imports no framework. Everything here is declared, a lower bound: what a package needs by its
geometry. What a runtime holds beyond it is measured by a run.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from compiler import targets
from compiler.models.base import Model, read_model
from compiler.quantize.rules import assign
from compiler.targets.base import Estimate, Job
from recipes.schema import Recipe


@dataclass(frozen=True)
class TargetPlan:
    """One target. `refused` says why it cannot be built; `budget` that a budget will choose bits, and what is known of
    the weights then."""

    target: str
    components: tuple[Estimate, ...]
    refused: str | None = None
    budget: str | None = None

    @property
    def file_bytes(self) -> int:
        return sum(part.file_bytes for part in self.components)

    def held_bytes(self, *, mapped: bool) -> int:
        """The least that a session holds at the recipe's context: states, copies of weights, the largest component's
        activations, and with `mapped` the files that stay mapped."""
        kept = sum(part.state_bytes + part.copied_bytes for part in self.components)
        files = sum(part.weight_bytes for part in self.components) if mapped else 0
        return kept + files + max(part.activation_bytes for part in self.components)


def jobs(recipe: Recipe, model: Model) -> dict[str, Job]:
    """What each target of a recipe is asked. Raises EdgewrightError when a rule does not fit the model."""
    schemes = assign(recipe.quantize.rules, model.slots).schemes
    return {name: Job(recipe.name, model, schemes, options) for name, options in recipe.targets.items()}


def plan(recipe: Recipe, config: Mapping[str, Any], tensors: Collection[str] | None = None) -> list[TargetPlan]:
    """Sizes for every target of a recipe.

    Raises EdgewrightError when the config is of no known family or a rule does not fit it.
    """
    model = read_model(config, tensors, recipe.context.max_tokens)
    found = []
    for name, job in jobs(recipe, model).items():
        target = targets.load_target(name)
        refused = "; ".join(target.refusals(job)) or None
        found.append(TargetPlan(name, tuple(target.estimate(job)), refused, _budget(recipe)))
    return found


def _budget(recipe: Recipe) -> str | None:
    wanted = recipe.quantize.budget
    if wanted is None:
        return None
    if wanted.size is not None:
        return f"its budget lets the quantized weights come to {wanted.size} bytes; the sizes are those of the rules"
    return "its budget chooses bits while running; the sizes are those of the rules"


def longest_context(recipe: Recipe, config: Mapping[str, Any], target: str, limit: int, *, mapped: bool) -> int:
    """The most tokens of context, up to what the checkpoint knows, with which a target's least need stays within
    `limit` bytes; 0 where none does."""
    known = read_model(config, None, 2).constants.get("max_positions")
    low, high = 1, known if isinstance(known, int) else recipe.context.max_tokens
    while low < high:
        middle = (low + high + 1) // 2
        context = recipe.context.model_copy(update={"max_tokens": middle})
        shorter = recipe.model_copy(update={"context": context, "targets": {target: recipe.targets[target]}})
        if plan(shorter, config)[0].held_bytes(mapped=mapped) <= limit:
            low = middle
        else:
            high = middle - 1
    return low if low > 1 else 0
