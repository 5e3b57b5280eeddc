"""Reading and writing by index: slices, gathers, scatters, top values and sorting."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from runtime_tests.mil.ops import Operation, flags, integers
from runtime_tests.mil.values import LazyTensor


def _selection(
    x: Tensor, begin: Any, end: Any, stride: Any, begin_mask: Any, end_mask: Any, squeeze_mask: Any
) -> tuple[list[range], list[bool]]:
    """The positions read or written along each axis, and which axes go away."""
    rank = x.ndim
    begins, ends = integers(begin), integers(end)
    steps = integers(stride) if stride is not None else [1] * rank
    from_edge, to_edge, squeezed = flags(begin_mask, rank), flags(end_mask, rank), flags(squeeze_mask, rank)
    found = []
    for i, size in enumerate(x.shape):
        if squeezed[i]:
            at = begins[i] + size if begins[i] < 0 else begins[i]
            if not 0 <= at < size:
                raise IndexError(f"index {begins[i]} of an axis of {size}")
            found.append(range(at, at + 1))
            continue
        bounds = slice(None if from_edge[i] else begins[i], None if to_edge[i] else ends[i], steps[i])
        found.append(range(*bounds.indices(size)))
    return found, squeezed


def _slice_by_index(
    x: Tensor,
    begin: Any,
    end: Any,
    stride: Any = None,
    begin_mask: Any = None,
    end_mask: Any = None,
    squeeze_mask: Any = None,
) -> Tensor:
    chosen, squeezed = _selection(x, begin, end, stride, begin_mask, end_mask, squeeze_mask)
    for axis, at in enumerate(chosen):
        if at.step > 0:
            x = x[(slice(None),) * axis + (slice(at.start, at.stop, at.step),)]
        else:
            x = x.index_select(axis, torch.tensor(list(at), dtype=torch.int64))
    for axis in reversed(range(len(squeezed))):
        x = x.squeeze(axis) if squeezed[axis] else x
    return x


def _slice_update(
    x: Tensor,
    update: Tensor,
    begin: Any,
    end: Any,
    stride: Any = None,
    begin_mask: Any = None,
    end_mask: Any = None,
    squeeze_mask: Any = None,
) -> Tensor:
    chosen, squeezed = _selection(x, begin, end, stride, begin_mask, end_mask, squeeze_mask)
    for axis, gone in enumerate(squeezed):
        update = update.unsqueeze(axis) if gone else update
    if [len(at) for at in chosen] != list(update.shape):
        raise ValueError(f"an update of shape {list(update.shape)} for {[len(at) for at in chosen]} positions")
    out = x.clone()
    if all(at.step > 0 for at in chosen):
        out[tuple(slice(at.start, at.stop, at.step) for at in chosen)] = update
    else:
        out[torch.meshgrid(*(torch.tensor(list(at)) for at in chosen), indexing="ij")] = update
    return out


def _slice_by_size(x: Tensor, begin: Any, size: Any) -> Tensor:
    for axis, (start, count) in enumerate(zip(integers(begin), integers(size), strict=True)):
        x = x.narrow(axis, start, x.shape[axis] - start if count == -1 else count)
    return x


def _positive(indices: Tensor, size: int) -> Tensor:
    found = torch.where(indices < 0, indices + size, indices).long()
    if found.numel() and not 0 <= int(found.min()) <= int(found.max()) < size:
        raise IndexError(f"indices {int(found.min())} to {int(found.max())} of an axis of {size}")
    return found


def _gather(
    x: Tensor | LazyTensor, indices: Tensor, axis: Any = 0, batch_dims: Any = 0, validate_indices: Any = False
) -> Tensor:
    if isinstance(x, LazyTensor):
        if int(axis) == 0 and int(batch_dims) == 0:
            return _rows(x, indices)
        x = x.tensor()
    dim, batch = int(axis) % max(x.ndim, 1), int(batch_dims)
    at = _positive(indices, x.shape[dim]).to(x.device)
    if batch == 0:
        return x.index_select(dim, at.reshape(-1)).reshape(x.shape[:dim] + at.shape + x.shape[dim + 1 :])
    flat, flat_at = x.reshape(-1, *x.shape[batch:]), at.reshape(-1, *at.shape[batch:])
    parts = [_gather(row, i, dim - batch) for row, i in zip(flat, flat_at, strict=True)]
    joined = torch.stack(parts)
    return joined.reshape(*x.shape[:batch], *joined.shape[1:])


def _rows(x: LazyTensor, indices: Tensor) -> Tensor:
    """Rows of a constant that is not decoded yet."""
    at = _positive(indices, x.shape[0])
    unique, inverse = at.unique(return_inverse=True)
    picked = torch.cat([x.rows(int(i), int(i) + 1) for i in unique])
    return picked[inverse]


def _gather_along_axis(x: Tensor, indices: Tensor, axis: Any = 0, validate_indices: Any = False) -> Tensor:
    return torch.gather(x, int(axis), _positive(indices, x.shape[int(axis)]))


def _gather_nd(x: Tensor, indices: Tensor, batch_dims: Any = 0, validate_indices: Any = False) -> Tensor:
    if int(batch_dims) == 0:
        return x[tuple(_positive(i, size) for i, size in zip(indices.unbind(-1), x.shape, strict=False))]
    return torch.stack([_gather_nd(row, i, int(batch_dims) - 1) for row, i in zip(x, indices, strict=True)])


_COMBINE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "div": torch.div,
    "max": torch.maximum,
    "min": torch.minimum,
    "update": lambda old, new: new,
}


def _scatter(
    data: Tensor, indices: Tensor, updates: Tensor, axis: Any = 0, mode: str = "add", validate_indices: Any = False
) -> Tensor:
    dim = int(axis) % data.ndim
    at = _positive(indices, data.shape[dim])
    out = data.clone().movedim(dim, 0)
    values = updates.flatten(dim, dim + at.ndim - 1) if at.ndim else updates.unsqueeze(dim)
    for i, value in zip(at.reshape(-1).tolist(), values.movedim(dim, 0), strict=True):
        out[i] = _COMBINE[mode](out[i], value)
    return out.movedim(0, dim)


def _scatter_along_axis(
    data: Tensor, indices: Tensor, updates: Tensor, axis: Any = 0, mode: str = "add", validate_indices: Any = False
) -> Tensor:
    dim = int(axis) % data.ndim
    at = _positive(indices, data.shape[dim])
    out = data.clone()
    for place in range(at.shape[dim]):
        i = at.narrow(dim, place, 1)
        new = _COMBINE[mode](out.gather(dim, i), updates.narrow(dim, place, 1))
        out.scatter_(dim, i, new)
    return out


def _scatter_nd(
    data: Tensor, indices: Tensor, updates: Tensor, mode: str = "add", validate_indices: Any = False
) -> Tensor:
    out = data.clone()
    depth = indices.shape[-1]
    flat = updates.reshape(-1, *data.shape[depth:])
    for i, value in zip(indices.reshape(-1, depth).tolist(), flat, strict=True):
        out[tuple(i)] = _COMBINE[mode](out[tuple(i)], value)
    return out


def _topk(
    x: Tensor,
    k: Any = 1,
    axis: Any = -1,
    ascending: Any = False,
    sort: Any = True,
    return_indices: Any = True,
    output_indices_dtype: str = "int32",
) -> list[Tensor]:
    """Equal values keep their order, as in coremltools' numpy."""
    order = torch.argsort(x, dim=int(axis), descending=not bool(ascending), stable=True)
    at = order.narrow(int(axis), 0, int(k))
    values = torch.gather(x, int(axis), at)
    return [values, at] if bool(return_indices) else [values]


def _argsort(x: Tensor, axis: Any = -1, ascending: Any = False) -> Tensor:
    return torch.argsort(x, dim=int(axis), descending=not bool(ascending), stable=True)


OPS: dict[str, Operation] = {
    "slice_by_index": _slice_by_index,
    "slice_by_size": _slice_by_size,
    "slice_update": _slice_update,
    "gather": _gather,
    "gather_along_axis": _gather_along_axis,
    "gather_nd": _gather_nd,
    "scatter": _scatter,
    "scatter_along_axis": _scatter_along_axis,
    "scatter_nd": _scatter_nd,
    "topk": _topk,
    "argsort": _argsort,
    "non_zero": lambda x: torch.nonzero(x),
}
