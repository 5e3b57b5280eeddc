"""Rounding to nearest: each group's scale from its extreme values, each value to the nearest code."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import BaseModel

from compiler.codes import LARGEST_SCALE, SMALLEST_SCALE, Codes
from compiler.quantize.interface import Inputs, Rounder
from compiler.quantize.methods import NoOptions
from compiler.slots import Scheme

if TYPE_CHECKING:
    from torch import Tensor

OPTIONS = NoOptions


def rounder(options: BaseModel, inputs: Inputs | None = None) -> Rounder:
    """`quantize`: there are no options, and `inputs` are not looked at."""
    return quantize


def quantize(rows: Tensor, scheme: Scheme) -> Codes:
    """Quantize float32 rows [rows, columns].

    Symmetric: the value of largest magnitude, with its sign, becomes the lowest code, so all 2**bits codes are used
    and a scale may be negative. Asymmetric: the range including zero is spread over all codes.
    Raises OverflowError when a scale does not fit in fp16.
    """
    grouped = rows.unflatten(1, (scheme.groups(rows.shape[1]), -1))
    scales, zeros = range_scales(grouped, scheme)
    return encode(grouped, scales, zeros, scheme)


def range_scales(grouped: Tensor, scheme: Scheme) -> tuple[Tensor, Tensor | None]:
    """Scales (fp16-representable) and zero points [rows, groups] that cover the range of [rows, groups, group]."""
    import torch

    half = 1 << (scheme.bits - 1)
    low, high = extremes(grouped)
    if scheme.symmetric:
        extreme = torch.where(low.abs() >= high.abs(), low, high)
        return representable(extreme / -half), None
    low, high = low.clamp(max=0), high.clamp(min=0)
    scales = representable((high - low) / (2 * half - 1))
    return scales, (-half - low / scales).round().clamp(-half, half - 1)


def extremes(grouped: Tensor) -> tuple[Tensor, Tensor]:
    """Least and greatest of each group [rows, groups]; halved first, as torch reduces short rows slowly."""
    import torch

    low = high = grouped
    while low.shape[-1] % 2 == 0 and low.shape[-1] > 4:
        middle = low.shape[-1] // 2
        low = torch.minimum(low[..., :middle], low[..., middle:])
        high = torch.maximum(high[..., :middle], high[..., middle:])
    return low.amin(-1), high.amax(-1)


def representable(scales: Tensor) -> Tensor:
    """Round scales to fp16 values of normal magnitude, so that every target holds them exactly.

    A scale too small for that is raised to the smallest normal one (2**-14): the weights of such a group are then
    off by at most 2**-15, where a subnormal scale would be flushed to zero by some kernels and not by others.
    """
    import torch

    if scales.abs().amax() > LARGEST_SCALE:
        raise OverflowError(f"a scale of {scales.abs().amax().item():.4g} does not fit in fp16")
    small = torch.where(scales < 0, -SMALLEST_SCALE, SMALLEST_SCALE)
    return torch.where(scales.abs() < SMALLEST_SCALE, small, scales.half().float())


def encode(grouped: Tensor, scales: Tensor, zeros: Tensor | None, scheme: Scheme) -> Codes:
    """Nearest codes of [rows, groups, group] under given scales and zero points."""
    import torch

    half = 1 << (scheme.bits - 1)
    codes = grouped / scales[..., None]
    codes = codes.round_() if zeros is None else codes.add_(zeros[..., None]).round_()
    codes = codes.clamp_(-half, half - 1).to(torch.int8).flatten(1)
    return Codes(codes.numpy(), scales.numpy(), None if zeros is None else zeros.to(torch.int8).numpy())
