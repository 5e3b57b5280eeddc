"""From the edge dialect to MIL: a table of lowerings for coremltools' torch.export frontend.

| dialect | MIL |
|---|---|
| linear | linear over constexpr_blockwise_shift_scale (iOS 17: constexpr_affine_dequantize); at 16 bits over a const |
| embedding | gather of rows of the same constexpr |
| rms_norm, add_rms_norm | mul, reduce_mean, rsqrt, mul in float32, whatever the compute precision |
| rotary | gather from two small float32 tables, combined by the angle-sum formulas |
| attention | slice_update of the cache (iOS 17: scatter), scaled_dot_product_attention (iOS 17: matmul, softmax) |

Grouped queries are folded into the query length ([kv_heads, group * length]) instead of repeating keys and values:
that costs a reshape, where repeating would copy the whole cache. float32 is kept where 16 bits lose the model: the
squares of a norm overflow, positions and angles lose their digits.

The frontend computes in float32 until its pass add_fp16_cast; what must stay is named with the prefix FLOAT32.
Knows no file: weights are placeholders, norms are real constants (small, and passes may look at them).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from coremltools.converters.mil import Builder as mb
from coremltools.converters.mil.frontend.torch.torch_op_registry import _TORCH_OPS_REGISTRY, register_torch_op

from compiler.slots import Weights
from compiler.targets.coreml.placeholders import Part, cast_without_value, constant

if TYPE_CHECKING:
    from collections.abc import Iterator

FLOAT32 = "float32_"
_MASKED = -1e4  # far below any score, and finite in float16


@dataclass
class Lowering:
    """What the lowering of one function must know; `weights` is read for norms only."""

    weights: Weights
    max_tokens: int
    half: bool
    ios18: bool
    _cache: dict[Any, Any] = field(default_factory=dict)

    def once(self, key: Any, make: Callable[[], Any]) -> Any:
        """A value that several ops share within the function."""
        if key not in self._cache:
            self._cache[key] = make()
        return self._cache[key]


_active: ContextVar[Lowering] = ContextVar("lowering")


@contextmanager
def lowering(settings: Lowering) -> Iterator[None]:
    """Make the dialect's ops known to coremltools and lower them under these settings."""
    for name, function in _TABLE.items():
        if f"edge::{name}" not in _TORCH_OPS_REGISTRY:
            function.__name__ = f"edge_{name}"
            register_torch_op(function, torch_alias=[f"edge::{name}", f"edge.{name}"])
    token = _active.set(settings)
    try:
        yield
    finally:
        _active.reset(token)


def is_half(op: Any) -> bool:
    """Whether an operation may compute in 16 bits (the selector of coremltools' FP16ComputePrecision)."""
    return FLOAT32 not in op.name


def _arguments(context: Any, node: Any) -> list[Any]:
    """A node's arguments: vars for tensors, plain Python values for the rest.

    The frontend would take any string for the name of a var if there is one of that name.
    """
    schema = _SCHEMAS[node.kind.split("::")[-1].split(".")[0]]
    return [context[a] if tensor else a for a, tensor in zip(node.inputs, schema, strict=True)]


def _matrix(
    settings: Lowering, slots: tuple[str, ...], rows: int, columns: int, bits: int, group: int, symmetric: bool
) -> Any:
    """A weight [rows, columns] as the frontend wants it, in float32 for all it knows."""

    def make() -> Any:
        half = settings.half
        if bits == 16:
            weight = constant(Part(slots, "float", half), (rows, columns))
            return cast_without_value(weight, "fp32") if half else weight
        groups = columns // group if group else 1
        data = constant(Part(slots, "int4" if bits == 4 else "int8"), (rows, columns))
        # the iOS 17 op knows one scale per row, as a vector
        shape = (rows, groups) if settings.ios18 else (rows,)
        scale = constant(Part(slots, "scale", half), shape)
        zeros = None if symmetric else constant(Part(slots, "zero4" if bits == 4 else "zero8"), shape)
        if settings.ios18:
            weight = mb.constexpr_blockwise_shift_scale(data=data, scale=scale, offset=zeros)
        else:
            zeros = np.zeros((), np.int8) if zeros is None else zeros
            weight = mb.constexpr_affine_dequantize(quantized_data=data, zero_point=zeros, scale=scale, axis=0)
        weight.op.weight_key = data.op.weight_key
        return cast_without_value(weight, "fp32") if half else weight

    return settings.once(slots, make)


def _linear(context: Any, node: Any) -> None:
    x, slots, rows, columns, *scheme = _arguments(context, node)
    weight = _matrix(_active.get(), tuple(slots), sum(rows), columns, *scheme)
    context.add(mb.linear(x=x, weight=weight, name=node.name))


def _embedding(context: Any, node: Any) -> None:
    ids, slot, rows, columns, *scheme = _arguments(context, node)
    weight = _matrix(_active.get(), (slot,), rows, columns, *scheme)
    context.add(mb.gather(x=weight, indices=ids, axis=0, name=node.name))


def _normalized(x: Any, slot: str, eps: float, name: str) -> Any:
    square = mb.mul(x=x, y=x, name=f"{FLOAT32}{name}_square")
    mean = mb.reduce_mean(x=square, axes=[-1], keep_dims=True, name=f"{FLOAT32}{name}_mean")
    factor = mb.rsqrt(x=mean, epsilon=np.float32(eps), name=f"{FLOAT32}{name}_factor")
    unit = mb.mul(x=x, y=factor, name=f"{FLOAT32}{name}_unit")
    gain = _active.get().weights.rows(slot).astype(np.float32)
    return mb.mul(x=unit, y=gain, name=f"{FLOAT32}{name}")


def _rms_norm(context: Any, node: Any) -> None:
    x, slot, _, eps = _arguments(context, node)
    context.add(_normalized(x, slot, eps, node.name), node.name)


def _add_rms_norm(context: Any, node: Any) -> None:
    x, residual, slot, _, eps = _arguments(context, node)
    total = mb.add(x=x, y=residual, name=f"{node.name}_sum")
    context.add((_normalized(total, slot, eps, node.name), total), node.name)


def rotary_tables(inv_freq: list[float], max_tokens: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Angles (radians, float64) of coarse and fine positions, [steps, head_dim / 2] each.

    position = coarse * len(fine) + fine, so together they are about 2 * sqrt(max_tokens) rows instead of max_tokens.
    """
    fine = 1 << max(1, (max_tokens - 1).bit_length() // 2)
    coarse = -(-max_tokens // fine)
    frequency = np.asarray(inv_freq, np.float32).astype(np.float64)
    return np.arange(coarse)[:, None] * fine * frequency, np.arange(fine)[:, None] * frequency


def _rotary(context: Any, node: Any) -> None:
    positions, inv_freq, factor = _arguments(context, node)
    coarse, fine = rotary_tables(inv_freq, _active.get().max_tokens)
    steps = np.int32(len(fine))
    high = mb.floor_div(x=positions, y=steps)
    low = mb.sub(x=positions, y=mb.mul(x=high, y=steps))

    def looked_up(table: Any, at: Any, name: str) -> Any:
        return mb.gather(x=table.astype(np.float32), indices=at, axis=0, name=f"{FLOAT32}{node.name}_{name}")

    cos_high, sin_high = looked_up(np.cos(coarse) * factor, high, "ch"), looked_up(np.sin(coarse) * factor, high, "sh")
    cos_low, sin_low = looked_up(np.cos(fine), low, "cl"), looked_up(np.sin(fine), low, "sl")

    def product(x: Any, y: Any, name: str) -> Any:
        return mb.mul(x=x, y=y, name=f"{FLOAT32}{node.name}_{name}")

    cos = mb.sub(
        x=product(cos_high, cos_low, "cc"), y=product(sin_high, sin_low, "ss"), name=f"{FLOAT32}{node.name}_cos"
    )
    sin = mb.add(
        x=product(sin_high, cos_low, "sc"), y=product(cos_high, sin_low, "cs"), name=f"{FLOAT32}{node.name}_sin"
    )
    context.add((cos, sin), node.name)


def _query_factor(positions: Any, beta: float, period: int) -> Any:
    """1 + beta * log(1 + floor(position / period)), float32 [1, 1, length, 1]."""
    periods = mb.cast(x=mb.floor_div(x=positions, y=np.int32(period)), dtype="fp32", name=f"{FLOAT32}query_periods")
    log = mb.log(x=mb.add(x=periods, y=1.0, name=f"{FLOAT32}query_next"), name=f"{FLOAT32}query_log")
    gain = mb.mul(x=log, y=np.float32(beta), name=f"{FLOAT32}query_gain")
    factor = mb.add(x=gain, y=1.0, name=f"{FLOAT32}query_factor")
    return mb.expand_dims(x=factor, axes=[1, 3])


def _mask(positions: Any, max_tokens: int, group: int) -> Any:
    """0 where a query sees a cache entry, _MASKED elsewhere: [1, 1, group * length, max_tokens]."""
    entries = np.arange(max_tokens, dtype=np.int32)[None, None, None]
    seen = mb.greater_equal(x=mb.expand_dims(x=positions, axes=[1, 3]), y=entries)
    unseen = mb.sub(x=np.float32(1), y=mb.cast(x=seen, dtype="fp32"))
    mask = mb.mul(x=unseen, y=np.float32(_MASKED))
    # one token needs no copies: its mask is broadcast over the group
    return mask if positions.shape[1] == 1 or group == 1 else mb.tile(x=mask, reps=[1, 1, group, 1])


def _attention(context: Any, node: Any) -> None:
    arguments = _arguments(context, node)
    qkv, cos, sin, positions, key_cache, value_cache, heads, kv_heads, head_dim, scale, beta, period = arguments
    settings = _active.get()
    group, half = heads // kv_heads, head_dim // 2

    by_head = mb.reshape(x=qkv, shape=[1, -1, heads + 2 * kv_heads, head_dim])
    by_head = mb.transpose(x=by_head, perm=[0, 2, 1, 3])
    turning, values = mb.split(x=by_head, split_sizes=[heads + kv_heads, kv_heads], axis=1)
    first, second = mb.split(x=turning, split_sizes=[half, half], axis=-1)
    cos = settings.once("cos", lambda: mb.expand_dims(x=cos, axes=[1]))
    sin = settings.once("sin", lambda: mb.expand_dims(x=sin, axes=[1]))
    turned = mb.concat(
        values=[
            mb.sub(x=mb.mul(x=first, y=cos), y=mb.mul(x=second, y=sin)),
            mb.add(x=mb.mul(x=second, y=cos), y=mb.mul(x=first, y=sin)),
        ],
        axis=-1,
    )
    queries, keys = mb.split(x=turned, split_sizes=[heads, kv_heads], axis=1)
    if beta and settings.max_tokens > period:  # the factor is 1 within the first period
        factor = settings.once("query_factor", lambda: _query_factor(positions, beta, period))
        queries = mb.mul(x=queries, y=factor)

    keys = _written(settings, key_cache, keys, positions, f"{node.name}_key")
    values = _written(settings, value_cache, values, positions, f"{node.name}_value")
    mask = settings.once("mask", lambda: _mask(positions, settings.max_tokens, group))
    folded = mb.reshape(x=queries, shape=[1, kv_heads, -1, head_dim])
    attended = _attend(settings, folded, keys, values, mask, scale, head_dim)
    unfolded = mb.reshape(x=attended, shape=[1, heads, -1, head_dim])
    out = mb.reshape(x=mb.transpose(x=unfolded, perm=[0, 2, 1, 3]), shape=[1, -1, heads * head_dim], name=node.name)
    context.add((out, keys, values), node.name)


def _written(settings: Lowering, cache: Any, update: Any, positions: Any, name: str) -> Any:
    """The cache with `update` at `positions`, which count up by one."""
    if not settings.ios18:
        at = settings.once("flat_positions", lambda: mb.squeeze(x=positions, axes=[0]))
        return mb.scatter(data=cache, indices=at, updates=update, axis=2, mode="update", name=name)

    def bounds() -> tuple[Any, Any]:
        begin = mb.slice_by_size(x=positions, begin=[0, 0], size=[1, 1])
        begin = mb.reshape(x=begin, shape=[1])
        count = mb.slice_by_size(x=mb.shape(x=positions), begin=[1], size=[1])
        end = mb.add(x=begin, y=count)
        zeros = np.zeros(2, np.int32)
        width = np.asarray([cache.shape[1]], np.int32)
        last = np.asarray([cache.shape[3]], np.int32)
        return (
            mb.concat(values=[zeros, begin, zeros[:1]], axis=0),
            mb.concat(values=[np.ones(1, np.int32), width, end, last], axis=0),
        )

    begin, end = settings.once("bounds", bounds)
    return mb.slice_update(x=cache, update=update, begin=begin, end=end, name=name)


def _attend(settings: Lowering, queries: Any, keys: Any, values: Any, mask: Any, scale: float, head_dim: int) -> Any:
    """softmax(queries @ keys.T * scale + mask) @ values."""
    if settings.ios18:
        correction = scale * head_dim**0.5  # the op divides by sqrt(head_dim)
        if abs(correction - 1) > 1e-6:
            queries = _scaled(queries, correction)
        return mb.scaled_dot_product_attention(query=queries, key=keys, value=values, attn_mask=mask)
    scores = mb.matmul(x=_scaled(queries, scale), y=keys, transpose_y=True)
    return mb.matmul(x=mb.softmax(x=mb.add(x=scores, y=mask), axis=-1), y=values)


def _scaled(queries: Any, factor: float) -> Any:
    """queries * factor, in float32: most factors are no float16."""
    return mb.mul(x=queries, y=np.float32(factor), name=f"{FLOAT32}{queries.name}_scaled")


_TABLE: Mapping[str, Callable[[Any, Any], None]] = {
    "linear": _linear,
    "embedding": _embedding,
    "rms_norm": _rms_norm,
    "add_rms_norm": _add_rms_norm,
    "rotary": _rotary,
    "attention": _attention,
}

# which arguments of an op are tensors
_SCHEMAS: Mapping[str, tuple[bool, ...]] = {
    "linear": (True, *[False] * 6),
    "embedding": (True, *[False] * 6),
    "rms_norm": (True, False, False, False),
    "add_rms_norm": (True, True, False, False, False),
    "rotary": (True, False, False),
    "attention": (*[True] * 6, *[False] * 6),
}
