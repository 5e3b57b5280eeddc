"""Entry vectors: what every entry of a model answers, from the PyTorch reference with the dequantized weights.

The calls and their inputs are specified in `artifacts/formats/vectors.py`; knows no family.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from artifacts.formats import interface, vectors
from compiler.models.base import Model
from compiler.slots import Schemes, Weights


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
    with torch.no_grad(), dialect.weights(weights):
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


def _counted(model: Model, plan: vectors.Calls) -> int:
    """How many positions the calls of a component count at the most."""
    found: dict[tuple[str, str], int] = {}
    for call in plan.calls:
        for port in model.component(call.component).entry(call.entry).inputs:
            if port.counts:
                key = (call.component, port.name)
                found[key] = found.get(key, 0) + port.sized(call.sizes)[-1]
    return max(found.values(), default=0)
