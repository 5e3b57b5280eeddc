"""MLX's own rule for asymmetric groups, `mx.quantize`: the weight of largest magnitude is held exactly.

The group's edge, its weight of largest magnitude, lies a whole number of steps from zero; the step is adjusted for
that. Weights are first rounded to float16, and scales to float16 after the codes are chosen, as
`mlx_lm.convert --dtype float16` does: what it writes and what the MLX target writes of these codes is the same to the
bit, for a bfloat16 checkpoint.

Source: `quantize` in mlx/backend/cpu/quantized.cpp (v0.32). MLX's biases are real numbers, zero points are whole: a
group that does not reach zero is quantized as if it did. Scales below fp16's normal range are raised to it as in
every method.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from pydantic import model_validator

from artifacts import EdgewrightError
from compiler.codes import Codes
from compiler.quantize.methods import NoOptions
from compiler.quantize.methods.rtn import representable
from compiler.slots import Scheme

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor


class Options(NoOptions):
    """None of its own; the rule that names it has to be asymmetric."""

    @model_validator(mode="after")
    def _has_zero_points(self) -> Self:
        if getattr(self, "symmetric", False):
            raise ValueError("method mlx_affine has zero points: say symmetric: false, or use method rtn")
        return self


OPTIONS = Options
_SMALLEST_STEP = 1e-7


def rounder(options: NoOptions, inputs: object = None) -> Callable[[Tensor, Scheme], Codes]:
    """The rounder of this method; it has no options, and `inputs` are not looked at."""
    return quantize


def quantize(rows: Tensor, scheme: Scheme) -> Codes:
    """Quantize float32 rows [rows, columns].

    Raises EdgewrightError for a symmetric scheme, OverflowError when a weight or scale does not fit in fp16.
    """
    import torch

    if scheme.symmetric:
        raise EdgewrightError("method mlx_affine has zero points: give its rule symmetric: false, or use method rtn")
    half, steps = 1 << (scheme.bits - 1), (1 << scheme.bits) - 1
    grouped = rows.half().float().unflatten(1, (scheme.groups(rows.shape[1]), -1))
    if not grouped.isfinite().all():
        raise OverflowError(f"a weight of {rows.abs().max().item():.4g} does not fit in fp16")
    low, high = torch.aminmax(grouped, dim=-1)
    low, high = low.clamp(max=0), high.clamp(min=0)
    negative = low.abs() > high.abs()
    edge = torch.where(negative, low, high)
    scale = ((high - low) / steps).clamp(min=_SMALLEST_STEP)
    scale = torch.where(negative, scale, -scale)
    whole = (edge / scale).round()  # minus the zero point, counted from the lowest code
    scale = torch.where(whole != 0, edge / whole, scale)
    codes = ((grouped - edge[..., None]) / scale[..., None]).round_().clamp_(0, steps)
    return Codes(
        codes.sub_(half).to(torch.int8).flatten(1).numpy(),
        representable(scale).numpy(),
        (-whole - half).to(torch.int8).numpy(),
    )
