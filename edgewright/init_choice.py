"""Which bits, groups, context, images and runtimes of a checkpoint fit phones, by plans from its config alone.

What lives here: the order in which choices are tried, and the rules that say one in a recipe. What must not: text,
files and places (`init_recipe.py`, `init.py`), and how much anything holds (`compiler/plan.py`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from artifacts import EdgewrightError
from compiler.models.base import Component, Model, read_model
from compiler.plan import TargetPlan, longest_context, plan
from compiler.slots import Slot
from compiler.targets import target_options
from compiler.tensors import CheckpointError
from device_farm import MemoryBudget, Profile
from edgewright import api
from edgewright.text import size
from recipes.schema import Recipe, Vision

MARGIN = 0.2  # of a budget, left for what a runtime holds beyond the geometry
CONTEXTS = (4096, 2048, 1024, 512)
_TILES = (9, 5, 3, 1)
_PIXELS = (560, 336, 224, 112)
_GROUPS = (128, 64, 32)

Group = int | str
Scheme = tuple[int, Group]
WHOLE: Scheme = (8, "channel")
HALF: Scheme = (16, 32)
# The best first: more bits, then smaller groups.
SCHEMES: tuple[Scheme, ...] = ((8, 32), (8, 64), (8, 128), WHOLE, (4, 32), (4, 64), (4, 128))


@dataclass(frozen=True)
class Shape:
    """How much a model is compiled to take at once. blind: it could see, and is built without its eyes."""

    context: int
    vision: Vision | None = None
    blind: bool = False


@dataclass(frozen=True)
class Phone:
    """A phone as the recipe names it, with the budget of an app there.

    room: of that budget what may be planned, in bytes; memory: the same of all that the phone has.
    """

    name: str
    profile: Profile

    @property
    def budget(self) -> MemoryBudget:
        return self.profile.budget()

    @property
    def room(self) -> int:
        budget = self.budget
        limits = [budget.comfortable_bytes, *([budget.limiter.memory_bytes] if budget.limiter else [])]
        return int(min(limits) * (1 - MARGIN))

    @property
    def memory(self) -> int:
        return int(self.profile.ram_bytes.value * (1 - MARGIN))

    def need(self, found: TargetPlan) -> int:
        """The least that the phone's rule charges: on Android mapped weights too, so that they can stay."""
        return found.held_bytes + (found.weight_bytes if self.budget.rule == "android" else 0)

    def lacks(self, found: TargetPlan) -> str:
        """What is too much, in words; empty where it fits with the margin.

        Mapped weights are charged by no rule of iOS, but beyond the phone's memory each token would read them from
        storage again.
        """
        need, whole = self.need(found), found.held_bytes + found.weight_bytes - found.copied_bytes
        if need > self.room:
            return f"{found.target} needs {size(need)} of {size(self.room)} on {self.name}"
        if whole > self.memory:
            return f"{found.target} with its weights is {size(whole)}, of {size(self.memory)} on {self.name}"
        return ""


@dataclass(frozen=True)
class Choice:
    """What fits: the recipe as data and as a model, the plans of all its candidates, and the runtimes it names."""

    scheme: Scheme
    shape: Shape
    document: Mapping[str, Any]
    model: Model
    plans: tuple[TargetPlan, ...]
    targets: tuple[str, ...]


class Planner:
    """Choices for one checkpoint. targets: the candidates, all of which have to fit where `asked`."""

    def __init__(
        self, name: str, checkpoint: Mapping[str, Any], config: Mapping[str, Any], targets: Sequence[str]
    ) -> None:
        self.name, self.checkpoint, self.config = name, checkpoint, config
        self.asked = bool(targets)
        self._candidates = tuple(targets) or tuple(target_options())
        bare = read_model(config, None, 2)
        known = bare.constants.get("max_positions")
        self.positions = known if isinstance(known, int) else None

    def shapes(self, context: int | None) -> list[Shape]:
        """What to try, the largest first: smaller images before a shorter context, and no images at the very last."""
        if self.positions is None:
            if context is not None:
                raise EdgewrightError("--context: this model counts no tokens of a text; leave it out")
            return [Shape(2)]
        if context is not None and not 2 <= context <= self.positions:
            raise EdgewrightError(f"--context: must be from 2 to {self.positions}, which the checkpoint knows")
        contexts = [context] if context else [*dict.fromkeys(min(c, self.positions) for c in CONTEXTS)]
        seeing = [Shape(c, vision) for c in contexts for vision in self._visions(c)]
        if not seeing or seeing[0].vision is None:
            return seeing or [Shape(c) for c in contexts]
        return [*seeing, *(Shape(c, blind=True) for c in contexts)]

    def _visions(self, context: int) -> list[Vision | None]:
        most = read_model(self.config, None, context).constants.get("max_tiles")
        if isinstance(most, int):
            return [None, *(Vision(max_image=None, max_tiles=t) for t in _TILES if t < most)]
        found: list[Vision | None] = []
        for pixels in _PIXELS:
            vision = Vision(max_image=pixels, max_tiles=None)
            try:
                read_model(self.config, None, context, vision)
            except CheckpointError:
                continue
            found.append(vision)
        return found

    def schemes(self) -> tuple[Scheme, ...]:
        """Pictures and faces do not bear 4 bits without a hand that chooses which weights keep 8."""
        return SCHEMES if self.positions is not None else (WHOLE,)

    def first(self, phones: Sequence[Phone], context: int | None) -> Choice | None:
        """The best that fits every phone; None where nothing does."""
        for shape in self.shapes(context):
            if self.fitting(self.at(self.schemes()[-1], shape), phones):  # else no better one does
                for scheme in self.schemes():
                    found = self.at(scheme, shape)
                    if targets := self.fitting(found, phones):
                        return self._chosen(found, targets)
        return None

    def at(self, scheme: Scheme, shape: Shape) -> Choice:
        """One choice with all its candidates, whether it fits or not."""
        model = read_model(self.config, None, shape.context, shape.vision)
        bits = "int8" if scheme[0] == 8 else "int4"
        document: dict[str, Any] = {
            "name": f"{self.name}-{bits}",
            "checkpoint": dict(self.checkpoint),
            "quantize": {"rules": rules(model, scheme)},
            "context": {"max_tokens": shape.context},
            "targets": {target: {} for target in self._candidates},
        }
        if shape.vision is not None:
            document["vision"] = shape.vision.model_dump(exclude_none=True)
        recipe = api.recipe_type().model_validate(document)
        return Choice(scheme, shape, document, model, tuple(plan(recipe, self.config)), ())

    def fitting(self, found: Choice, phones: Sequence[Phone]) -> tuple[str, ...]:
        """The runtimes to name: those asked for, or the first for each platform; empty where a phone has none."""
        fit = {item.target: item for item in found.plans if not lacking(item, phones) and not item.refused}
        if self.asked:
            chosen = dict.fromkeys(self._candidates) if len(fit) == len(set(self._candidates)) else {}
        else:
            platforms = dict.fromkeys(phone.profile.platform for phone in phones)
            first = (next((name for name, item in fit.items() if one in item.app_bytes), None) for one in platforms)
            chosen = dict.fromkeys(name for name in first if name)
        runs = {platform for name in chosen for platform in fit[name].app_bytes}
        return tuple(chosen) if all(phone.profile.platform in runs for phone in phones) else ()

    def _chosen(self, found: Choice, targets: tuple[str, ...]) -> Choice:
        document = {**found.document, "targets": {target: {} for target in targets}}
        return Choice(found.scheme, found.shape, document, found.model, found.plans, targets)

    def longest(self, found: Choice, phones: Sequence[Phone]) -> int | None:
        """The most tokens of context that would fit all the same; None for a model that counts none."""
        recipe: Recipe = api.recipe_type().model_validate(found.document)
        lengths = [
            longest_context(recipe, self.config, item.target, phone.room - (phone.need(item) - item.held_bytes))
            for item in found.plans
            if item.target in found.targets
            for phone in phones
            if phone.profile.platform in item.app_bytes
        ]
        return min((length for length in lengths if length is not None), default=None)


def lacking(found: TargetPlan, phones: Sequence[Phone]) -> list[str]:
    """What is too much on those of the phones whose platform it runs on; empty where it fits them all."""
    return [said for p in phones if p.profile.platform in found.app_bytes and (said := p.lacks(found))]


def rules(model: Model, scheme: Scheme) -> list[dict[str, Any]]:
    """The rules that give every matrix what `_wanted` says, the special above the general."""
    wanted = {
        slot.name: _wanted(model, part, slot, scheme)
        for part in model.components
        for slot in part.slots
        if not slot.is_vector
    }
    general = scheme if scheme in wanted.values() else max(wanted.values(), key=[*wanted.values()].count)
    count = {one: [*wanted.values()].count(one) for one in set(wanted.values()) - {general}}
    found: list[dict[str, Any]] = []
    left = dict(wanted)
    for special in sorted(count, key=lambda one: (count[one], one[0], str(one[1]))):
        for name in [name for name, one in wanted.items() if one == special]:
            if name in left:
                match = next(glob for glob in _globs(name) if _only(glob, left, special))
                found.append(_rule(match, special))
                left = {other: one for other, one in left.items() if not fnmatchcase(other, match)}
    return [*found, _rule("*", general)]


def _wanted(model: Model, part: Component, slot: Slot, scheme: Scheme) -> Scheme:
    """Text takes the scheme, in the largest group up to it that divides its rows; what sees, hears or draws whole rows
    of 8 bits. What fits neither keeps half precision, as convolutions of a tower do, whose loaders hold them so."""
    speaks = "max_positions" in model.constants
    if not (speaks and (part.head or all(one.kind == "embedding" for one in part.slots if not one.is_vector))):
        if slot.kind == "convolution":
            return HALF if speaks else WHOLE
        return WHOLE if slot.columns % 32 == 0 else HALF
    bits, group = scheme
    if group == "channel":
        return scheme if slot.columns % 32 == 0 else HALF
    fitting = [one for one in _GROUPS if one <= int(group) and slot.columns % one == 0]
    return (bits, fitting[0]) if fitting else HALF


def _globs(name: str) -> Iterator[str]:
    parts = name.split(".")
    yield from (".".join([*parts[:at], "*"]) for at in range(1, len(parts)))
    yield from (".".join(["*", *parts[at:]]) for at in range(len(parts) - 1, 0, -1))
    yield re.sub(r"\d+", "*", name)
    yield name


def _only(glob: str, left: Mapping[str, Scheme], special: Scheme) -> bool:
    return all(one == special for name, one in left.items() if fnmatchcase(name, glob))


def _rule(match: str, scheme: Scheme) -> dict[str, Any]:
    bits, group = scheme
    if bits == 16:
        return {"match": match, "bits": 16}
    return {"match": match, "bits": bits, "group": group, "method": "mse" if bits == 4 else "rtn"}
