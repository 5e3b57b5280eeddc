"""Plain-numpy definitions of the operations for which coremltools has no value inference, written as loops.

They follow coremltools' operator pages, not torch: a second reading, so that the executor is not compared with itself.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def _pairs(pad_type: str, pad: Any, sizes: Any, kernel: Any, strides: Any, dilations: Any) -> list[tuple[int, int]]:
    found = []
    for axis, size in enumerate(sizes):
        if pad_type == "custom":
            found.append((pad[2 * axis], pad[2 * axis + 1]))
            continue
        reach = (kernel[axis] - 1) * dilations[axis] + 1
        total = max((-(-size // strides[axis]) - 1) * strides[axis] + reach - size, 0) if "same" in pad_type else 0
        small = total // 2
        found.append((small, total - small) if pad_type != "same_lower" else (total - small, small))
    return found


def conv(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    strides: Any = None,
    pad_type: str = "valid",
    pad: Any = None,
    dilations: Any = None,
    groups: int = 1,
) -> Array:
    rank = x.ndim - 2
    strides = [1] * rank if strides is None else strides
    dilations = [1] * rank if dilations is None else dilations
    kernel = weight.shape[2:]
    pairs = _pairs(pad_type, pad, x.shape[2:], kernel, strides, dilations)
    x = np.pad(x, [(0, 0), (0, 0), *pairs])
    sizes = [(x.shape[2 + i] - (kernel[i] - 1) * dilations[i] - 1) // strides[i] + 1 for i in range(rank)]
    out = np.zeros((x.shape[0], weight.shape[0], *sizes))
    per, inputs = weight.shape[0] // groups, weight.shape[1]
    for n, o in product(range(x.shape[0]), range(weight.shape[0])):
        first = o // per * inputs
        for at in product(*map(range, sizes)):
            window = tuple(
                slice(at[i] * strides[i], at[i] * strides[i] + (kernel[i] - 1) * dilations[i] + 1, dilations[i])
                for i in range(rank)
            )
            out[(n, o, *at)] = (x[(n, slice(first, first + inputs), *window)] * weight[o]).sum()
    return out if bias is None else out + bias.reshape(1, -1, *[1] * rank)


def conv_transpose(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    pad: Any = None,
    output_shape: Any = None,
    pad_type: str = "valid",
    strides: Any = None,
    dilations: Any = None,
    groups: int = 1,
) -> Array:
    """Every input value stamps its kernel; then `pad` is cut off."""
    rank = x.ndim - 2
    strides = [1] * rank if strides is None else strides
    dilations = [1] * rank if dilations is None else dilations
    kernel = weight.shape[2:]
    pad = [0] * 2 * rank if pad_type == "valid" else pad
    full = [(x.shape[2 + i] - 1) * strides[i] + (kernel[i] - 1) * dilations[i] + 1 for i in range(rank)]
    wanted = [full[i] - pad[2 * i] - pad[2 * i + 1] for i in range(rank)]
    if output_shape is not None:
        wanted = list(output_shape)[-rank:]
    room = [max(full[i], pad[2 * i] + wanted[i]) for i in range(rank)]
    per_in, per_out = x.shape[1] // groups, weight.shape[1]
    out = np.zeros((x.shape[0], per_out * groups, *room))
    for n, c in product(range(x.shape[0]), range(x.shape[1])):
        first = c // per_in * per_out
        for at in product(*map(range, x.shape[2:])):
            window = tuple(
                slice(at[i] * strides[i], at[i] * strides[i] + (kernel[i] - 1) * dilations[i] + 1, dilations[i])
                for i in range(rank)
            )
            out[(n, slice(first, first + per_out), *window)] += x[(n, c, *at)] * weight[c]
    cut = tuple(slice(pad[2 * i], pad[2 * i] + wanted[i]) for i in range(rank))
    out = out[(slice(None), slice(None), *cut)]
    return out if bias is None else out + bias.reshape(1, -1, *[1] * rank)


def _windows(
    x: Array, kernel_sizes: Any, strides: Any, pad_type: str, pad: Any, ceil_mode: bool, fill: float
) -> tuple[list[int], Any]:
    rank = x.ndim - 2
    strides = [1] * rank if strides is None else strides
    pairs = _pairs(pad_type, pad, x.shape[2:], kernel_sizes, strides, [1] * rank)
    sizes = []
    for i, (before, after) in enumerate(pairs):
        span = x.shape[2 + i] + before + after - kernel_sizes[i]
        count = span // strides[i] + 1
        if ceil_mode and span % strides[i] and count * strides[i] < x.shape[2 + i] + before:
            count += 1
        sizes.append(count)
    padded = np.pad(x, [(0, 0), (0, 0), *[(b, a + 64) for b, a in pairs]], constant_values=fill)

    def window(array: Array, at: Any) -> Array:
        cut = tuple(slice(at[i] * strides[i], at[i] * strides[i] + kernel_sizes[i]) for i in range(rank))
        return array[(slice(None), slice(None), *cut)].reshape(*x.shape[:2], -1)

    return sizes, lambda at: window(padded, at)


def max_pool(
    x: Array, kernel_sizes: Any, strides: Any = None, pad_type: str = "valid", pad: Any = None, ceil_mode: bool = False
) -> Array:
    sizes, window = _windows(x, kernel_sizes, strides, pad_type, pad, ceil_mode, -np.inf)
    out = np.zeros((*x.shape[:2], *sizes))
    for at in product(*map(range, sizes)):
        out[(slice(None), slice(None), *at)] = window(at).max(-1)
    return out


def avg_pool(
    x: Array,
    kernel_sizes: Any,
    strides: Any = None,
    pad_type: str = "valid",
    pad: Any = None,
    exclude_padding_from_average: bool = False,
    ceil_mode: bool = False,
) -> Array:
    sizes, window = _windows(x, kernel_sizes, strides, pad_type, pad, ceil_mode, np.nan)
    out = np.zeros((*x.shape[:2], *sizes))
    count = int(np.prod(kernel_sizes))
    for at in product(*map(range, sizes)):
        values = window(at)
        inside = (~np.isnan(values)).sum(-1) if exclude_padding_from_average else count
        out[(slice(None), slice(None), *at)] = np.nansum(values, -1) / inside
    return out


def l2_pool(x: Array, kernel_sizes: Any, strides: Any = None, pad_type: str = "valid", pad: Any = None) -> Array:
    sizes, window = _windows(x, kernel_sizes, strides, pad_type, pad, False, 0.0)
    out = np.zeros((*x.shape[:2], *sizes))
    for at in product(*map(range, sizes)):
        out[(slice(None), slice(None), *at)] = np.sqrt((window(at) ** 2).sum(-1))
    return out


def batch_norm(x: Array, mean: Array, variance: Array, gamma: Array, beta: Array, epsilon: float) -> Array:
    shape = (1, -1, *[1] * (x.ndim - 2))
    unit = (x - mean.reshape(shape)) / np.sqrt(variance.reshape(shape) + epsilon)
    return unit * gamma.reshape(shape) + beta.reshape(shape)


def instance_norm(x: Array, gamma: Array, beta: Array, epsilon: float) -> Array:
    axes = tuple(range(2, x.ndim))
    mean, variance = x.mean(axes, keepdims=True), x.var(axes, keepdims=True)
    shape = (1, -1, *[1] * (x.ndim - 2))
    return (x - mean) / np.sqrt(variance + epsilon) * gamma.reshape(shape) + beta.reshape(shape)


def local_response_norm(x: Array, size: int, alpha: float, beta: float, k: float) -> Array:
    out = np.empty_like(x)
    for c in range(x.shape[1]):
        low, high = max(0, c - size // 2), min(x.shape[1], c + (size - 1) // 2 + 1)
        total = (x[:, low:high] ** 2).sum(1)
        out[:, c] = x[:, c] / (k + alpha / size * total) ** beta
    return out


def exclusive_sum(x: Array, axis: int, exclusive: bool, reverse: bool) -> Array:
    assert exclusive
    out = np.zeros_like(x)
    size = x.shape[axis]
    for at in range(size):
        before = range(at + 1, size) if reverse else range(at)
        out[(slice(None),) * axis + (at,)] = np.take(x, list(before), axis).sum(axis)
    return out


def interleave(values: Any, axis: int, interleave: bool) -> Array:
    assert interleave
    parts = [np.moveaxis(value, axis, 0) for value in values]
    return np.moveaxis(np.stack([part[i] for i in range(len(parts[0])) for part in parts]), 0, axis)


def reverse_sequence(x: Array, lengths: Array, seq_axis: int, batch_axis: int) -> Array:
    assert (seq_axis, batch_axis) == (1, 0)
    return np.stack([np.concatenate([row[:n][::-1], row[n:]]) for row, n in zip(x, lengths, strict=True)])


def add_along_axis(data: Array, indices: Array, updates: Array, axis: int, mode: str) -> Array:
    assert mode == "add"
    out = data.copy()
    for at in np.ndindex(*indices.shape):
        out[(*at[:axis], indices[at], *at[axis + 1 :])] += updates[at]
    return out


def silu(x: Array) -> Array:
    return x / (1 + np.exp(-x))


def pixel_shuffle(x: Array, upscale_factor: int) -> Array:
    n, channels, height, width = x.shape
    r = upscale_factor
    out = np.empty((n, channels // (r * r), height * r, width * r), x.dtype)
    for c, y, z in product(range(out.shape[1]), range(out.shape[2]), range(out.shape[3])):
        out[:, c, y, z] = x[:, c * r * r + y % r * r + z % r, y // r, z // r]
    return out


def pixel_unshuffle(x: Array, downscale_factor: int) -> Array:
    n, channels, height, width = x.shape
    r = downscale_factor
    out = np.empty((n, channels * r * r, height // r, width // r), x.dtype)
    for c, y, z in product(range(channels), range(height), range(width)):
        out[:, c * r * r + y % r * r + z % r, y // r, z // r] = x[:, c, y, z]
    return out


def depth_to_space(x: Array, block_size: int) -> Array:
    n, channels, height, width = x.shape
    b = block_size
    depth = channels // (b * b)
    out = np.empty((n, depth, height * b, width * b), x.dtype)
    for c, y, z in product(range(depth), range(height * b), range(width * b)):
        out[:, c, y, z] = x[:, (y % b * b + z % b) * depth + c, y // b, z // b]
    return out


def space_to_depth(x: Array, block_size: int) -> Array:
    n, channels, height, width = x.shape
    b = block_size
    out = np.empty((n, channels * b * b, height // b, width // b), x.dtype)
    for c, y, z in product(range(channels), range(height), range(width)):
        out[:, (y % b * b + z % b) * channels + c, y // b, z // b] = x[:, c, y, z]
    return out


def space_to_batch(x: Array, block_shape: Any, paddings: Any) -> Array:
    x = np.pad(x, [(0, 0), (0, 0), tuple(paddings[0]), tuple(paddings[1])])
    n, channels, height, width = x.shape
    b, c = block_shape
    out = np.empty((n * b * c, channels, height // b, width // c), x.dtype)
    for i, y, z in product(range(n), range(height), range(width)):
        out[(y % b * c + z % c) * n + i, :, y // b, z // c] = x[i, :, y, z]
    return out


def batch_to_space(x: Array, block_shape: Any, crops: Any) -> Array:
    total, channels, height, width = x.shape
    b, c = block_shape
    n = total // (b * c)
    out = np.empty((n, channels, height * b, width * c), x.dtype)
    for i, y, z in product(range(n), range(height * b), range(width * c)):
        out[i, :, y, z] = x[(y % b * c + z % c) * n + i, :, y // b, z // c]
    return out[:, :, crops[0][0] : out.shape[2] - crops[0][1], crops[1][0] : out.shape[3] - crops[1][1]]


def crop(x: Array, crop_height: Any, crop_width: Any) -> Array:
    return x[:, :, crop_height[0] : x.shape[2] - crop_height[1], crop_width[0] : x.shape[3] - crop_width[1]]


def sliding_windows(x: Array, axis: int, size: int, stride: int = 1) -> Array:
    starts = range(0, x.shape[axis] - size + 1, stride)
    return np.stack([np.take(x, range(s, s + size), axis) for s in starts], axis)


def one_hot(indices: Array, one_hot_vector_size: int, axis: int, on_value: float, off_value: float) -> Array:
    out = np.full((*indices.shape, one_hot_vector_size), off_value)
    for at in np.ndindex(*indices.shape):
        out[(*at, indices[at])] = on_value
    return np.moveaxis(out, -1, axis)


def gather_nd(x: Array, indices: Array, batch_dims: int = 0) -> Array:
    if batch_dims:
        return np.stack([gather_nd(a, b, batch_dims - 1) for a, b in zip(x, indices, strict=True)])
    return x[tuple(np.moveaxis(indices, -1, 0))]


def scatter(data: Array, indices: Array, updates: Array, axis: int, mode: str) -> Array:
    out = np.moveaxis(data.copy(), axis, 0)
    for i, value in zip(indices, np.moveaxis(updates, axis, 0), strict=True):
        out[i] = {"add": out[i] + value, "mul": out[i] * value, "max": np.maximum(out[i], value), "update": value}[mode]
    return np.moveaxis(out, 0, axis)


def scatter_nd(data: Array, indices: Array, updates: Array, mode: str) -> Array:
    out = data.copy()
    for at in np.ndindex(*indices.shape[:-1]):
        i = tuple(indices[at])
        out[i] = {"add": out[i] + updates[at], "sub": out[i] - updates[at], "update": updates[at]}[mode]
    return out


def reshape_like(x: Array, ref_tensors: Any, begins: Any, ends: Any, end_masks: Any) -> Array:
    sizes: list[int] = []
    for ref, begin, end, mask in zip(ref_tensors, begins, ends, end_masks, strict=True):
        sizes += ref.shape[begin:] if mask else ref.shape[begin:end]
    return x.reshape(sizes)


def _sample(plane: Array, y: float, x: float) -> float:
    """Bilinear, zero outside."""
    total = 0.0
    for i, j in product((int(np.floor(y)), int(np.floor(y)) + 1), (int(np.floor(x)), int(np.floor(x)) + 1)):
        if 0 <= i < plane.shape[0] and 0 <= j < plane.shape[1]:
            total += plane[i, j] * (1 - abs(y - i)) * (1 - abs(x - j))
    return total


def resample(x: Array, coordinates: Array, padding_mode: str, align_corners: bool, sampling_mode: str) -> Array:
    n, channels, height, width = x.shape
    out = np.zeros((n, channels, *coordinates.shape[1:3]))
    for i, c, a, b in product(range(n), range(channels), *map(range, coordinates.shape[1:3])):
        gx, gy = coordinates[i, a, b]
        px, py = (
            ((gx + 1) / 2 * (width - 1), (gy + 1) / 2 * (height - 1))
            if align_corners
            else (((gx + 1) * width - 1) / 2, ((gy + 1) * height - 1) / 2)
        )
        if padding_mode == "border":
            px, py = min(max(px, 0), width - 1), min(max(py, 0), height - 1)
        if sampling_mode == "nearest":
            px, py = np.round(px), np.round(py)
        out[i, c, a, b] = _sample(x[i, c], py, px)
    return out


def resize_bilinear(x: Array, height: int, width: int, mode: str) -> Array:
    def position(i: int, size: int, wanted: int) -> float:
        if mode == "STRICT_ALIGN_CORNERS":
            return i * (size - 1) / (wanted - 1) if wanted > 1 else 0.0
        return min(max((i + 0.5) * size / wanted - 0.5, 0), size - 1)

    out = np.zeros((*x.shape[:2], height, width))
    for n, c, a, b in product(range(x.shape[0]), range(x.shape[1]), range(height), range(width)):
        y, z = position(a, x.shape[2], height), position(b, x.shape[3], width)
        out[n, c, a, b] = _sample(x[n, c], y, z)
    return out


def resize_nearest(x: Array, height: int, width: int) -> Array:
    rows = [int(i * x.shape[2] / height) for i in range(height)]
    columns = [int(i * x.shape[3] / width) for i in range(width)]
    return x[:, :, rows][:, :, :, columns]
