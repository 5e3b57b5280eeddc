"""Compressed weights: the constexpr operations, decoded whole or by rows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from runtime_tests.mil.ops import Operation, integers
from runtime_tests.mil.values import LazyTensor, unpack_bits


def _spread(blocks: Tensor, shape: torch.Size) -> Tensor:
    """Repeat per-block values to the shape of the data."""
    for axis, size in enumerate(shape):
        if blocks.shape[axis] != size:
            blocks = blocks.repeat_interleave(size // blocks.shape[axis], axis)
    return blocks


def _blockwise(data: Tensor, scale: Tensor, offset: Tensor | None = None) -> Tensor:
    """scale * (data - offset), one scale and offset for each block."""
    values = data.float()
    if offset is not None:
        values = values - _spread(offset.float(), data.shape)
    return values * _spread(scale.float(), data.shape)


def _blockwise_lazy(
    data: Tensor | LazyTensor, scale: Tensor | LazyTensor, offset: Tensor | LazyTensor | None = None
) -> Tensor | LazyTensor:
    parts = [data, scale] if offset is None else [data, scale, offset]
    if not isinstance(data, LazyTensor) or any(part.shape[0] != data.shape[0] for part in parts):
        return _blockwise(*(_whole(part) for part in parts))
    return LazyTensor(data.shape, lambda start, stop: _blockwise(*(_part(p, start, stop) for p in parts)))


def _whole(value: Tensor | LazyTensor) -> Tensor:
    return value.tensor() if isinstance(value, LazyTensor) else value


def _part(value: Tensor | LazyTensor, start: int, stop: int) -> Tensor:
    return value.rows(start, stop) if isinstance(value, LazyTensor) else value[start:stop]


def _affine(
    quantized_data: Tensor | LazyTensor, zero_point: Tensor | LazyTensor, scale: Tensor | LazyTensor, axis: Any
) -> Tensor | LazyTensor:
    zero, factor = _whole(zero_point).float(), _whole(scale).float()
    rank = len(quantized_data.shape)
    along = int(axis) % rank

    def decoded(values: Tensor, start: int, stop: int) -> Tensor:
        def placed(per: Tensor) -> Tensor:
            if per.numel() == 1:
                return per.reshape([1] * rank)
            per = per[start:stop] if along == 0 else per
            return per.reshape([-1 if i == along else 1 for i in range(rank)])

        return (values.float() - placed(zero)) * placed(factor)

    if isinstance(quantized_data, LazyTensor):
        source = quantized_data
        return LazyTensor(source.shape, lambda start, stop: decoded(source.rows(start, stop), start, stop))
    return decoded(quantized_data, 0, quantized_data.shape[0])


def _lut(indices: Any, lut: Any, vector_axis: Any = None, shape: Any = None) -> Tensor:
    """Palettes: iOS 16 packs the indices and has one palette; iOS 18 has one for each block, of numbers or vectors."""
    table = _whole(lut)
    if shape is not None:
        sizes = integers(_whole(shape))
        bits = (table.numel() - 1).bit_length()
        count = int(torch.Size(sizes).numel())
        at = torch.from_numpy(unpack_bits(_whole(indices).numpy(), bits, count, False))
        return table[at.long()].reshape(sizes)
    at = _whole(indices).long()
    rank = at.ndim
    group = torch.zeros_like(at)
    for axis in range(rank):
        block = torch.arange(at.shape[axis]) // (at.shape[axis] // table.shape[axis])
        group = group * table.shape[axis] + block.reshape([-1 if i == axis else 1 for i in range(rank)])
    entries = table.reshape(-1, *table.shape[rank:])[group, at]
    if vector_axis is None or entries.shape[-1] == 1:
        return entries[..., 0]
    axis = int(_whole(vector_axis)) % rank
    return entries.movedim(-1, axis + 1).flatten(axis, axis + 1)


def _sparse(nonzero_data: Any, mask: Any, shape: Any = None) -> Tensor:
    values = _whole(nonzero_data)
    places = _whole(mask)
    if shape is not None:  # iOS 16: the mask is packed bits
        sizes = integers(_whole(shape))
        flat = unpack_bits(places.numpy(), 1, int(torch.Size(sizes).numel()), False)
        places = torch.from_numpy(flat).reshape(sizes)
    out = torch.zeros(places.shape, dtype=values.dtype)
    out[places.bool()] = values.reshape(-1)
    return out


OPS: dict[str, Operation] = {
    "constexpr_blockwise_shift_scale": _blockwise_lazy,
    "constexpr_affine_dequantize": _affine,
    "constexpr_cast": lambda source_val, output_dtype: _whole(source_val).float(),
    "constexpr_lut_to_dense": _lut,
    "constexpr_sparse_to_dense": _sparse,
}
