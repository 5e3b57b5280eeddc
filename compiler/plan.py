"""What a recipe would come to, from the checkpoint's config alone: sizes and memory of every target's package.

Reads no weights and imports no framework. Everything here is declared, a lower bound: what a package needs by its
geometry. What a runtime holds beyond it is measured by a run.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from artifacts import EdgewrightError
from compiler import targets
from compiler.models.base import Model, read_model
from compiler.quantize.rules import assign, rounded_slots
from compiler.targets.base import Estimate, Job
from compiler.text import calibration_file, text_file
from recipes.schema import Calibration, Recipe, Validation, Vision


@dataclass(frozen=True)
class TargetPlan:
    """One target, component by component; sizes in bytes. `refused` says why it cannot be built; notes: what of the
    recipe is otherwise there than it says."""

    target: str
    components: tuple[Estimate, ...]
    refused: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def file_bytes(self) -> int:
        return sum(part.file_bytes for part in self.components)

    @property
    def weight_bytes(self) -> int:
        return sum(part.weight_bytes for part in self.components)

    @property
    def state_bytes(self) -> int:
        """What a session keeps between calls: KV caches, recurrent states."""
        return sum(part.state_bytes for part in self.components)

    @property
    def copied_bytes(self) -> int:
        """Of the weights, what the runtime holds in anonymous memory."""
        return sum(part.copied_bytes for part in self.components)

    @property
    def activation_bytes(self) -> int:
        """Of the component that needs most: they run one after another."""
        return max(part.activation_bytes for part in self.components)

    @property
    def app_bytes(self) -> dict[str, int]:
        """What an app ships of the files, on each platform that runs them."""
        platforms = dict.fromkeys(name for part in self.components for name in part.app_bytes)
        return {name: sum(part.app_bytes.get(name, 0) for part in self.components) for name in platforms}

    @property
    def held_bytes(self) -> int:
        """The least that a session holds in anonymous memory: states, activations, copies of weights."""
        return self.state_bytes + self.activation_bytes + self.copied_bytes

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values: the sums, and under `components` those of each."""
        sums = ("file_bytes", "weight_bytes", "state_bytes", "copied_bytes", "activation_bytes", "app_bytes")
        return {
            "target": self.target,
            **{name: getattr(self, name) for name in sums},
            "components": [asdict(part) for part in self.components],
            "refused": self.refused,
            "notes": list(self.notes),
        }


def plan(recipe: Recipe, config: Mapping[str, Any], tensors: Collection[str] | None = None) -> list[TargetPlan]:
    """Sizes for every target of a recipe.

    tensors: names in the checkpoint, where it is at hand. Raises EdgewrightError when the config is of no known family
    or a rule does not fit it.
    """
    model = read_model(config, tensors, recipe.context.max_tokens, recipe.vision)
    _check_tiles(recipe, model)
    assignment = assign(recipe.quantize.rules, model.slots)
    rounded = rounded_slots(model, assignment)
    found = []
    for name, options in recipe.targets.items():
        target, job = targets.load_target(name), Job(recipe.name, model, assignment.schemes, options, rounded=rounded)
        refused = "; ".join(target.refusals(job)) or None
        found.append(TargetPlan(name, tuple(target.estimate(job)), refused, tuple(_notes(job, target.rounds))))
    return found


def _notes(job: Job, rounds: bool) -> Iterator[str]:
    for name, slots in job.rounded.items():
        total = sum(slot.kind == "convolution" for slot in job.model.component(name).slots)
        if rounds:
            yield (
                f"{name}: {len(slots)} of {total} convolutions multiply 8-bit activations, but for those that "
                "calibration finds to cost too much"
            )
        else:
            yield f"{name}: no kernels for activations: int8 here, so the weights alone have 8 bits"


def check_files(recipe: Recipe) -> None:
    """Raise EdgewrightError where a file that the recipe names is missing."""
    calibration_file(recipe.quantize.calibration or Calibration(), recipe.resolve)
    wanted = recipe.validation
    quality = wanted.quality
    named = {
        "quality.text": quality and quality.text,
        "quality.clips": quality and quality.clips,
        "task.file": wanted.task and wanted.task.file,
    }
    for key, name in named.items():
        if name:
            text_file(f"validate.{key}", name, recipe.resolve(name))


def _check_tiles(recipe: Recipe, model: Model) -> None:
    """Raise EdgewrightError where a phone is to see more tiles than the model is compiled for, or there are none."""
    most = model.constants.get("max_tiles")
    for name, limits in recipe.validation.profiles.items():
        if limits.max_tiles is not None and not (isinstance(most, int) and limits.max_tiles <= most):
            seen = f"is compiled for {most} at the most" if isinstance(most, int) else "sees no tiles"
            where = f"validate.profiles.{name}.max_tiles"
            raise EdgewrightError(f"{where} is {limits.max_tiles}, and the model {seen}; lower it or leave it out")


def with_tiles(recipe: Recipe, target: str, tiles: int | None) -> Recipe:
    """A recipe for one target alone, where an app makes so many tiles of an image (None: the most); judges nothing."""
    vision = recipe.vision if tiles is None else Vision(max_tiles=tiles)
    update = {"vision": vision, "targets": {target: recipe.targets[target]}, "validation": Validation()}
    return recipe.model_copy(update=update)


def longest_context(recipe: Recipe, config: Mapping[str, Any], target: str, limit: int) -> int | None:
    """The most tokens, up to what the checkpoint knows, with which a target's least need stays within `limit` bytes.

    0 where none does; None for a model that knows no context.
    """
    high = _known_positions(read_model(config, None, 2, recipe.vision))
    if high is None:
        return None

    def held(tokens: int) -> int:
        context = recipe.context.model_copy(update={"max_tokens": tokens})
        shorter = with_tiles(recipe, target, None).model_copy(update={"context": context})
        return plan(shorter, config)[0].held_bytes

    low = 2
    if held(low) > limit:
        return 0
    while low < high:
        middle = (low + high + 1) // 2
        if held(middle) <= limit:
            low = middle
        else:
            high = middle - 1
    return low


def _known_positions(model: Model) -> int | None:
    known = model.constants.get("max_positions")
    return known if isinstance(known, int) else None
