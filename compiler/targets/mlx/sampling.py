"""Pooling, resizing and warping in MLX operations, for the table in `aten.py`. Tensors are [N, C, ...] as there."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
from mlx.nn.layers.pooling import AvgPool2d, MaxPool2d

Array = mx.array


def channels_last(x: Array) -> Array:
    """[N, C, ...] to [N, ..., C]; strides only."""
    return mx.moveaxis(x, 1, -1)


def channels_first(x: Array) -> Array:
    """[N, ..., C] to [N, C, ...]; strides only."""
    return mx.moveaxis(x, -1, 1)


def each(values: Sequence[int], dims: int) -> list[int]:
    """One value for each dimension, from one for all or from as many."""
    return list(values) * dims if len(values) == 1 else list(values)


def _pool(
    kind: Callable[..., Any], x: Array, size: Sequence[int], stride: Sequence[int], padding: Sequence[int]
) -> Array:
    dims = x.ndim - 2
    step = each(stride, dims) if stride else each(size, dims)
    pool = kind(tuple(each(size, dims)), tuple(step), tuple(each(padding, dims)))
    return channels_first(pool(channels_last(x)))


def max_pool2d(
    x: Array,
    size: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0,),
    dilation: Sequence[int] = (1,),
    ceil_mode: bool = False,
) -> Array:
    if ceil_mode or any(d != 1 for d in dilation):
        raise NotImplementedError("mlx: max_pool2d with ceil_mode or dilation")
    return _pool(MaxPool2d, x, size, stride, padding)


def avg_pool2d(
    x: Array,
    size: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0,),
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor: int | None = None,
) -> Array:
    if ceil_mode or divisor is not None or (any(padding) and not count_include_pad):
        raise NotImplementedError("mlx: avg_pool2d with ceil_mode, a divisor, or padding that is not counted")
    return _pool(AvgPool2d, x, size, stride, padding)


def _targets(x: Array, size: Sequence[int] | None, factors: Sequence[float] | None) -> list[int]:
    if size is not None:
        return list(size)
    assert factors is not None
    return [math.floor(n * f) for n, f in zip(x.shape[2:], factors, strict=True)]


def upsample_nearest(x: Array, size: Sequence[int] | None, factors: Sequence[float] | None) -> Array:
    for at, target in enumerate(_targets(x, size, factors)):
        length = x.shape[2 + at]
        ratio = 1 / factors[at] if factors is not None else length / target
        picked = mx.floor(mx.arange(target) * ratio).astype(mx.int32)
        x = mx.take(x, mx.minimum(picked, length - 1), axis=2 + at)
    return x


def upsample_linear(
    x: Array, size: Sequence[int] | None, align_corners: bool, factors: Sequence[float] | None
) -> Array:
    """Separable, so one axis after the other."""
    for at, target in enumerate(_targets(x, size, factors)):
        axis, length = 2 + at, x.shape[2 + at]
        where = mx.arange(target, dtype=mx.float32)
        if align_corners:
            where = where * ((length - 1) / max(target - 1, 1))
        else:
            ratio = 1 / factors[at] if factors is not None else length / target
            where = mx.maximum((where + 0.5) * ratio - 0.5, 0)
        low = mx.minimum(mx.floor(where), length - 1)
        share = (where - low).astype(x.dtype).reshape(-1, *[1] * (x.ndim - axis - 1))
        first = low.astype(mx.int32)
        second = mx.minimum(first + 1, length - 1)
        x = mx.take(x, first, axis=axis) * (1 - share) + mx.take(x, second, axis=axis) * share
    return x


def pixel_shuffle(x: Array, factor: int) -> Array:
    """[N, C · factor², H, W] to [N, C, H · factor, W · factor]."""
    batch, channels, height, width = x.shape
    parts = x.reshape(batch, channels // factor**2, factor, factor, height, width)
    return parts.transpose(0, 1, 4, 2, 5, 3).reshape(batch, -1, height * factor, width * factor)


def grid_sampler(x: Array, grid: Array, mode: int, padding: int, align_corners: bool) -> Array:
    """Bilinear (trilinear) samples of x [N, C, …] at grid [N, …out, dims], coordinates -1 … 1, the last axis first."""
    if mode != 0 or padding not in (0, 1):
        raise NotImplementedError("mlx: grid_sample other than bilinear with zeros or border padding")
    batch, channels, *sizes = x.shape
    flat = x.reshape(batch, channels, -1)
    lows, shares = [], []
    for at, size in enumerate(sizes):
        place = grid[..., len(sizes) - 1 - at].astype(mx.float32)
        place = (place + 1) * ((size - 1) / 2) if align_corners else ((place + 1) * size - 1) / 2
        place = mx.clip(place, 0, size - 1) if padding == 1 else place
        lows.append(mx.floor(place))
        shares.append(place - lows[-1])
    out = mx.zeros((batch, channels, *grid.shape[1:-1]), mx.float32)
    for corner in itertools.product((0, 1), repeat=len(sizes)):
        index = mx.zeros(grid.shape[:-1], mx.int32)
        weight = mx.ones(grid.shape[:-1], mx.float32)
        for size, low, share, step in zip(sizes, lows, shares, corner, strict=True):
            place = low + step
            weight = weight * (share if step else 1 - share) * ((place >= 0) & (place < size))
            index = index * size + mx.clip(place, 0, size - 1).astype(mx.int32)
        wide = mx.broadcast_to(index.reshape(batch, 1, -1), (batch, channels, index[0].size))
        picked = mx.take_along_axis(flat, wide, axis=2)
        out = out + picked.reshape(out.shape) * weight[:, None]
    return out.astype(x.dtype)
