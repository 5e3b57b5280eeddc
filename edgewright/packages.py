"""A target's package in its place: as an earlier run left it, out of the store, or built.

What must not live here: what a package is (`compiler`), and whether it is any good (`judging.py`).
"""

from __future__ import annotations

from pathlib import Path

from artifacts import Manifest, Progress, keep_validations, staged, write_manifest
from artifacts.manifest import RecipeEntry
from artifacts.stages import Found
from artifacts.store import relabel
from compiler import keys, pipeline
from compiler.checkpoint import Checkpoint
from compiler.expectations import write_vectors
from compiler.quantized import Quantized
from recipes.schema import Recipe

STAGE = "package"


def key_of(recipe: Recipe, target: str, quantized: Quantized, checkpoint: Checkpoint) -> str:
    """What the package of one target depends on; recipe: with this target alone."""
    return keys.package(recipe, target, quantized, checkpoint.path, pipeline.tool_versions([target]))


def reuse(recipe: Recipe, found: Found, final: Path, quantized: Quantized) -> Manifest | None:
    """Have a package that was found in `final`, with this recipe's digest; None where it is gone meanwhile."""
    if found.kept and not quantized.store.take(found, final):
        return None
    return relabel(final, RecipeEntry(name=recipe.name, digest=recipe.digest), quantized.checkpoint)


def build(
    recipe: Recipe,
    target: str,
    key: str,
    final: Path,
    quantized: Quantized,
    checkpoint: Checkpoint,
    needed_bytes: int,
    progress: Progress,
) -> Manifest:
    """Build a package and put it in the place of what is in `final`, which the store keeps. Raises EdgewrightError."""
    store = quantized.store
    with staged(final, needed_bytes=needed_bytes, replaced=store.keeping(final, key)) as partial:
        draft = pipeline.build(recipe, target, quantized, checkpoint, partial, progress)
        write_vectors(draft, quantized, checkpoint, partial, progress)
        made = keep_validations(write_manifest(partial, draft, progress), partial, final)
        words = {"recipe": recipe.name, "target": target, "checkpoint": quantized.checkpoint.source}
        store.put(STAGE, key, partial, final, words)
    return made
