"""Activation-aware scaling: channels with large inputs get finer steps, at the cost of those with small ones.

The inputs of a matrix are divided by a factor for each channel, inside the norm or linear before it, and its columns
multiplied by the same: the function stays, its rounding errors do not. The factors are a power of the inputs' root
mean square, the power found by search. Codes are then rounded to nearest under scales searched with the inputs' weight.

Source: Lin et al., "AWQ" (MLSys 2024), section 3.2. What comes before a matrix is `calibrated/folding.py`'s business.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field

from compiler.codes import Codes
from compiler.matmul import linear
from compiler.quantize.interface import Folding, Inputs, Rounder
from compiler.quantize.methods import mse, rtn
from compiler.slots import Scheme

if TYPE_CHECKING:
    from torch import Tensor

CALIBRATED = True
_SAMPLED_ROWS = 512
_SMALLEST = 1e-4
_LARGEST_FACTOR = 256.0


class AwqOptions(BaseModel):
    """Options of `method: awq`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    fold: bool = Field(True, description="search channel factors and fold them; false leaves weighted clipping alone")
    powers: int = Field(20, ge=1, le=100, description="powers of the inputs' size tried between 0 and 1")
    candidates: int = Field(24, ge=2, le=256, description="clipped scales tried for each group")


OPTIONS = AwqOptions


def rounder(options: AwqOptions, inputs: Inputs | None = None) -> Rounder:
    """Rounds to nearest under scales searched with the inputs' weight. Raises ValueError without inputs."""
    if inputs is None:
        raise ValueError("awq needs calibration inputs")
    diagonal = inputs.hessian.diagonal()

    def quantize(rows: Tensor, scheme: Scheme) -> Codes:
        groups = scheme.groups(rows.shape[1])
        grouped = rows.unflatten(1, (groups, -1))
        weight = diagonal.unflatten(0, (groups, -1))
        return rtn.encode(grouped, *mse.search(grouped, scheme, options.candidates, weight), scheme)

    return quantize


def folding(options: AwqOptions) -> Folding | None:
    """The search for factors, None where a rule switches it off."""
    return partial(fold_factors, powers=options.powers) if options.fold else None


def fold_factors(members: Sequence[tuple[Tensor, Scheme]], hessian: Tensor, channels: Tensor, *, powers: int) -> Tensor:
    """Factors as `Folding` gives them; columns may share a channel, as grouped-query heads do.

    Ones are among what is tried, so the factors never make the sampled error larger.
    """
    import torch

    count = int(channels.max()) + 1
    size = hessian.new_zeros(count).index_add_(0, channels, hessian.diagonal())
    size = (size / torch.bincount(channels, minlength=count)).sqrt()
    size = (size / size.mean().clamp(min=torch.finfo(torch.float32).tiny)).clamp(min=_SMALLEST)
    sampled = [(rows[:: -(-len(rows) // _SAMPLED_ROWS)], scheme) for rows, scheme in members]
    best, found = float("inf"), torch.ones(count)
    for step in range(powers + 1):
        factors = size ** (step / powers)
        factors = factors / (factors.max() * factors.min()).sqrt()
        factors = factors.clamp(1 / _LARGEST_FACTOR, _LARGEST_FACTOR)
        spread = factors[channels]
        error = 0.0
        for rows, scheme in sampled:
            difference = _rounded(rows * spread, scheme) / spread - rows
            error += float((linear(difference, hessian) * difference).sum())
        if error < best:
            best, found = error, factors
    return found


def _rounded(rows: Tensor, scheme: Scheme) -> Tensor:
    half = 1 << (scheme.bits - 1)
    grouped = rows.unflatten(1, (scheme.groups(rows.shape[1]), -1))
    scales, zeros = rtn.range_scales(grouped, scheme)
    shift = 0 if zeros is None else zeros[..., None]
    codes = (grouped / scales[..., None] + shift).round_().clamp_(-half, half - 1)
    rounded: Tensor = ((codes - shift) * scales[..., None]).flatten(1)
    return rounded
