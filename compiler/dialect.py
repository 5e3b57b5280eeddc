"""The edge dialect: the torch custom ops in which every model graph of ours is written.

A weight enters an op as its slot's name with shape and scheme, plain arguments that `torch.export` keeps, so
a captured graph holds no weight. Each op has a shape rule and a plain-PyTorch reference that looks its slots up
in the table given by `weights(table)`; the reference is the oracle of every parity test. Targets lower these ops
and must not add to them here.

    linear(x, slots, rows, columns, bits, group, symmetric)      y = x @ concat(W of slots).T
    embedding(ids, slot, rows, columns, bits, group, symmetric)  y = W[ids]
    rms_norm(x, slot, columns, eps)                              y = x / rms(x) * w
    add_rms_norm(x, residual, slot, columns, eps)                s = x + residual; (rms_norm(s), s)
    layer_norm(x, slot, columns, eps)                            y = (x - mean(x)) / std(x) * w; `bias` adds the rest
    rotary(positions, inv_freq, attention_factor)                cos, sin [batch, seq, head_dim / 2]
    attention(qkv, cos, sin, positions, key_cache, value_cache, heads, kv_heads, head_dim, scale,
              query_beta, query_period)                          out, key_cache, value_cache
    bias(x, slots, rows, axis)                                   y = x + concat(w of slots), along an axis of x
    scale(x, slot, columns, axis)                                y = x * w, along an axis of x
    convolution(x, slot, shape, bits, group, symmetric,
                stride, padding, dilation, groups)               y = conv(x, W as shape [out, in / groups, …])
    rounded(x, value, scale, zero)                               y = (uint8(x / scale + zero) - zero) * scale

`attention` rotates queries and keys by halves (the Hugging Face layout), multiplies queries by
1 + query_beta * log(1 + floor(position / query_period)) (Llama 4's scaling; 0 switches it off), writes keys and
values into the caches [batch, kv_heads, max_tokens, head_dim] at `positions` and attends causally.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from compiler.convolution import convolved, convolved_sizes
from compiler.matmul import linear
from compiler.slots import Weights
from compiler.tensors import row_blocks

_weights: ContextVar[Weights | None] = ContextVar("weights", default=None)
_dtype: ContextVar[torch.dtype] = ContextVar("dtype", default=torch.float32)
_workers: ContextVar[ThreadPoolExecutor | None] = ContextVar("workers", default=None)
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")
_SCHEME = "int bits, int group, bool symmetric"
_BLOCK_BYTES = 1 << 22  # of a block of weights in float32: each of the workers holds one, and what it is decoded from

_library = torch.library.Library("edge", "DEF")
_library.define(f"linear(Tensor x, str[] slots, int[] rows, int columns, {_SCHEME}) -> Tensor")
_library.define(f"embedding(Tensor ids, str slot, int rows, int columns, {_SCHEME}) -> Tensor")
_library.define("rms_norm(Tensor x, str slot, int columns, float eps) -> Tensor")
_library.define("add_rms_norm(Tensor x, Tensor residual, str slot, int columns, float eps) -> (Tensor, Tensor)")
_library.define("layer_norm(Tensor x, str slot, int columns, float eps) -> Tensor")
_library.define("rotary(Tensor positions, float[] inv_freq, float attention_factor) -> (Tensor, Tensor)")
_library.define(
    "attention(Tensor qkv, Tensor cos, Tensor sin, Tensor positions, Tensor key_cache, Tensor value_cache, "
    "int heads, int kv_heads, int head_dim, float scale, float query_beta, int query_period) "
    "-> (Tensor, Tensor, Tensor)"
)
_library.define("bias(Tensor x, str[] slots, int[] rows, int axis) -> Tensor")
_library.define("scale(Tensor x, str slot, int columns, int axis) -> Tensor")
_library.define(
    f"convolution(Tensor x, str slot, int[] shape, {_SCHEME}, int[] stride, int[] padding, int[] dilation, int groups) "
    "-> Tensor"
)
_library.define("rounded(Tensor x, str value, float scale, int zero) -> Tensor")


@contextmanager
def weights(table: Weights, dtype: torch.dtype = torch.float32) -> Iterator[None]:
    """Run the reference semantics of the dialect on this table of weights, with activations of float32 or float64.

    Keys and values stay in the dtype of their caches, rotary angles in float32, as every runtime has them.
    """
    tokens = _weights.set(table), _dtype.set(dtype)
    try:
        yield
    finally:
        _weights.reset(tokens[0])
        _dtype.reset(tokens[1])


@contextmanager
def workers(count: int) -> Iterator[None]:
    """Let `count` threads share row blocks and attention heads between them, each computing in one thread.

    A product that torch's threads share can differ with their number; so done it cannot, and the blocks' weights are
    decoded at the same time. Nothing else in the process should compute meanwhile.
    """
    threads = torch.get_num_threads()
    with ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        token = _workers.set(pool)
        torch.set_num_threads(1)
        try:
            yield
        finally:
            _workers.reset(token)
            torch.set_num_threads(threads)


def each(work: Callable[[_Item], _Result], items: Iterable[_Item]) -> Iterator[_Result]:
    """Results of `work` in order, by the threads of `workers` where there are some. They see no `weights`."""
    pool = _workers.get()
    return map(work, items) if pool is None else pool.map(work, items)


def _table() -> Weights:
    table = _weights.get()
    if table is None:
        raise RuntimeError("edge ops compute only inside `with dialect.weights(table):`")
    return table


def rows_of(slot: str, start: int = 0, stop: int | None = None) -> Tensor:
    return torch.from_numpy(_table().rows(slot, start, stop))


def product(x: Tensor, rows: Tensor) -> Tensor:
    """x @ rowsᵀ in the dtype of x, float32 or float64. rows: float32 [rows, columns]."""
    return linear(x, rows) if x.dtype == torch.float32 else torch.nn.functional.linear(x, rows.to(x.dtype))


@torch.library.impl(_library, "linear", "CPU")
def _linear(x: Tensor, slots: list[str], rows: list[int], columns: int, *scheme: object) -> Tensor:
    out, table = x.new_empty((*x.shape[:-1], sum(rows))), _table()
    blocks, base = [], 0
    for slot, count in zip(slots, rows, strict=True):
        blocks += [(slot, start, stop, base) for start, stop in row_blocks(count, columns, _BLOCK_BYTES)]
        base += count

    def multiply(block: tuple[str, int, int, int]) -> None:
        slot, start, stop, base = block
        out[..., base + start : base + stop] = product(x, torch.from_numpy(table.rows(slot, start, stop)))

    for _ in each(multiply, blocks):
        pass
    return out


@torch.library.register_fake("edge::linear")
def _(x: Tensor, slots: list[str], rows: list[int], columns: int, *scheme: object) -> Tensor:
    return x.new_empty((*x.shape[:-1], sum(rows)))


@torch.library.impl(_library, "embedding", "CPU")
def _embedding(ids: Tensor, slot: str, rows: int, columns: int, *scheme: object) -> Tensor:
    unique, inverse = ids.unique(return_inverse=True)
    if unique.numel() and not 0 <= int(unique[0]) <= int(unique[-1]) < rows:
        raise IndexError(f"token id outside 0..{rows - 1}")
    picked = torch.stack([rows_of(slot, int(i), int(i) + 1)[0] for i in unique])
    return picked.to(_dtype.get())[inverse]


@torch.library.register_fake("edge::embedding")
def _(ids: Tensor, slot: str, rows: int, columns: int, *scheme: object) -> Tensor:
    return ids.new_empty((*ids.shape, columns), dtype=torch.float32)


def _normalized(x: Tensor, slot: str, eps: float) -> Tensor:
    wide = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)
    return wide * rows_of(slot).to(x.dtype)


@torch.library.impl(_library, "rms_norm", "CPU")
def _rms_norm(x: Tensor, slot: str, columns: int, eps: float) -> Tensor:
    return _normalized(x, slot, eps)


@torch.library.register_fake("edge::rms_norm")
def _(x: Tensor, slot: str, columns: int, eps: float) -> Tensor:
    return torch.empty_like(x)


@torch.library.impl(_library, "add_rms_norm", "CPU")
def _add_rms_norm(x: Tensor, residual: Tensor, slot: str, columns: int, eps: float) -> tuple[Tensor, Tensor]:
    total = x + residual
    return _normalized(total, slot, eps), total


@torch.library.register_fake("edge::add_rms_norm")
def _(x: Tensor, residual: Tensor, slot: str, columns: int, eps: float) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(x)


@torch.library.impl(_library, "layer_norm", "CPU")
def _layer_norm(x: Tensor, slot: str, columns: int, eps: float) -> Tensor:
    return torch.nn.functional.layer_norm(x, (columns,), rows_of(slot).to(x.dtype), None, eps)


@torch.library.register_fake("edge::layer_norm")
def _(x: Tensor, slot: str, columns: int, eps: float) -> Tensor:
    return torch.empty_like(x)


@torch.library.impl(_library, "rotary", "CPU")
def _rotary(positions: Tensor, inv_freq: list[float], attention_factor: float) -> tuple[Tensor, Tensor]:
    angle = positions.to(torch.float32)[..., None] * torch.tensor(inv_freq, dtype=torch.float32)
    return angle.cos() * attention_factor, angle.sin() * attention_factor


@torch.library.register_fake("edge::rotary")
def _(positions: Tensor, inv_freq: list[float], attention_factor: float) -> tuple[Tensor, Tensor]:
    shape = (*positions.shape, len(inv_freq))
    return positions.new_empty(shape, dtype=torch.float32), positions.new_empty(shape, dtype=torch.float32)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate x [batch, seq, heads, head_dim] by halves with cos, sin [batch, seq, head_dim / 2]."""
    first, second = x.chunk(2, -1)
    cos, sin = cos[:, :, None], sin[:, :, None]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


@torch.library.impl(_library, "attention", "CPU")
def _attention(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    positions: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    heads: int,
    kv_heads: int,
    head_dim: int,
    scale: float,
    query_beta: float,
    query_period: int,
) -> tuple[Tensor, Tensor, Tensor]:
    batch, length, _ = qkv.shape
    q, k, v = qkv.unflatten(-1, (heads + 2 * kv_heads, head_dim)).split([heads, kv_heads, kv_heads], 2)
    if query_beta:
        factor = 1 + query_beta * torch.log(1 + torch.floor(positions.to(qkv.dtype) / query_period))
        q = q * factor[:, :, None, None]
    q, k = rotate(q, cos, sin), rotate(k, cos, sin)
    key_cache, value_cache = key_cache.clone(), value_cache.clone()
    at = positions[:, None, :, None].expand(batch, kv_heads, length, head_dim).long()
    key_cache.scatter_(2, at, k.transpose(1, 2).to(key_cache.dtype))
    value_cache.scatter_(2, at, v.transpose(1, 2).to(value_cache.dtype))
    used = int(positions.max()) + 1
    causal = torch.arange(used)[None, None, None, :] <= positions[:, None, :, None]
    keys, values = key_cache[:, :, :used].to(q.dtype), value_cache[:, :, :used].to(q.dtype)
    out = torch.empty_like(q.transpose(1, 2))
    shared = heads // kv_heads

    def attend(at: tuple[int, int]) -> None:
        b, h = at
        group = slice(h * shared, (h + 1) * shared)
        out[b : b + 1, group] = torch.nn.functional.scaled_dot_product_attention(
            q[b : b + 1, :, group].transpose(1, 2),
            keys[b : b + 1, h : h + 1],
            values[b : b + 1, h : h + 1],
            attn_mask=causal[b : b + 1],
            scale=scale,
            enable_gqa=True,
        )

    # by sequence and key-value head: scores are the largest tensor of a long prefill
    for _ in each(attend, [(b, h) for b in range(batch) for h in range(kv_heads)]):
        pass
    return out.transpose(1, 2).reshape(batch, length, heads * head_dim), key_cache, value_cache


@torch.library.register_fake("edge::attention")
def _(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    positions: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    heads: int,
    kv_heads: int,
    head_dim: int,
    scale: float,
    query_beta: float,
    query_period: int,
) -> tuple[Tensor, Tensor, Tensor]:
    out = qkv.new_empty((*qkv.shape[:-1], heads * head_dim))
    return out, torch.empty_like(key_cache), torch.empty_like(value_cache)


def along(vector: Tensor, x: Tensor, axis: int) -> Tensor:
    """A vector in the dtype of x, shaped to meet an axis of it."""
    return vector.to(x.dtype).reshape(-1, *[1] * (x.ndim - 1 - axis % x.ndim))


@torch.library.impl(_library, "bias", "CPU")
def _bias(x: Tensor, slots: list[str], rows: list[int], axis: int) -> Tensor:
    return x + along(torch.cat([rows_of(slot) for slot in slots]), x, axis)


@torch.library.register_fake("edge::bias")
def _(x: Tensor, slots: list[str], rows: list[int], axis: int) -> Tensor:
    return torch.empty_like(x)


@torch.library.impl(_library, "scale", "CPU")
def _scale(x: Tensor, slot: str, columns: int, axis: int) -> Tensor:
    return x * along(rows_of(slot), x, axis)


@torch.library.register_fake("edge::scale")
def _(x: Tensor, slot: str, columns: int, axis: int) -> Tensor:
    return torch.empty_like(x)


@torch.library.impl(_library, "convolution", "CPU")
def _convolution(
    x: Tensor,
    slot: str,
    shape: list[int],
    bits: int,
    group: int,
    symmetric: bool,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> Tensor:
    sizes = convolved_sizes(x, shape, stride, padding, dilation)
    out = None
    for outputs, places, made in convolved(x, partial(rows_of, slot), shape, stride, padding, dilation, groups):
        if made.shape[1:3] == (shape[0], sizes[0]):
            return made
        out = x.new_empty((x.shape[0], shape[0], *sizes)) if out is None else out
        out[:, outputs, places] = made
    assert out is not None
    return out


@torch.library.register_fake("edge::convolution")
def _(
    x: Tensor,
    slot: str,
    shape: list[int],
    bits: int,
    group: int,
    symmetric: bool,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> Tensor:
    return x.new_empty((x.shape[0], shape[0], *convolved_sizes(x, shape, stride, padding, dilation)))


def codes_of(x: Tensor, scale: float, zero: int) -> Tensor:
    """The nearest codes of values, 0 … 255, in the dtype of x; halves go to the even one."""
    return (x / scale).round_().add_(zero).clamp_(0, 255)


@torch.library.impl(_library, "rounded", "CPU")
def _rounded(x: Tensor, value: str, scale: float, zero: int) -> Tensor:
    if x.dtype == torch.float32:  # in one pass, which multiplies by 1 / scale
        return torch.fake_quantize_per_tensor_affine(x, scale, zero, 0, 255)
    return codes_of(x, scale, zero).sub_(zero).mul_(scale)


@torch.library.register_fake("edge::rounded")
def _(x: Tensor, value: str, scale: float, zero: int) -> Tensor:
    return torch.empty_like(x)


edge = torch.ops.edge
