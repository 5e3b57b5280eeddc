"""The edge dialect in MLX operations: each entry takes the package's tensors by name, then the op's arguments.

| dialect | MLX |
|---|---|
| linear | quantized_matmul for each slot; matmul at 16 bits |
| embedding | dequantize of the rows looked up |
| rms_norm, add_rms_norm | fast.rms_norm |
| layer_norm | fast.layer_norm |
| bias | addition |
| scale | multiplication |
| convolution | conv_general; below 16 bits behind a dequantize of the whole weight |
| rotary, attention | fast.rope, slice_update into the caches, fast.scaled_dot_product_attention |
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np

from compiler.targets.mlx.aten import conv
from compiler.targets.mlx.sampling import channels_last

Weights = Mapping[str, mx.array]


@dataclass(frozen=True)
class Parts:
    """The results of a fused linear, slot by slot: MLX multiplies them apart, and most users want them apart."""

    arrays: tuple[mx.array, ...]

    def joined(self) -> mx.array:
        return self.arrays[0] if len(self.arrays) == 1 else mx.concatenate(list(self.arrays), axis=-1)


@dataclass(frozen=True)
class Rotation:
    """What `rotary` hands to `attention`: angles stay inside the fused kernel."""

    frequencies: mx.array
    factor: float


def linear(
    weights: Weights,
    x: mx.array,
    slots: list[str],
    rows: list[int],
    columns: int,
    bits: int,
    group: int,
    symmetric: bool,
) -> Parts:
    if isinstance(x, Parts):
        x = x.joined()
    if bits == 16:
        return Parts(tuple(x @ weights[f"{slot}.weight"].T for slot in slots))
    matrices = [_affine(weights, slot) for slot in slots]
    return Parts(tuple(mx.quantized_matmul(x, *m, group_size=_group(m, columns), bits=bits) for m in matrices))


def _affine(weights: Weights, slot: str) -> tuple[mx.array, mx.array, mx.array]:
    return weights[f"{slot}.weight"], weights[f"{slot}.scales"], weights[f"{slot}.biases"]


def _group(affine: tuple[mx.array, mx.array, mx.array], columns: int) -> int:
    """The group that is stored: not the recipe's where MLX has none of its size."""
    return columns // affine[1].shape[-1]


def embedding(
    weights: Weights, ids: mx.array, slot: str, rows: int, columns: int, bits: int, group: int, symmetric: bool
) -> mx.array:
    if bits == 16:
        return weights[f"{slot}.weight"][ids]
    affine = _affine(weights, slot)
    words, scales, biases = (part[ids] for part in affine)
    return mx.dequantize(words, scales, biases, group_size=_group(affine, columns), bits=bits)


def rms_norm(weights: Weights, x: mx.array, slot: str, columns: int, eps: float) -> mx.array:
    return mx.fast.rms_norm(x, weights[f"{slot}.weight"], eps)


def add_rms_norm(
    weights: Weights, x: mx.array | Parts, residual: mx.array, slot: str, columns: int, eps: float
) -> tuple[mx.array, mx.array]:
    total = (x.joined() if isinstance(x, Parts) else x) + residual
    return mx.fast.rms_norm(total, weights[f"{slot}.weight"], eps), total


def layer_norm(weights: Weights, x: mx.array | Parts, slot: str, columns: int, eps: float) -> mx.array:
    whole = x.joined() if isinstance(x, Parts) else x
    return mx.fast.layer_norm(whole, weights[f"{slot}.weight"], None, eps)


def rotary(weights: Weights, positions: mx.array, inv_freq: list[float], factor: float) -> tuple[Rotation, Rotation]:
    rotation = Rotation(mx.array((1 / np.asarray(inv_freq)).astype(np.float32)), factor)
    return rotation, rotation


def attention(
    weights: Weights,
    qkv: mx.array | Parts,
    rotation: Rotation,
    _: Rotation,
    positions: mx.array,
    keys: mx.array,
    values: mx.array,
    heads: int,
    kv_heads: int,
    head_dim: int,
    scale: float,
    query_beta: float,
    query_period: int,
) -> tuple[mx.array, mx.array, mx.array]:
    """Batch 1 and consecutive positions: the caches are written in one piece, from the first of them on."""
    if isinstance(qkv, Parts) and len(qkv.arrays) == 3:
        q, k, v = qkv.arrays
    else:
        whole = qkv.joined() if isinstance(qkv, Parts) else qkv
        q, k, v = mx.split(whole, [heads * head_dim, (heads + kv_heads) * head_dim], axis=-1)
    batch, length, _width = q.shape

    def split(x: mx.array, count: int) -> mx.array:
        return x.reshape(batch, length, count, head_dim).transpose(0, 2, 1, 3)

    def rotate(x: mx.array) -> mx.array:
        turned = mx.fast.rope(
            x, head_dim, traditional=False, base=None, scale=1.0, offset=positions[0, 0], freqs=rotation.frequencies
        )
        return turned if rotation.factor == 1 else turned * rotation.factor

    q, k, v = rotate(split(q, heads)), rotate(split(k, kv_heads)), split(v, kv_heads)
    if query_beta:
        gain = 1 + query_beta * mx.log(1 + mx.floor(positions[0].astype(mx.float32) / query_period))
        q = q * gain[:, None].astype(q.dtype)
    first = positions[0, :1]
    keys = mx.slice_update(keys, k.astype(keys.dtype), first, axes=[2])
    values = mx.slice_update(values, v.astype(values.dtype), first, axes=[2])
    causal = mx.arange(keys.shape[2])[None] <= positions[0][:, None]
    out = mx.fast.scaled_dot_product_attention(
        q, keys.astype(q.dtype), values.astype(q.dtype), scale=scale, mask=causal
    )
    return out.transpose(0, 2, 1, 3).reshape(batch, length, heads * head_dim), keys, values


def bias(weights: Weights, x: mx.array | Parts, slots: list[str], rows: list[int], axis: int) -> mx.array | Parts:
    vectors = [weights[slot] for slot in slots]
    if isinstance(x, Parts) and axis == -1 and [part.shape[-1] for part in x.arrays] == rows:
        return Parts(tuple(part + vector for part, vector in zip(x.arrays, vectors, strict=True)))
    whole = x.joined() if isinstance(x, Parts) else x
    return whole + _along(mx.concatenate(vectors), whole, axis)


def _along(vector: mx.array, x: mx.array, axis: int) -> mx.array:
    """A vector, shaped to meet an axis of x."""
    return vector.reshape(-1, *[1] * (x.ndim - 1 - axis % x.ndim))


def scale(weights: Weights, x: mx.array | Parts, slot: str, columns: int, axis: int) -> mx.array:
    whole = x.joined() if isinstance(x, Parts) else x
    return whole * _along(weights[f"{slot}.weight"], whole, axis)


def convolution(
    weights: Weights,
    x: mx.array,
    slot: str,
    shape: list[int],
    bits: int,
    group: int,
    symmetric: bool,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> mx.array:
    kernel = weights[f"{slot}.weight"]
    if bits != 16:
        codes, scales, biases = affine = _affine(weights, slot)
        if codes.dtype == mx.uint8:
            matrix = (codes.astype(scales.dtype) + biases / scales) * scales  # a whole number, the zero point, first
        else:
            matrix = mx.dequantize(*affine, group_size=_group(affine, math.prod(shape[1:])), bits=bits)
        kernel = channels_last(matrix.reshape(shape))  # as in `conv_layout`, whose copy cannot be traced
    return conv(x.joined() if isinstance(x, Parts) else x, kernel, None, stride, padding, dilation, groups)


EDGE: dict[str, Callable[..., Any]] = {
    "edge.linear.default": linear,
    "edge.embedding.default": embedding,
    "edge.rms_norm.default": rms_norm,
    "edge.add_rms_norm.default": add_rms_norm,
    "edge.layer_norm.default": layer_norm,
    "edge.rotary.default": rotary,
    "edge.attention.default": attention,
    "edge.bias.default": bias,
    "edge.scale.default": scale,
    "edge.convolution.default": convolution,
}
