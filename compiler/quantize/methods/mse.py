"""Rounding to nearest under clipped scales: of each group's candidates, the one with the least squared error.

Clipping the few extreme values of a group makes its steps finer for all the others. For symmetric codes both signs
of a scale are tried, as the code range has one value more below zero than above.
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

_LEAST_SHRINK = {4: 0.55, 8: 0.9}
_ROWS = 256


class MseOptions(BaseModel):
    """Options of `method: mse`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    candidates: int = Field(24, ge=2, le=256, description="clipped scales tried for each group")


OPTIONS = MseOptions


def rounder(options: MseOptions, inputs: Inputs | None = None) -> Rounder:
    """Rounds to nearest with searched scales; `inputs` are not looked at."""

    def quantize(rows: Tensor, scheme: Scheme) -> Codes:
        grouped = rows.unflatten(1, (scheme.groups(rows.shape[1]), -1))
        return rtn.encode(grouped, *search(grouped, scheme, options.candidates), scheme)

    return quantize


def search(
    grouped: Tensor, scheme: Scheme, candidates: int, weight: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """Scales (fp16-representable) and zero points of [rows, groups, group] with the least error.

    weight: of every column's squared error, [groups, group]; None weighs them alike.
    """
    import torch

    found = [_search(block, scheme, candidates, weight) for block in grouped.split(_ROWS)]
    scales = torch.cat([s for s, _ in found])
    return scales, None if scheme.symmetric else torch.cat([z for _, z in found if z is not None])


def _search(grouped: Tensor, scheme: Scheme, candidates: int, weight: Tensor | None) -> tuple[Tensor, Tensor | None]:
    import torch

    half = 1 << (scheme.bits - 1)
    low, high = torch.aminmax(grouped, dim=-1)
    extreme = torch.where(low.abs() >= high.abs(), low, high)
    best_scales, best_zeros = rtn.range_scales(grouped, scheme)
    best = _error(grouped, best_scales, best_zeros, half, weight)
    for share in torch.linspace(1, _LEAST_SHRINK[scheme.bits], candidates).tolist():
        trials: list[tuple[Tensor, Tensor | None]]
        if scheme.symmetric:
            trials = [(rtn.representable(extreme * (share / -sign)), None) for sign in (half, -half)]
        else:
            trials = [rtn.range_scales(torch.stack([low, high], -1) * share, scheme)]
        for scales, zeros in trials:
            error = _error(grouped, scales, zeros, half, weight)
            better = error < best
            best = torch.where(better, error, best)
            best_scales = torch.where(better, scales, best_scales)
            if zeros is not None and best_zeros is not None:
                best_zeros = torch.where(better, zeros, best_zeros)
    return best_scales, best_zeros


def _error(grouped: Tensor, scales: Tensor, zeros: Tensor | None, half: int, weight: Tensor | None) -> Tensor:
    """Squared error [rows, groups] of rounding to nearest."""
    codes = grouped / scales[..., None]
    if zeros is None:
        codes.round_().clamp_(-half, half - 1)
    else:
        codes.add_(zeros[..., None]).round_().clamp_(-half, half - 1).sub_(zeros[..., None])
    error = codes.mul_(scales[..., None]).sub_(grouped).square_()
    if weight is not None:
        error.mul_(weight)
    return error.sum(-1)
