"""Convolutions in blocks: what a kernel lays out anew, of weights and of places, stays small beside what comes in and
goes out. Knows no slot and no table of weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from compiler.tensors import row_blocks

_PLACE_BYTES = 1 << 24  # of what one block reads and gives
_WEIGHT_BYTES = 1 << 22  # of a block's weights in float32


def convolved(
    x: Tensor,
    rows: Callable[[int, int], Tensor],
    shape: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> Iterator[tuple[slice, slice, Tensor]]:
    """Blocks of outputs, and of places along the first dimension of space, each with where it lies.

    rows: float32 rows `start:stop` of the weight, of shape `shape` as a whole.
    """
    dims, first = len(stride), padding[0]

    def product(part: Tensor, weight: Tensor, first: int) -> Tensor:
        weight = weight.reshape(-1, *shape[1:]).to(x.dtype)
        padded = [first, *padding[1:]]
        return torch.convolution(part, weight, None, stride, padded, dilation, False, [0] * dims, groups)

    sizes = convolved_sizes(x, shape, stride, padding, dilation)
    columns = math.prod(shape[1:])
    outputs = list(row_blocks(shape[0], columns, _WEIGHT_BYTES)) if groups == 1 else [(0, shape[0])]
    place = x.shape[1] * stride[0] * math.prod(x.shape[3:]) + shape[0] * math.prod(sizes[1:])
    step = max(1, _PLACE_BYTES // (place * x.shape[0] * x.element_size()))
    if len(outputs) == 1 and step >= sizes[0]:
        yield slice(0, shape[0]), slice(0, sizes[0]), product(x, rows(0, shape[0]), first)
        return
    reach = dilation[0] * (shape[2] - 1) + 1
    for start, stop in outputs:
        weight = rows(start, stop)
        for at in range(0, sizes[0], step):
            until = min(at + step, sizes[0])
            low, high = at * stride[0] - first, (until - 1) * stride[0] - first + reach
            part = x[:, :, max(low, 0) : high]
            beyond = max(-low, 0), max(high - x.shape[2], 0)
            if any(beyond):
                part = torch.nn.functional.pad(part, (*[0, 0] * (dims - 1), *beyond))
            yield slice(start, stop), slice(at, until), product(part, weight, 0)


def convolved_sizes(
    x: Tensor, shape: list[int], stride: list[int], padding: list[int], dilation: list[int]
) -> list[int]:
    """The sizes of a convolution's output behind its channels."""
    return [
        (x.shape[2 + i] + 2 * padding[i] - dilation[i] * (kernel - 1) - 1) // stride[i] + 1
        for i, kernel in enumerate(shape[2:])
    ]
