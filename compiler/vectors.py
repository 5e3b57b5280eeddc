"""Entry vectors: what every entry of a model answers, from the PyTorch reference with the dequantized weights.

The calls and their inputs are specified in `artifacts/formats/vectors.py`; knows no family.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from artifacts.formats import interface, vectors
from compiler.activations import Roundings
from compiler.graph import Node, capture
from compiler.heap import returned_blocks
from compiler.models.base import Model
from compiler.slots import Schemes, Weights

_CODES = 0.25  # a sum that ends on the other side of a half is one code off; seen 0.1, from biases in whole products
_LEAST = 1e-3
_SUMS = 4  # how many times as far off as PyTorch's own float32 a runtime's may be: it adds in another order


def entry_outputs(
    model: Model, schemes: Schemes, weights: Weights, plan: vectors.Calls, components: tuple[interface.Component, ...]
) -> list[Mapping[str, NDArray[Any]]]:
    """The outputs of every call by port name, computed in float32 where a port does not say otherwise.

    components: the interface as the artifact states it, whose dimensions may be narrower than the model's. The calls
    count few positions: caches are as long as these, not as the context.
    """
    import torch

    from compiler import dialect

    counted = _counted(model, plan)
    model = model.at(counted) if counted else model
    states: dict[str, list[torch.Tensor]] = {
        c.name: [torch.zeros(s.sized({}), dtype=getattr(torch, s.dtype)) for s in c.states] for c in model.components
    }
    found: list[Mapping[str, NDArray[Any]]] = []
    answered: dict[str, NDArray[Any]] = {}
    with torch.no_grad(), returned_blocks(), dialect.weights(weights):
        for call, arrays in vectors.inputs(plan, components, answered):
            component = model.component(call.component)
            entry = component.entry(call.entry)
            arguments = [torch.from_numpy(arrays[port.name]) for port in entry.inputs]
            results = component.module(entry, schemes)(*arguments, *states[component.name])
            outputs = results[: len(entry.outputs)]
            if entry.keeps:
                states[component.name] = list(results[len(entry.outputs) :])
            found.append({port.name: out.numpy() for port, out in zip(entry.outputs, outputs, strict=True)})
            answered |= found[-1]
    return found


def rounded(
    model: Model,
    schemes: Schemes,
    weights: Weights,
    plan: vectors.Calls,
    components: tuple[interface.Component, ...],
    roundings: Roundings,
) -> tuple[vectors.Calls, list[vectors.Steps]]:
    """Of every call what activations of 8 bits make of it, and the calls with the limits of that; nothing of calls of
    components whose activations are floats.

    Computed in float64, so that a code differs only where a runtime's own sum ends on the other side of a half.
    """
    import torch

    from compiler import dialect
    from compiler.quantize.activations.walk import Walk, rounding

    walks = {name: Walk(capture(c := model.component(name), c.shipped[0], schemes)) for name in roundings}
    affines = {
        name: {n: roundings[name].values[n.name] for n in (*w.inputs, *w.nodes) if n.name in roundings[name].values}
        for name, w in walks.items()
    }
    values = {name: {n.name: tuple(n.meta["val"].shape) for n in found} for name, found in affines.items()}
    plan = plan.model_copy(update={"rounded": vectors.Rounded(values=values, shipped={}, steps={}, codes=_CODES)})
    found: list[vectors.Steps] = []
    squares: dict[str, NDArray[np.float64]] = {name: np.zeros(2) for name in walks}
    singly: dict[str, float] = dict.fromkeys(walks, 0.0)
    with torch.no_grad(), returned_blocks(), dialect.weights(weights, torch.float64):
        for at, (call, arrays) in enumerate(vectors.inputs(plan, components)):
            if call.component not in walks:
                found.append(vectors.Steps({}, {}, {}))
                continue
            walk, known, ports = walks[call.component], affines[call.component], model.component(call.component)
            entry = ports.entry(call.entry)
            codes: dict[str, NDArray[Any]] = {}
            given = partial(vectors.given_code, plan, at, len(entry.inputs))

            def step(node: Node, value: Any, known: Any = known, codes: Any = codes, given: Any = given) -> Any:
                """Note some codes of a value, and go on from others."""
                if node not in known:
                    return value
                affine, dtype = known[node], value.dtype
                if dtype == torch.float64:  # those that the file will hold: all would be as large as all activations
                    some = torch.from_numpy(vectors.sampled(value.numpy(), vectors.CODES))
                    codes[node.name] = dialect.codes_of(some, affine.scale, affine.zero).to(torch.uint8).numpy()
                return torch.from_numpy(given(node.name)).to(dtype).sub_(affine.zero).mul_(affine.scale)

            tensors = [torch.from_numpy(arrays[port.name]).double() for port in entry.inputs]
            sides = [walk.answer(tensors, change) for change in (step, rounding(known))]
            stepped, whole = (
                {port.name: out.float().numpy() for port, out in zip(entry.outputs, side, strict=True)}
                for side in sides
            )
            for wide, out in zip(walk.answer(tensors), sides[1], strict=True):
                squares[call.component] += float((out - wide).square().sum()), float(wide.square().sum())
            found.append(vectors.Steps(whole, stepped, codes))
            with dialect.weights(weights):
                single = walk.answer([torch.from_numpy(arrays[port.name]) for port in entry.inputs], step)
            for out, wide in zip(single, stepped.values(), strict=True):
                off = np.abs(out.numpy() - wide).max(initial=0.0) / max(np.abs(wide).max(initial=0.0), 1e-30)
                singly[call.component] = max(singly[call.component], float(off))
    shipped = {name: _limit(*pair) for name, pair in squares.items()}
    assert plan.rounded is not None
    steps = {name: max(plan.exact, _SUMS * off) for name, off in singly.items()}
    return plan.model_copy(
        update={"rounded": plan.rounded.model_copy(update={"shipped": shipped, "steps": steps})}
    ), found


def _limit(wrong: float, total: float) -> float:
    """Of the whole way, where one code that ends on the other side of a half soon has changed most behind it: a runtime
    and this then round as two that know nothing of each other, and are the square root of two of the error apart."""
    return min(1.0, max(_LEAST, 2 * math.sqrt(wrong / total))) if total else _LEAST


def _counted(model: Model, plan: vectors.Calls) -> int:
    """How many positions the calls of a component count at the most."""
    found: dict[tuple[str, str], int] = {}
    for call in plan.calls:
        for port in model.component(call.component).entry(call.entry).inputs:
            if port.counts:
                key = (call.component, port.name)
                found[key] = found.get(key, 0) + port.sized(call.sizes)[-1]
    return max(found.values(), default=0)
