"""Reductions over axes, arg reductions and cumulative sums."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from runtime_tests.mil.ops import Operation, integers


def _reduce(function: Callable[[Tensor, list[int], bool], Tensor]) -> Operation:
    def operation(x: Tensor, axes: Any = None, keep_dims: Any = False) -> Tensor:
        dims = list(range(x.ndim)) if axes is None else integers(axes)
        return function(x, dims, bool(keep_dims))

    return operation


def _product(x: Tensor, dims: list[int], keep: bool) -> Tensor:
    for dim in sorted((d % x.ndim for d in dims), reverse=True):
        x = x.prod(dim, keepdim=keep)
    return x


def _arg(function: Callable[..., Tensor]) -> Operation:
    def operation(x: Tensor, axis: Any = -1, keep_dims: Any = False, output_dtype: str = "int32") -> Tensor:
        return function(x, int(axis), bool(keep_dims))

    return operation


def _cumsum(x: Tensor, axis: Any = 0, exclusive: Any = False, reverse: Any = False) -> Tensor:
    dim = int(axis)
    if bool(reverse):
        x = x.flip(dim)
    total = torch.cumsum(x, dim)
    if bool(exclusive):
        total = total - x
    return total.flip(dim) if bool(reverse) else total


OPS: dict[str, Operation] = {
    "reduce_sum": _reduce(lambda x, a, k: x.sum(a, k)),
    "reduce_mean": _reduce(lambda x, a, k: x.mean(a, k)),
    "reduce_max": _reduce(lambda x, a, k: x.amax(a, k)),
    "reduce_min": _reduce(lambda x, a, k: x.amin(a, k)),
    "reduce_prod": _reduce(_product),
    "reduce_l1_norm": _reduce(lambda x, a, k: x.abs().sum(a, k)),
    "reduce_l2_norm": _reduce(lambda x, a, k: x.square().sum(a, k).sqrt()),
    "reduce_sum_square": _reduce(lambda x, a, k: x.square().sum(a, k)),
    "reduce_log_sum": _reduce(lambda x, a, k: x.sum(a, k).log()),
    "reduce_log_sum_exp": _reduce(lambda x, a, k: torch.logsumexp(x, a, k)),
    "reduce_argmax": _arg(torch.argmax),
    "reduce_argmin": _arg(torch.argmin),
    "cumsum": _cumsum,
}
