"""What a model is to everything after its config: components with entries, states and slots, and a driver's name.

A family (one file beside this one, discovered by its `MODEL_TYPES`) reads a checkpoint's config into a `Model`. Nothing
past that point knows the family: targets lower entries, ports and slots, sessions keep states and call entries, and a
driver of `runtime_tests` knows in which order. Imports no framework; a component's module is built when it is captured.
"""

from __future__ import annotations

import importlib
import math
import pkgutil
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Protocol

from pydantic import JsonValue

from compiler.slots import HALF, Scheme, Schemes, Slot
from compiler.tensors import CheckpointError

if TYPE_CHECKING:
    import torch

    from recipes.schema import Vision

Dtype = Literal["float32", "int64", "int32", "uint8"]

_WIDE_VALUES = 1 << 24  # a process for each stage costs seconds and saves 200 MB: where references hold 64 MiB or more


@dataclass(frozen=True)
class Port:
    """A named tensor that enters or leaves a component; a dimension is a number, or a name with bounds in the entry.

    below: of whole numbers, what every value is less than; counts: values go on counting from the last call's, along
    the last dimension, as positions do.
    """

    name: str
    dtype: Dtype
    shape: tuple[int | str, ...]
    below: int | None = None
    counts: bool = False

    def sized(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """The shape with every named dimension replaced by its size."""
        return tuple(sizes[d] if isinstance(d, str) else d for d in self.shape)


@dataclass(frozen=True)
class Entry:
    """One callable function of a component.

    dimensions: smallest and largest size of every named dimension; memory is planned for the largest.
    shipped: False where only tests call it, so that a target may give it by other means than a program of its own.
    keeps: False where a call gives its outputs alone and leaves the states as they were: for a pass over whole inputs.
    """

    name: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    dimensions: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    shipped: bool = True
    keeps: bool = True

    def largest(self) -> dict[str, int]:
        """Every named dimension at its largest."""
        return {name: high for name, (_, high) in self.dimensions.items()}


@dataclass(frozen=True)
class Heads:
    """Grouped-query attention over a cache, as far as a target has to know it before a graph is captured."""

    heads: int
    kv_heads: int
    head_dim: int


@dataclass(frozen=True)
class Component:
    """One part of a model that runs by itself: a decoder, a vision tower, a renderer.

    slots: its weights in the order in which its graph reads them.
    states: ports that a session keeps between calls, zeros at first: a KV cache, a recurrent state.
    module: the graph of an entry under the given schemes, in the edge dialect and without weights:
        forward(*inputs, *states) -> (*outputs, *states), each in the order of its ports; see `Entry.keeps`.
    fused: slots that one matmul may serve where their schemes agree.
    cuts: prefixes of slot names at which calibration may split the graph, in order.
    attention: the heads of its edge attentions; None without any.
    head: the slot that makes the outputs of an entry "score" from those of "hidden"; of components without, "".
    live: how many values are alive at once in the widest place of an entry, at given sizes of its dimensions.
    work: of its first entry, by class (`artifacts.formats.work.StreamWork`); None where it is not counted. Of decoders
        `compiler/work.py` counts it from the slots.
    """

    name: str
    slots: tuple[Slot, ...]
    entries: tuple[Entry, ...]
    module: Callable[[Entry, Schemes], torch.nn.Module]
    live: Callable[[Entry, Mapping[str, int]], int]
    states: tuple[Port, ...] = ()
    fused: tuple[tuple[str, ...], ...] = ()
    cuts: tuple[str, ...] = ()
    attention: Heads | None = None
    head: str = ""
    work: Callable[[], Mapping[str, float]] | None = None

    def entry(self, name: str) -> Entry:
        return next(entry for entry in self.entries if entry.name == name)

    @property
    def state_values(self) -> int:
        """How many values its states hold."""
        return sum(math.prod(state.sized({})) for state in self.states)

    @property
    def shipped(self) -> tuple[Entry, ...]:
        """The entries that an app calls."""
        return tuple(entry for entry in self.entries if entry.shipped)

    def matrices(self, schemes: Schemes) -> Iterator[tuple[Slot, ...]]:
        """Slots by the op that reads them, in order: those of a fusion together where their schemes agree."""
        by_name = {slot.name: slot for slot in self.slots}
        together = {
            name: names for names in self.fused if len({schemes.get(n, HALF) for n in names}) == 1 for name in names
        }
        for slot in self.slots:
            names = together.get(slot.name, (slot.name,))
            if names[0] == slot.name:
                yield tuple(by_name[name] for name in names)

    def unfused(self, schemes: Schemes) -> list[tuple[str, ...]]:
        """Fusions that do not happen because the rules gave their members different schemes."""
        return [names for names in self.fused if len({schemes.get(n, HALF) for n in names}) > 1]


@dataclass(frozen=True)
class Model:
    """All components of a checkpoint and how an app drives them.

    driver: a file of `drivers/` here and in `runtime_tests`; constants: what it and an app must know (context, special
    tokens, image size, …), written to the manifest. config: of what is packed, as its own ecosystem loads it.
    geometry: all that its graphs depend on, for keys. again: reads the same model for another context.
    """

    family: str
    components: tuple[Component, ...]
    driver: str
    constants: Mapping[str, JsonValue]
    geometry: Mapping[str, Any]
    config: Mapping[str, Any]
    again: Callable[[int], Model] | None = field(default=None, compare=False)

    @property
    def slots(self) -> list[Slot]:
        """Of every component, in order; names are unique in a model."""
        return [slot for component in self.components for slot in component.slots]

    @property
    def wide(self) -> bool:
        """Whether one call holds so much that no stage of its compilation should leave its memory to the next: those
        then have processes of their own."""
        return any(c.live(entry, entry.largest()) >= _WIDE_VALUES for c in self.components for entry in c.shipped)

    def component(self, name: str) -> Component:
        return next(component for component in self.components if component.name == name)

    def at(self, max_tokens: int) -> Model:
        """The same model for another context."""
        assert self.again is not None, "a model comes from read_model"
        return self.again(max_tokens)


class Family(Protocol):
    """A module of `compiler/models/`.

    MODEL_TYPES: values of `model_type` in config.json that it takes. read(config, tensors, max_tokens): the model;
    `tensors` are the names in the checkpoint, None where only a config is at hand. Raises CheckpointError.

    VISION_TYPES, in the place of MODEL_TYPES: those that it takes where a recipe has a section `vision`, which comes
    fourth then.
    """

    MODEL_TYPES: tuple[str, ...]

    def read(self, config: Mapping[str, Any], tensors: Collection[str] | None, max_tokens: int) -> Model: ...


def read_model(
    config: Mapping[str, Any], tensors: Collection[str] | None, max_tokens: int, vision: Vision | None = None
) -> Model:
    """The model of a checkpoint, by the family that takes its `model_type`.

    vision: the recipe's section; without it a model whose images are optional is its text side. Raises CheckpointError.
    """
    kind = config.get("model_type")
    known: dict[str, list[str]] = {"MODEL_TYPES": [], "VISION_TYPES": []}
    wanted, more = ("MODEL_TYPES", ()) if vision is None else ("VISION_TYPES", (vision,))
    for module in pkgutil.iter_modules(importlib.import_module(__package__).__path__):
        family: Any = importlib.import_module(f"{__package__}.{module.name}")
        if isinstance(kind, str) and kind in getattr(family, wanted, ()):
            model: Model = family.read(config, tensors, max_tokens, *more)
            return replace(model, again=partial(read_model, config, tensors, vision=vision))
        for types, found in known.items():
            found += getattr(family, types, ())
    if kind in known["MODEL_TYPES"]:
        raise CheckpointError(
            f"vision: is for models of type {', '.join(known['VISION_TYPES'])}, not for {kind}; leave it out"
        )
    raise CheckpointError(f"config.json: model_type {kind!r} is not supported; {', '.join(known['MODEL_TYPES'])} are")


def scheme_arguments(schemes: Schemes, name: str) -> tuple[int, int, bool]:
    """A slot's scheme as the edge dialect takes it: bits, group, symmetric."""
    found: Scheme = schemes.get(name, HALF)
    return found.bits, found.group, found.symmetric
