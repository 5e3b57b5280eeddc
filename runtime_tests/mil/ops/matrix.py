"""Matrix products and attention."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from runtime_tests.mil.ops import Operation
from runtime_tests.mil.values import LazyTensor

_BLOCK = 1 << 24


def _linear(x: Tensor, weight: Tensor | LazyTensor, bias: Tensor | LazyTensor | None = None) -> Tensor:
    """x @ weight.T + bias; a weight that is not decoded yet is decoded rows at a time."""
    offset = bias.tensor() if isinstance(bias, LazyTensor) else bias
    if isinstance(weight, LazyTensor):
        rows, columns = weight.shape
        step = max(1, _BLOCK // max(columns, 1))
        parts = [F.linear(x, weight.rows(i, min(i + step, rows)).to(x.dtype)) for i in range(0, rows, step)]
        product = torch.cat(parts, -1)
    else:
        product = _wide(torch.matmul, x, weight.mT)
    return product if offset is None else product + offset.to(product.dtype)


def _wide(function: Any, *tensors: Tensor) -> Tensor:
    """Products of integers in 64 bits, which torch has no kernels for in narrower ones everywhere."""
    if tensors[0].is_floating_point():
        result: Tensor = function(*tensors)
        return result
    whole: Tensor = function(*(t.to(torch.int64) for t in tensors))
    return whole


def _matmul(x: Tensor, y: Tensor, transpose_x: Any = False, transpose_y: Any = False) -> Tensor:
    return _wide(torch.matmul, x.mT if bool(transpose_x) else x, y.mT if bool(transpose_y) else y)


def _attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None) -> Tensor:
    """softmax(q @ k.T / sqrt(size) + mask) @ v; a boolean mask says who takes part, and has values where only floats
    are shapes alone."""
    mask = None if attn_mask is None else attn_mask.to(query.device)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)


def _einsum(values: list[Tensor], equation: str) -> Tensor:
    return torch.einsum(equation, *values)


OPS: dict[str, Operation] = {
    "linear": _linear,
    "matmul": _matmul,
    "scaled_dot_product_attention": _attention,
    "einsum": _einsum,
}
