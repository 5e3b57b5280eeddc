"""Convolutions, transposed convolutions and pooling, in one to three dimensions."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from runtime_tests.mil.ops import Operation, integers

_CONV = (F.conv1d, F.conv2d, F.conv3d)
_TRANSPOSED = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)
_AVERAGE = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)
_MAXIMUM = (F.max_pool1d, F.max_pool2d, F.max_pool3d)


def _paddings(
    pad_type: str, pad: Any, sizes: list[int], kernel: list[int], strides: list[int], dilations: list[int]
) -> list[tuple[int, int]]:
    """(before, after) of each spatial axis."""
    if pad_type == "valid":
        return [(0, 0)] * len(sizes)
    if pad_type == "custom":
        flat = integers(pad)
        return [(flat[i], flat[i + 1]) for i in range(0, len(flat), 2)]
    if pad_type not in ("same", "same_lower"):
        raise ValueError(f"pad_type {pad_type!r} is unknown")
    found = []
    for size, taps, stride, dilation in zip(sizes, kernel, strides, dilations, strict=True):
        total = max((-(-size // stride) - 1) * stride + (taps - 1) * dilation + 1 - size, 0)
        small, large = total // 2, total - total // 2
        found.append((small, large) if pad_type == "same" else (large, small))
    return found


def _flat(pairs: list[tuple[int, int]]) -> list[int]:
    return [size for pair in reversed(pairs) for size in pair]


def _ones(value: Any, count: int) -> list[int]:
    return [1] * count if value is None else integers(value)


def _conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    strides: Any = None,
    pad_type: str = "valid",
    pad: Any = None,
    dilations: Any = None,
    groups: Any = 1,
) -> Tensor:
    rank = x.ndim - 2
    steps, gaps = _ones(strides, rank), _ones(dilations, rank)
    pairs = _paddings(pad_type, pad, list(x.shape[2:]), list(weight.shape[2:]), steps, gaps)
    return _CONV[rank - 1](F.pad(x, _flat(pairs)), weight, bias, steps, 0, gaps, int(groups))


def _conv_transpose(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    pad: Any = None,
    output_shape: Any = None,
    pad_type: str = "valid",
    strides: Any = None,
    dilations: Any = None,
    groups: Any = 1,
) -> Tensor:
    """The full transposed convolution, cut by `pad`; what output_shape adds beyond it is bias alone."""
    rank = x.ndim - 2
    steps, gaps = _ones(strides, rank), _ones(dilations, rank)
    full = _TRANSPOSED[rank - 1](x, weight, None, steps, 0, 0, int(groups), gaps)
    wanted = None if output_shape is None else integers(output_shape)[-rank:]
    for axis in range(rank):
        size = full.shape[2 + axis]
        before, after = _cut(pad_type, pad, axis, size, x.shape[2 + axis] * steps[axis])
        length = size - before - after if wanted is None else wanted[axis]
        if before + length > size:
            extra = list(full.shape)
            extra[2 + axis] = before + length - size
            full = torch.cat([full, full.new_zeros(extra)], 2 + axis)
        full = full.narrow(2 + axis, before, length)
    return full if bias is None else full + bias.reshape(1, -1, *[1] * rank)


def _cut(pad_type: str, pad: Any, axis: int, full: int, same: int) -> tuple[int, int]:
    if pad_type == "custom":
        flat = integers(pad)
        return flat[2 * axis], flat[2 * axis + 1]
    if pad_type == "valid":
        return 0, 0
    total = max(full - same, 0)
    small, large = total // 2, total - total // 2
    return (small, large) if pad_type == "same" else (large, small)


def _ceil_extra(size: int, taps: int, stride: int, before: int, after: int) -> int:
    """Padding that makes the last, partial window count; windows must begin inside input or left padding."""
    span = size + before + after - taps
    count = -(-span // stride) + 1
    if (count - 1) * stride >= size + before:
        count -= 1
    return max((count - 1) * stride - span, 0)


def _pool(
    x: Tensor,
    kernel_sizes: Any,
    strides: Any,
    pad_type: str,
    pad: Any,
    ceil_mode: Any,
    fill: float,
) -> tuple[Tensor, list[int], list[int], list[tuple[int, int]]]:
    rank = x.ndim - 2
    kernel = integers(kernel_sizes)
    steps = _ones(strides, rank)
    pairs = _paddings(pad_type, pad, list(x.shape[2:]), kernel, steps, [1] * rank)
    if bool(ceil_mode):
        pairs = [
            (b, a + _ceil_extra(size, k, s, b, a))
            for (b, a), size, k, s in zip(pairs, x.shape[2:], kernel, steps, strict=True)
        ]
    return F.pad(x, _flat(pairs), value=fill), kernel, steps, pairs


def _max_pool(
    x: Tensor, kernel_sizes: Any, strides: Any = None, pad_type: str = "valid", pad: Any = None, ceil_mode: Any = False
) -> Tensor:
    padded, kernel, steps, _ = _pool(x, kernel_sizes, strides, pad_type, pad, ceil_mode, float("-inf"))
    return _MAXIMUM[x.ndim - 3](padded, kernel, steps)


def _avg_pool(
    x: Tensor,
    kernel_sizes: Any,
    strides: Any = None,
    pad_type: str = "valid",
    pad: Any = None,
    exclude_padding_from_average: Any = False,
    ceil_mode: Any = False,
) -> Tensor:
    padded, kernel, steps, pairs = _pool(x, kernel_sizes, strides, pad_type, pad, ceil_mode, 0.0)
    mean = _AVERAGE[x.ndim - 3](padded, kernel, steps)
    if not bool(exclude_padding_from_average):
        return mean
    inside = F.pad(torch.ones_like(x), _flat(pairs))
    return mean / _AVERAGE[x.ndim - 3](inside, kernel, steps)


def _l2_pool(x: Tensor, kernel_sizes: Any, strides: Any = None, pad_type: str = "valid", pad: Any = None) -> Tensor:
    padded, kernel, steps, _ = _pool(x.square(), kernel_sizes, strides, pad_type, pad, False, 0.0)
    count = 1
    for size in kernel:
        count *= size
    return (_AVERAGE[x.ndim - 3](padded, kernel, steps) * count).sqrt()


OPS: dict[str, Operation] = {
    "conv": _conv,
    "conv_transpose": _conv_transpose,
    "max_pool": _max_pool,
    "avg_pool": _avg_pool,
    "l2_pool": _l2_pool,
}
