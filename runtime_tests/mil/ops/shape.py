"""Operations that move values: reshaping, joining, splitting, padding, and the making of ranges and fills."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from runtime_tests.mil.ops import Operation, integers, number


def _reshape(x: Tensor, shape: Any) -> Tensor:
    """-1: what is left; 0: the size of that axis in x."""
    return x.reshape([x.shape[i] if size == 0 else size for i, size in enumerate(integers(shape))])


def _reshape_like(x: Tensor, ref_tensors: list[Tensor], begins: Any, ends: Any, end_masks: Any) -> Tensor:
    sizes: list[int] = []
    for ref, begin, end, masked in zip(ref_tensors, integers(begins), integers(ends), integers(end_masks), strict=True):
        sizes += list(ref.shape[begin : None if masked else end])
    return x.reshape(sizes)


def _expand_dims(x: Tensor, axes: Any) -> Tensor:
    rank = x.ndim + len(integers(axes))
    for axis in sorted(a % rank for a in integers(axes)):
        x = x.unsqueeze(axis)
    return x


def _squeeze(x: Tensor, axes: Any = None) -> Tensor:
    if axes is None:
        return x.squeeze()
    for axis in sorted((a % x.ndim for a in integers(axes)), reverse=True):
        x = x.squeeze(axis)
    return x


def _flatten2d(x: Tensor, axis: Any = 1) -> Tensor:
    at = int(axis) % x.ndim if int(axis) < 0 else int(axis)
    return x.reshape(int(torch.Size(x.shape[:at]).numel()), -1)


def _concat(values: list[Tensor], axis: Any, interleave: Any = False) -> Tensor:
    parts = [value.reshape(1) if value.ndim == 0 else value for value in values]
    dim = int(axis) % parts[0].ndim
    if not bool(interleave):
        return torch.cat(parts, dim)
    return torch.stack(parts, dim + 1).flatten(dim, dim + 1)


def _split(x: Tensor, axis: Any, num_splits: Any = None, split_sizes: Any = None) -> list[Tensor]:
    dim = int(axis)
    sizes = integers(split_sizes) if split_sizes is not None else x.shape[dim] // int(num_splits)
    return list(torch.split(x, sizes, dim))


def _tile(x: Tensor, reps: Any) -> Tensor:
    return x.repeat(integers(reps))


def _reverse(x: Tensor, axes: Any = None) -> Tensor:
    return x.flip(list(range(x.ndim)) if axes is None else integers(axes))


def _reverse_sequence(x: Tensor, lengths: Tensor, seq_axis: Any = 0, batch_axis: Any = 0) -> Tensor:
    batch, sequence = int(batch_axis) % x.ndim, int(seq_axis) % x.ndim
    out = x.clone()
    for i, length in enumerate(integers(lengths)):
        row = x.select(batch, i)
        axis = sequence - (sequence > batch)
        out.select(batch, i).narrow(axis, 0, length).copy_(row.narrow(axis, 0, length).flip(axis))
    return out


def _pad(x: Tensor, pad: Any, mode: str = "constant", constant_val: Any = 0.0) -> Tensor:
    """pad: pairs (before, after) of the last axes, first of them first."""
    sizes = integers(pad)
    pairs = [(sizes[i], sizes[i + 1]) for i in range(0, len(sizes), 2)]
    if mode == "constant":
        flat = [size for pair in reversed(pairs) for size in pair]
        return F.pad(x, flat, value=number(constant_val))
    for axis, (before, after) in zip(range(x.ndim - len(pairs), x.ndim), pairs, strict=True):
        if before or after:
            x = x.index_select(axis, _border(x.shape[axis], before, after, mode))
    return x


def _border(size: int, before: int, after: int, mode: str) -> Tensor:
    at = torch.arange(-before, size + after)
    if mode == "replicate":
        return at.clamp(0, size - 1)
    if mode == "reflect":
        at = at.abs()
        return torch.where(at >= size, 2 * (size - 1) - at, at)
    raise ValueError(f"padding mode {mode!r} is unknown")


def _crop(x: Tensor, crop_height: Any, crop_width: Any) -> Tensor:
    (top, bottom), (left, right) = integers(crop_height), integers(crop_width)
    return x[..., top : x.shape[-2] - bottom, left : x.shape[-1] - right]


def _range(start: Tensor, end: Tensor, step: Tensor) -> Tensor:
    return torch.arange(number(start), number(end), number(step), dtype=torch.as_tensor(start).dtype)


def _fill(shape: Any, value: Any = 0.0) -> Tensor:
    return torch.full(integers(shape), number(value), dtype=torch.as_tensor(value).dtype)


def _band(x: Tensor, lower: Any = -1, upper: Any = -1) -> Tensor:
    below, above = int(lower), int(upper)
    x = x.triu(-below) if below >= 0 else x
    return x.tril(above) if above >= 0 else x


def _one_hot(
    indices: Tensor, one_hot_vector_size: Any, axis: Any = -1, on_value: Any = 1, off_value: Any = 0
) -> Tensor:
    on, off = torch.as_tensor(on_value), torch.as_tensor(off_value)
    hot = indices[..., None] == torch.arange(int(one_hot_vector_size))
    return torch.where(hot, on, off).movedim(-1, int(axis))


def _shuffled(x: Tensor, blocks: list[int], grow: bool) -> Tensor:
    """Depth to space and back with TensorFlow's order of channels: the block is the slowest part of the depth."""
    n, channels, height, width = x.shape
    b = blocks[0]
    if grow:
        x = x.reshape(n, b, b, channels // (b * b), height, width).permute(0, 3, 4, 1, 5, 2)
        return x.reshape(n, channels // (b * b), height * b, width * b)
    x = x.reshape(n, channels, height // b, b, width // b, b).permute(0, 3, 5, 1, 2, 4)
    return x.reshape(n, channels * b * b, height // b, width // b)


def _space_to_batch(x: Tensor, block_shape: Any, paddings: Any) -> Tensor:
    blocks, pads = integers(block_shape), integers(paddings)
    x = F.pad(x, [*pads[2:4], *pads[0:2]])
    n, channels, height, width = x.shape
    x = x.reshape(n, channels, height // blocks[0], blocks[0], width // blocks[1], blocks[1])
    return x.permute(3, 5, 0, 1, 2, 4).reshape(-1, channels, height // blocks[0], width // blocks[1])


def _batch_to_space(x: Tensor, block_shape: Any, crops: Any) -> Tensor:
    blocks, cuts = integers(block_shape), integers(crops)
    n, channels, height, width = x.shape
    x = x.reshape(*blocks, n // (blocks[0] * blocks[1]), channels, height, width).permute(2, 3, 4, 0, 5, 1)
    x = x.reshape(-1, channels, height * blocks[0], width * blocks[1])
    return x[..., cuts[0] : x.shape[-2] - cuts[1], cuts[2] : x.shape[-1] - cuts[3]]


def _sliding_windows(x: Tensor, axis: Any, size: Any, stride: Any = 1) -> Tensor:
    dim = int(axis) % x.ndim
    return x.unfold(dim, int(size), int(stride)).movedim(-1, dim + 1)


OPS: dict[str, Operation] = {
    "shape": lambda x: torch.tensor(x.shape, dtype=torch.int32),
    "reshape": _reshape,
    "reshape_like": _reshape_like,
    "transpose": lambda x, perm: x.permute(integers(perm)),
    "expand_dims": _expand_dims,
    "squeeze": _squeeze,
    "flatten2d": _flatten2d,
    "concat": _concat,
    "stack": lambda values, axis: torch.stack(values, int(axis)),
    "split": _split,
    "tile": _tile,
    "reverse": _reverse,
    "reverse_sequence": _reverse_sequence,
    "pad": _pad,
    "crop": _crop,
    "range_1d": _range,
    "fill": _fill,
    "fill_like": lambda ref_tensor, value=0.0: _fill(torch.tensor(ref_tensor.shape), value),
    "band_part": _band,
    "one_hot": _one_hot,
    "pixel_shuffle": lambda x, upscale_factor: F.pixel_shuffle(x, int(upscale_factor)),
    "pixel_unshuffle": lambda x, downscale_factor: F.pixel_unshuffle(x, int(downscale_factor)),
    "depth_to_space": lambda x, block_size: _shuffled(x, integers(block_size), True),
    "space_to_depth": lambda x, block_size: _shuffled(x, integers(block_size), False),
    "space_to_batch": _space_to_batch,
    "batch_to_space": _batch_to_space,
    "sliding_windows": _sliding_windows,
}
