"""Half-quadratic quantization: scales, or zero points, that minimize the error in an lp norm below one.

Outliers then count little. It alternates between shrinking the residual towards sparsity and refitting: the zero
point for asymmetric codes, as published, and the scale for symmetric ones, which have no zero point.

Source: Badri & Shaji, "Half-Quadratic Quantization of Large Machine Learning Models" (2023). Zero points are rounded
at the end: every runtime here stores them as integers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field

from compiler.codes import Codes
from compiler.quantize.interface import Inputs, Rounder
from compiler.quantize.methods import rtn
from compiler.slots import Scheme

if TYPE_CHECKING:
    from torch import Tensor


class HqqOptions(BaseModel):
    """Options of `method: hqq`; the defaults are the paper's."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    iterations: int = Field(20, ge=1, le=200)
    norm: float = Field(0.7, gt=0, le=1, description="p of the lp norm")
    beta: float = Field(10.0, gt=0, description="weight of the quadratic term")
    growth: float = Field(1.01, ge=1, description="factor on beta at every iteration")


OPTIONS = HqqOptions


def rounder(options: HqqOptions, inputs: Inputs | None = None) -> Rounder:
    """Rounds to nearest under refitted scales or zero points; `inputs` are not looked at."""

    def quantize(rows: Tensor, scheme: Scheme) -> Codes:
        grouped = rows.unflatten(1, (scheme.groups(rows.shape[1]), -1))
        return rtn.encode(grouped, *_fit(grouped, scheme, options), scheme)

    return quantize


def _fit(grouped: Tensor, scheme: Scheme, options: HqqOptions) -> tuple[Tensor, Tensor | None]:
    """Per group, the iterate with the least lp error; the start, rounding to nearest, is one of them."""
    import torch

    half = 1 << (scheme.bits - 1)
    scales, zeros = rtn.range_scales(grouped, scheme)
    best_scales, best_zeros = scales, zeros
    best = torch.full_like(scales, torch.inf)
    beta = options.beta
    for _ in range(options.iterations + 1):
        shift = 0 if zeros is None else zeros[..., None]
        codes = (grouped / scales[..., None] + shift).round().clamp(-half, half - 1)
        residual = grouped - (codes - shift) * scales[..., None]
        # in units of a step, so that beta means the same for every tensor
        steps = residual / scales.abs()[..., None]
        error = (steps.abs() ** options.norm).sum(-1) * scales.abs() ** options.norm
        better = error < best
        best = torch.where(better, error, best)
        best_scales = torch.where(better, scales, best_scales)
        sparse = steps.sign() * (steps.abs() - steps.abs().clamp(min=1e-8) ** (options.norm - 1) / beta).clamp(min=0)
        target = grouped - sparse * scales.abs()[..., None]
        if zeros is None:
            square = codes.square().sum(-1)
            fitted = (target * codes).sum(-1) / square.clamp(min=1)
            scales = rtn.representable(torch.where(square > 0, fitted, scales))
        else:
            assert best_zeros is not None
            best_zeros = torch.where(better, zeros, best_zeros)
            zeros = (codes - target / scales[..., None]).mean(-1).round().clamp(-half, half - 1)
        beta *= options.growth
    return best_scales, best_zeros
