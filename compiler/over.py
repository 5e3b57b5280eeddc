"""Operations that write what they give over their first operand, to the same bits as without.

For `Walk.answer` and `Tensors`, which know when nothing else reads that. What must not live here: when it is so.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from compiler.convolution import convolved
from compiler.dialect import along, rows_of

_BLOCK_BYTES = 1 << 22
_aten = torch.ops.aten


def _bias(x: Tensor, slots: list[str], rows: list[int], axis: int) -> Tensor:
    return x.add_(along(torch.cat([rows_of(slot) for slot in slots]), x, axis))


def _group_norm(
    x: Tensor, groups: int, weight: Tensor | None = None, bias: Tensor | None = None, *rest: object
) -> Tensor:
    """In blocks of groups, as each is normalized alone."""
    if weight is not None or bias is not None:
        normed: Tensor = _aten.group_norm(x, groups, weight, bias, *rest)
        return normed
    size = x.shape[1] // groups
    step = max(1, _BLOCK_BYTES // (math.prod(x.shape[2:]) * size * x.element_size()))
    for at in range(0, groups, step):
        part = x[:, at * size : min(groups, at + step) * size]
        part.copy_(_aten.group_norm(part, part.shape[1] // size, None, None, *rest))
    return x


def by_channels(function: Callable[..., Tensor], *values: Tensor) -> Tensor:
    """function(*values) of values [1, channels, …], some channels at a time, over the last of them, whose shape the
    others have or are views of: those are copied in parts."""
    *others, last = values
    step = max(1, _BLOCK_BYTES // (math.prod(last.shape[2:]) * last.element_size()))
    for at in range(0, last.shape[1], step):
        part = slice(at, at + step)
        over = last[:, part]
        over.copy_(function(*(value[:, part].reshape(over.shape) for value in others), over))
    return last


def add_convolution(
    out: Tensor,
    bias: str | None,
    x: Tensor,
    slot: str,
    shape: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> Tensor:
    """out + (convolution + bias): what is added is never as large as `out`. bias: its slot, if there is one."""
    added = None if bias is None else rows_of(bias)
    for outputs, places, made in convolved(x, partial(rows_of, slot), shape, stride, padding, dilation, groups):
        if added is not None:
            made += along(added[outputs], made, 1)
        out[:, outputs, places] += made
    return out


OVER: dict[str, Callable[..., Tensor]] = {
    "edge::bias": _bias,
    "aten::add": _aten.add_,
    "aten::mul": _aten.mul_,
    "aten::relu": _aten.relu_,
    "aten::leaky_relu": _aten.leaky_relu_,
    "aten::sigmoid": _aten.sigmoid_,
    "aten::gelu": _aten.gelu_,
    "aten::group_norm": _group_norm,
}
"""By the name of the operation."""
