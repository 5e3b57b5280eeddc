"""Capturing an entry of a component: from a module of edge ops to an exported program that holds no weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from compiler.models.base import Component, Entry
from compiler.slots import Schemes

if TYPE_CHECKING:
    from torch.export import ExportedProgram

Node = Any
"""A `torch.fx.Node`, whose arguments torch types as a union of everything they could be."""


def capture(
    component: Component, entry: Entry, schemes: Schemes, sizes: Mapping[str, int] | None = None
) -> ExportedProgram:
    """Export one entry: its placeholders are the inputs and then the states, its outputs those of the entry and then
    the states, each in the order of their ports.

    sizes: named dimensions to fix; the others stay symbolic between their bounds. Nothing of a tensor's size is
    allocated, however large the states.
    """
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.export import Dim
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    bounds = entry.dimensions
    fixed = {name: low for name, (low, high) in bounds.items() if low == high} | dict(sizes or {})
    free = {name: Dim(name, min=low, max=high) for name, (low, high) in bounds.items() if name not in fixed}
    # example sizes that differ, and from 0 and 1 too, or two dimensions are taken for one
    example = fixed | {name: min(max(3 + 2 * at, bounds[name][0]), bounds[name][1]) for at, name in enumerate(free)}
    ports = [*entry.inputs, *component.states]
    body = component.module(entry, schemes)

    class Flat(torch.nn.Module):
        def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return tuple(body(*tensors))

    with torch.no_grad():
        with FakeTensorMode(shape_env=ShapeEnv()):
            tensors = tuple(torch.zeros(p.sized(example), dtype=getattr(torch, p.dtype)) for p in ports)
        shapes = tuple({at: free[d] for at, d in enumerate(p.shape) if d in free} for p in ports)
        return torch.export.export(Flat(), tensors, dynamic_shapes=(shapes,))
