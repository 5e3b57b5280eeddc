"""vectors.safetensors: what every entry of every component has to answer, whatever the model is for.

A list of calls, made in order from states of zeros: inputs are the seed of a generator that is specified here, outputs
lie in the file at sampled places. Tensors are named `<call>.<output port>`, float32 or the port's dtype; the metadata
holds `version` and `calls`, JSON of `Calls`.

The generator of call c and input port p (counted from 0) is numpy's PCG64 seeded with [seed, c, p]: standard normal
for float32; uniform from 0 up to `below` (256 for uint8) for whole numbers; a port that counts goes on from what the
component's earlier calls counted. A float32 port with the name of an output that an earlier call gave gets that: its
values in memory order, from the first on and over again, until the port is full. So what one component makes for
another is judged on what it will get, and not on noise.

A package that multiplies 8-bit activations has more, as the outputs above are those with activations in float:
`<call>.shipped.<output port>`, what it answers as shipped. One code that ends on the other side of a half changes many
behind it, so each step from codes to codes is judged alone too, in a call in which every rounded value is replaced by
given codes once its own are known: `<call>.codes.<value>`, uint8, its own, at fewer places, and
`<call>.steps.<output port>`, what follows from the last given ones. Given codes of value v, counted on from the ports,
are the generator's of [seed, c, v], uniform from 0 up to 256.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from artifacts.errors import EdgewrightError
from artifacts.formats.interface import Component, Count, Entry, Name, Port

VECTORS = "vectors.safetensors"
MAX_BYTES = 1_000_000
SAMPLES, CODES = 2048, 256
_MOST = 1 << 20  # values of an input, or two of a dimension

Array = NDArray[Any]


class Call(BaseModel):
    """One call: every named dimension of the entry at a size."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    component: Name
    entry: Name
    sizes: dict[Name, Count] = {}


class Rounded(BaseModel):
    """Activations of 8 bits. values: shapes of the rounded ones of each component, by name. shipped: limit of the root
    of the mean square of a component's errors as shipped, relative to that of its outputs. steps: of the largest error
    of an output that goes on from given codes, which are not those of a picture: `exact`, or what float32 itself costs
    there. codes: limit of the root of the mean square by which one value's codes are off."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    values: dict[Name, dict[Name, tuple[Count, ...]]]
    shipped: dict[Name, Annotated[float, Field(gt=0, le=1)]]
    steps: dict[Name, Annotated[float, Field(gt=0, le=1e-3)]]
    codes: float = Field(gt=0, le=16)


class Calls(BaseModel):
    """All calls of a file. exact: limit of an output's largest error relative to its largest value, in the most precise
    mode. shipped: of the root of the mean square of an entry's errors relative to that of its values, as shipped; where
    activations are rounded, `rounded` says it."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    version: Literal[2] = 2
    seed: int = Field(ge=0, lt=1 << 32)
    calls: tuple[Call, ...] = Field(min_length=1, max_length=1000)
    exact: float = Field(gt=0, le=1)
    shipped: float = Field(gt=0, le=1)
    rounded: Rounded | None = None


@dataclass(frozen=True)
class Steps:
    """Of one call with 8-bit activations: outputs as shipped, outputs of steps, and codes; see above. Nothing of a call
    whose component has its activations in float."""

    shipped: Mapping[str, Array]
    outputs: Mapping[str, Array]
    codes: Mapping[str, Array]


@dataclass(frozen=True)
class Vectors:
    """A file's calls with the sampled outputs of each by port name, flattened, and steps, where any call has some."""

    plan: Calls
    outputs: tuple[Mapping[str, Array], ...]
    steps: tuple[Steps, ...] = ()


def planned(components: tuple[Component, ...], seed: int, exact: float, shipped: float, rounds: int = 2) -> Calls:
    """Two rounds over the entries of each component in order, dimensions small and different from round to round; of
    large inputs, as tiles are, fewer."""
    calls = [
        Call(component=component.name, entry=entry.name, sizes=_sizes(entry, turn))
        for component in components
        for turn in range(rounds)
        for entry in component.entries
    ]
    return Calls(seed=seed, calls=tuple(calls), exact=exact, shipped=shipped)


def _sizes(entry: Entry, turn: int) -> dict[str, int]:
    found = {}
    for at, (name, bound) in enumerate(entry.dimensions.items()):
        each = max((_values_of_one(port) for port in entry.inputs if name in port.shape), default=1)
        wanted = max(bound.low, min(bound.high, 5 + at, max(2, _MOST // each)) - turn)
        found[name] = min(bound.sizes, key=lambda n: abs(n - wanted)) if bound.sizes else wanted
    return found


def _values_of_one(port: Port) -> int:
    """How many values a port has where every named dimension is 1."""
    return math.prod(size for size in port.shape if isinstance(size, int))


def inputs(
    plan: Calls, components: tuple[Component, ...], answered: Mapping[str, Array] | None = None
) -> Iterator[tuple[Call, dict[str, Array]]]:
    """Every call with its input arrays by port name. answered: outputs so far by port name, which the caller keeps up.

    Raises ValueError for a call that the components do not have.
    """
    counted: dict[tuple[str, str], int] = {}
    for at, call in enumerate(plan.calls):
        arrays = {}
        for index, port in enumerate(_entry(at, call, components).inputs):
            key = (call.component, port.name)
            shape = port.sized(call.sizes)
            made = (answered or {}).get(port.name)
            if made is not None and port.dtype == "float32":
                arrays[port.name] = np.resize(made, shape)
            else:
                arrays[port.name] = _generated(port, shape, [plan.seed, at, index], counted.get(key, 0))
            if port.counts:
                counted[key] = counted.get(key, 0) + shape[-1]
        yield call, arrays


def _entry(at: int, call: Call, components: tuple[Component, ...]) -> Entry:
    """The entry that a call is of. Raises ValueError where there is none, or one of other dimensions."""
    component = next((component for component in components if component.name == call.component), None)
    if component is None:
        raise ValueError(f"call {at}: no component {call.component!r}")
    entry = next((entry for entry in component.entries if entry.name == call.entry), None)
    if entry is None:
        raise ValueError(f"call {at}: {call.component} has no entry {call.entry!r}")
    bounds, sizes = entry.dimensions, call.sizes
    if bounds.keys() != sizes.keys():
        raise ValueError(f"call {at}: sizes of {', '.join(sizes) or 'nothing'}, expected {', '.join(bounds) or 'none'}")
    for name, bound in bounds.items():
        if not bound.low <= sizes[name] <= bound.high or (bound.sizes and sizes[name] not in bound.sizes):
            raise ValueError(f"call {at}: {name} is {sizes[name]}, which {call.component}.{call.entry} does not take")
    return entry


def _generated(port: Port, shape: tuple[int, ...], seed: list[int], first: int) -> Array:
    if port.counts:
        return np.broadcast_to(np.arange(first, first + shape[-1], dtype=port.dtype), shape).copy()
    random = np.random.default_rng(seed)
    if port.dtype == "float32":
        return random.standard_normal(shape, np.float32)
    return random.integers(0, 256 if port.dtype == "uint8" else port.below or 2, shape, port.dtype)


def sampled(values: Array, most: int = SAMPLES) -> Array:
    """At most so many values of an array, spread evenly over it in memory order."""
    flat = np.ascontiguousarray(values).reshape(-1)
    return flat[np.unique(np.linspace(0, flat.size - 1, most).astype(np.int64))] if flat.size > most else flat


def content(
    plan: Calls,
    outputs: Sequence[Mapping[str, Array]],
    steps: Sequence[Steps] = (),
) -> tuple[dict[str, Array], dict[str, str]]:
    """Tensors and metadata of a file, from the whole outputs and steps of every call."""
    tensors = {f"{at}.{name}": sampled(values) for at, found in enumerate(outputs) for name, values in found.items()}
    for at, step in enumerate(steps):
        tensors |= {f"{at}.shipped.{name}": sampled(values) for name, values in step.shipped.items()}
        tensors |= {f"{at}.steps.{name}": sampled(values) for name, values in step.outputs.items()}
        tensors |= {f"{at}.codes.{name}": sampled(values, CODES) for name, values in step.codes.items()}
    return tensors, {"calls": plan.model_dump_json()}


def read(path: Path, components: tuple[Component, ...]) -> Vectors:
    """Read and check a file against the interface that it is for; EdgewrightError says what is wrong with it."""
    from safetensors import SafetensorError, safe_open

    again = "build the artifact again"
    try:
        if (size := os.stat(path).st_size) > MAX_BYTES:
            raise EdgewrightError(f"{path}: {size} bytes; entry vectors take {MAX_BYTES} at most; {again}")
        with safe_open(path, framework="numpy") as file:
            metadata: dict[str, str] = file.metadata() or {}
            tensors: dict[str, Array] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        plan = Calls.model_validate(json.loads(metadata.get("calls", "null")))
        known = plan.rounded.values if plan.rounded is not None else {}
        outputs, steps = [], []
        for at, call in enumerate(plan.calls):
            entry = _entry(at, call, components)
            outputs.append(_outputs(tensors, f"{at}.", entry, call))
            if not (shapes := known.get(call.component)):
                steps.append(Steps({}, {}, {}))
                continue
            shipped, stepped = (_outputs(tensors, f"{at}.{which}.", entry, call) for which in ("shipped", "steps"))
            codes = {name: _codes(tensors, at, name, shape) for name, shape in shapes.items()}
            steps.append(Steps(shipped, stepped, codes))
        if tensors:
            raise ValueError(f"unknown tensors {', '.join(sorted(tensors)[:3])}")
    except (OSError, SafetensorError) as error:
        raise EdgewrightError(f"{path}: cannot be read as safetensors ({error}); {again}") from error
    except KeyError as error:
        raise EdgewrightError(f"{path}: no tensor {error}; {again}") from error
    except (ValueError, ValidationError, RecursionError) as error:
        raise EdgewrightError(f"{path}: {error}; {again}") from error
    return Vectors(plan, tuple(outputs), tuple(steps) if known else ())


def _outputs(tensors: dict[str, Array], stem: str, entry: Entry, call: Call) -> dict[str, Array]:
    """Of one call, taken from a file's tensors. Raises KeyError and ValueError."""
    found = {port.name: tensors.pop(stem + port.name) for port in entry.outputs}
    for port in entry.outputs:
        count = min(SAMPLES, math.prod(port.sized(call.sizes)))
        values = found[port.name]
        if values.shape != (count,) or values.dtype != np.dtype(port.dtype):
            raise ValueError(f"{stem}{port.name}: {values.dtype} {values.shape}, expected {port.dtype} [{count}]")
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise ValueError(f"{stem}{port.name}: holds NaN or infinity")
    return found


def _codes(tensors: dict[str, Array], at: int, name: str, shape: tuple[int, ...]) -> Array:
    """Of one value. Raises KeyError and ValueError."""
    values, count = tensors.pop(f"{at}.codes.{name}"), min(CODES, math.prod(shape))
    if values.dtype != np.uint8 or values.shape != (count,):
        raise ValueError(f"{at}.codes.{name}: {values.dtype} {values.shape}, expected uint8 [{count}]")
    return values


def given_codes(plan: Calls, at: int, ports: int) -> dict[str, Array]:
    """The codes by which a call's rounded values are replaced, uint8 by name. ports: how many inputs its entry has."""
    return {name: given_code(plan, at, ports, name) for name in _shapes(plan, at)}


def given_code(plan: Calls, at: int, ports: int, name: str) -> Array:
    """`given_codes` of one value: all of a large call at once are as large as all that it computes."""
    shapes = _shapes(plan, at)
    seed = [plan.seed, at, ports + list(shapes).index(name)]
    return np.random.default_rng(seed).integers(0, 256, shapes[name], np.uint8)


def _shapes(plan: Calls, at: int) -> Mapping[str, tuple[int, ...]]:
    """Of a call's rounded values by name."""
    return plan.rounded.values.get(plan.calls[at].component, {}) if plan.rounded is not None else {}
