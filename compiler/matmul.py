"""Float32 matrix products of the calibrated methods, which spend nearly all their time in them.

Through oneDNN where torch was built with it: MKL, which torch asks otherwise, runs AVX2 code on AMD processors, at
half the speed of the AVX-512 code that oneDNN chooses by what a processor can do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

_ROWS = 512


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """x @ weightᵀ. x: float32 [..., columns]. weight: float32 [rows, columns]. Both are fastest contiguous."""
    import torch

    if x.numel() and weight.numel() and torch.backends.mkldnn.is_available():
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x.contiguous(), weight.contiguous(), None, "none", [], "")
        return out
    return torch.nn.functional.linear(x, weight)


def add_products(total: Tensor, a: Tensor, b: Tensor) -> None:
    """Add aᵀ b to total, [columns of a, columns of b]. a, b: float32 [tokens, columns]."""
    left, right = a.t().contiguous(), b.t().contiguous()
    for start in range(0, len(total), _ROWS):
        total[start : start + _ROWS] += linear(left[start : start + _ROWS], right)


def add_squares(total: Tensor, x: Tensor) -> None:
    """Add xᵀ x to the blocks of `total` on and above its diagonal. The others are left for `mirror`."""
    columns = x.t().contiguous()
    for start in range(0, len(total), _ROWS):
        total[start : start + _ROWS, start:] += linear(columns[start : start + _ROWS], columns[start:])


def mirror(total: Tensor) -> None:
    """Copy the blocks above the diagonal to below it, in place."""
    for start in range(_ROWS, len(total), _ROWS):
        total[start : start + _ROWS, :start] = total[:start, start : start + _ROWS].t()
