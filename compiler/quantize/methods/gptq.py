"""GPTQ, and what makes it better: rounding that minimizes the error of a layer's outputs, not of its weights.

Columns are rounded one after another, those with the largest inputs first, and the error of each is spread over the
columns still to come by the inverse of the damped Hessian. Then scales and codes are refined in turn: each scale is
the exact minimizer for its codes, each code the best one while all others stand still (coordinate descent). The
target is corrected first for the drift of the layer's inputs: the layer is fitted to what the unquantized model
computes, from what the quantized one gives it.

Sources: Frantar et al., "GPTQ" (ICLR 2023), algorithm 1; Li et al., "GPTAQ" (2025) for asymmetric inputs; Behdin et
al., "QuantEase" (2023) for coordinate descent. Scales are fp16-representable at every step.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field

from compiler.codes import Codes
from compiler.matmul import linear
from compiler.quantize.interface import Inputs, Rounder
from compiler.quantize.methods import mse, rtn
from compiler.slots import Scheme

if TYPE_CHECKING:
    from torch import Tensor

CALIBRATED = True
_BLOCK = 64
_SPAN = 1024
_MOST_DAMPING = 1e4
_log = logging.getLogger(__name__)


class GptqOptions(BaseModel):
    """Options of `method: gptq`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    damping: float = Field(0.02, gt=0, le=1, description="added to the Hessian's diagonal, as a share of its mean")
    act_order: bool = Field(True, description="round the columns with the largest inputs first")
    candidates: int = Field(12, ge=2, le=256, description="clipped scales tried for each group")
    refinements: int = Field(4, ge=0, le=64, description="rounds of refitting scales and codes afterwards")
    correction: float = Field(
        1.0, ge=0, le=1, description="how much of the drift of the inputs to correct; 0 switches it off"
    )


OPTIONS = GptqOptions


def corrects(options: GptqOptions) -> bool:
    """Whether the drift of the inputs is corrected."""
    return options.correction > 0


def rounder(options: GptqOptions, inputs: Inputs | None = None) -> Rounder:
    """Prepare the factors that every row block shares; uses `inputs` up. Raises ValueError without inputs."""
    import torch

    if inputs is None:
        raise ValueError("gptq needs calibration inputs")
    diagonal = inputs.hessian.diagonal()
    order = diagonal.argsort(descending=True, stable=True) if options.act_order else torch.arange(len(diagonal))
    inverse = invert(inputs, options.damping, order)
    correction = inputs.drift
    inputs.drift = None
    if correction is not None:
        correct(correction, inverse, order, options.correction)
    # the upper factor U of H⁻¹ = UᵀU: row j holds what rounding column j costs the later ones
    factor = torch.linalg.cholesky(inverse, upper=True)
    del inverse
    hessian = inputs.hessian

    def quantize(rows: Tensor, scheme: Scheme) -> Codes:
        target = rows if correction is None else rows + linear(rows, correction)
        solution = Solution(target, hessian, scheme, options.candidates)
        solution.round_in_order(factor, order)
        solution.refine(options.refinements)
        return solution.codes()

    return quantize


def invert(inputs: Inputs, damping: float, order: Tensor) -> Tensor:
    """Damp the Hessian in place; its inverse, rows and columns in `order`.

    damping: share of the diagonal's mean; it grows tenfold, with a warning, until the Hessian is positive definite.
    Columns whose input is always zero get a diagonal of the mean: their weights do not matter and round to nearest.
    """
    import torch

    diagonal = inputs.hessian.diagonal()
    measured = diagonal.clone()
    mean = float(measured.abs().mean()) or 1.0
    alive = torch.where(measured == 0, mean, measured)
    share = damping
    while True:
        diagonal.copy_(alive + share * mean)
        ordered = inputs.hessian[order]  # in two steps: each frees the matrix before it
        ordered = ordered[:, order]
        lower, info = torch.linalg.cholesky_ex(ordered)
        del ordered
        if not int(info):
            inputs.damping = diagonal - measured
            return torch.cholesky_inverse(lower, out=lower)
        if share >= _MOST_DAMPING:
            raise ValueError(f"the Hessian of the inputs of {inputs.name} holds NaN or infinite values")
        share *= 10
        message = "the Hessian of the inputs of %s is not positive definite: damped by %g of its mean diagonal"
        _log.warning(message, inputs.name, share)


def correct(drift: Tensor, inverse: Tensor, order: Tensor, share: float) -> None:
    """Turn the drift in place into what, times a row of weights, corrects that row for a share of it: H⁻¹ drift."""
    inverse = inverse.t()  # which is symmetric, and lies by columns
    for start in range(0, len(drift), _SPAN):
        stop = start + _SPAN
        drift[order, start:stop] = linear(inverse, drift[order, start:stop].t()) * share


class Solution:
    """Codes and scales of a row block while they are improved; matrices lie transposed, [columns, rows].

    Minimizes (W - Ŵ) H (W - Ŵ)ᵀ for every row of W by itself.
    """

    def __init__(self, rows: Tensor, hessian: Tensor, scheme: Scheme, candidates: int) -> None:
        columns = rows.shape[1]
        self._scheme = scheme
        self._half = 1 << (scheme.bits - 1)
        self._group = scheme.group or columns
        self._hessian = hessian
        grouped = rows.unflatten(1, (-1, self._group))
        weight = hessian.diagonal().unflatten(0, (-1, self._group))
        scales, zeros = mse.search(grouped, scheme, candidates, weight)
        self._target = rows.t().contiguous()
        self._scales = scales.t().contiguous()
        self._zeros = None if zeros is None else zeros.t().contiguous()
        self._levels = self._target.new_empty(self._target.shape)  # codes less their zero points

    def _nearest(self, column: int, values: Tensor) -> Tensor:
        """The levels nearest to values / scale of one column."""
        group = column // self._group
        steps = values / self._scales[group]
        if self._zeros is None:
            return steps.round_().clamp_(-self._half, self._half - 1)
        zero = self._zeros[group]
        return steps.add_(zero).round_().clamp_(-self._half, self._half - 1).sub_(zero)

    def _gradient(self) -> Tensor:
        """H (W - Ŵ)ᵀ, [columns, rows]."""
        residual = self._levels.unflatten(0, (-1, self._group)) * self._scales[:, None]
        return linear(self._hessian, (self._target - residual.flatten(0, 1)).t())

    def round_in_order(self, factor: Tensor, order: Tensor) -> None:
        """GPTQ. factor: the upper Cholesky factor of the inverse Hessian, its columns in `order`."""
        import torch

        columns = len(self._target)
        places = order.tolist()
        left = self._target[order]
        for start in range(0, columns, _BLOCK):
            stop = min(start + _BLOCK, columns)
            errors = torch.empty((stop - start, left.shape[1]))
            for i in range(start, stop):
                levels = self._nearest(places[i], left[i])
                self._levels[places[i]] = levels
                error = (left[i] - levels * self._scales[places[i] // self._group]) / factor[i, i]
                errors[i - start] = error
                left[i + 1 : stop].addr_(factor[i, i + 1 : stop], error, alpha=-1)
            left[stop:] -= linear(factor[start:stop, stop:].t(), errors.t())

    def refine(self, rounds: int) -> None:
        """Coordinate descent, at most `rounds` sweeps over the groups: each one's scale, then its codes in order.

        Every step is the exact minimizer of the error while all else stands still. Within a span of columns the
        gradient follows each step; the columns outside get the span's sum of changes in one multiplication.
        """
        import torch

        gradient = self._gradient()
        columns, span = len(gradient), max(self._group, _BLOCK)
        for _ in range(rounds):
            changed = False
            for start in range(0, columns, span):
                stop = min(start + span, columns)
                inner, hessian = gradient[start:stop].clone(), self._hessian[start:stop, start:stop]
                moves = torch.zeros_like(inner)
                for first in range(start, stop, self._group):
                    at = slice(first - start, first - start + self._group)
                    moves[at] = self._refit_scale(first // self._group, inner[at], hessian[at, at])
                    inner.addmm_(hessian[:, at], moves[at], alpha=-1)
                    for block in range(at.start, at.stop, _BLOCK):
                        part = slice(block, min(block + _BLOCK, at.stop))
                        found = self._descend(start + block, inner[part].clone(), hessian[part, part])
                        inner.addmm_(hessian[:, part], found, alpha=-1)
                        moves[part] += found
                        changed = changed or bool(found.any())
                gradient -= linear(self._hessian[:, start:stop], moves.t())
            if not changed:
                break

    def _refit_scale(self, group: int, gradient: Tensor, hessian: Tensor) -> Tensor:
        """Give a group's scales the values that minimize the error for its codes; the change of its weights."""
        import torch

        levels = self._levels[group * self._group : (group + 1) * self._group]
        curvature = (levels * (hessian @ levels)).sum(0)
        step = (levels * gradient).sum(0) / curvature.clamp(min=torch.finfo(torch.float32).tiny)
        old = self._scales[group]
        new = torch.where(curvature > 0, old + step, old)
        # a scale near zero would lose its codes' meaning: keep the old one
        new = rtn.representable(torch.where(new.abs() > old.abs() / 4, new, old))
        change = levels * (new - old)
        self._scales[group] = new
        return change

    def _descend(self, start: int, gradient: Tensor, hessian: Tensor) -> Tensor:
        """Move the codes of a block of columns from `start` on, one column after another; the change of its weights.

        gradient, which is used up, and hessian are those of the block.
        """
        import torch

        moves = torch.empty_like(gradient)
        scale = self._scales[start // self._group]
        for i, diagonal in enumerate(hessian.diagonal().tolist()):
            old = self._levels[start + i]
            levels = self._nearest(start + i, torch.addcmul(gradient[i] / diagonal, old, scale))
            moves[i] = (levels - old) * scale
            self._levels[start + i] = levels
            gradient[i + 1 :].addr_(hessian[i, i + 1 :], moves[i], alpha=-1)
        return moves

    def codes(self) -> Codes:
        import torch

        levels = self._levels.unflatten(0, (-1, self._group))
        if self._zeros is None:
            zeros = None
        else:
            levels = levels + self._zeros[:, None]
            zeros = self._zeros.t().to(torch.int8).contiguous().numpy()
        codes = levels.flatten(0, 1).t().to(torch.int8).contiguous().numpy()
        return Codes(codes, self._scales.t().contiguous().numpy(), zeros)
