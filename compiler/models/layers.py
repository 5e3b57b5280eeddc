"""Pieces of graphs that families share, in the edge dialect. Knows no family and no config."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from compiler.models.base import scheme_arguments
from compiler.slots import Schemes, Slot

if TYPE_CHECKING:
    import torch


def linears(slots: Iterable[Slot], schemes: Schemes) -> Callable[..., torch.Tensor]:
    """linear(x float32 [..., columns], *names) -> float32 [..., rows of all of them]: products with slots over one
    input, side by side, with the bias `<name>.bias` of each where the first has one.

    One op where the schemes of the slots agree, one for each where they do not.
    """
    import torch

    from compiler.dialect import edge

    sizes = {slot.name: (slot.rows, slot.columns) for slot in slots}

    def linear(x: torch.Tensor, *names: str) -> torch.Tensor:
        found = {scheme_arguments(schemes, n) for n in names}
        if len(found) > 1:
            return torch.cat([linear(x, n) for n in names], -1)
        rows = [sizes[n][0] for n in names]
        out: torch.Tensor = edge.linear(x, list(names), rows, sizes[names[0]][1], *found.pop())
        if f"{names[0]}.bias" in sizes:
            out = edge.bias(out, [f"{n}.bias" for n in names], rows, -1)
        return out

    return linear
