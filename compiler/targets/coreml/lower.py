"""From the edge dialect to MIL: a table of lowerings for coremltools' torch.export frontend.

| dialect | MIL |
|---|---|
| linear | linear over constexpr_blockwise_shift_scale (iOS 17: constexpr_affine_dequantize); at 16 bits over a const |
| embedding | gather of rows of the same constexpr; the constexpr itself where every row is wanted |
| linear, then bias | the bias of the linear |
| scale | mul |
| rms_norm, add_rms_norm | mul, reduce_mean, rsqrt, mul in float32, whatever the compute precision |
| layer_norm | layer_norm in float32 |
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

from artifacts import EdgewrightError
from compiler.slots import Weights
from compiler.targets.coreml.capture import FLOAT32
from compiler.targets.coreml.placeholders import Part, cast_without_value, constant, freeze

if TYPE_CHECKING:
    from collections.abc import Iterator

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
    tensors = _TENSORS.get(node.kind.split("::")[-1].split(".")[0], 1)
    return [context[a] if at < tensors else a for at, a in enumerate(node.inputs)]


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
    if ids.val is not None:
        _whole(context, node, ids, slot, rows, columns, scheme[0], scheme[1:])
        return
    weight = _matrix(_active.get(), (slot,), rows, columns, *scheme)
    context.add(mb.gather(x=weight, indices=ids, axis=0, name=node.name))


def _whole(context: Any, node: Any, ids: Any, slot: str, rows: int, columns: int, bits: int, scheme: list[Any]) -> None:
    """Rows by ids that are known: all of them in order, as a tower's positions are. A gather of a placeholder by them
    would be looked up in its zeros."""
    if not np.array_equal(ids.val.reshape(-1), np.arange(rows)):
        raise EdgewrightError(f"coreml: {node.name}: an embedding of constant ids that are not every row in order")
    shape = (*ids.shape, columns)
    if bits == 16:  # real values, as those of norms: an addition of zeros is deleted
        table = _active.get().weights.rows(slot).astype(np.float32).reshape(shape)
        context.add(mb.const(val=table, name=node.name))
        return
    found = mb.reshape(x=_matrix(_active.get(), (slot,), rows, columns, bits, *scheme), shape=shape, name=node.name)
    freeze(found.op)
    context.add(found)


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


def _layer_norm(context: Any, node: Any) -> None:
    x, slot, _, eps = _arguments(context, node)
    gain = _active.get().weights.rows(slot).astype(np.float32)
    context.add(
        mb.layer_norm(x=x, axes=[-1], gamma=gain, epsilon=np.float32(eps), name=f"{FLOAT32}{node.name}"), node.name
    )


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
    high = mb.floor_div(x=positions, y=steps, name=f"{node.name}_coarse")
    begin = mb.mul(x=high, y=steps, name=f"{node.name}_begin")
    low = mb.sub(x=positions, y=begin, name=f"{node.name}_fine")

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


def _of_heads(settings: Lowering, table: Any, kind: str) -> Any:
    """A table of `rotary` with an axis for heads; layers may turn by other frequencies, so it is shared by its source.

    Its name is not the table's with an ending: that one says float32.
    """
    which = table.name.removeprefix(f"{FLOAT32}rotary").removesuffix(f"_{kind}")
    name = f"{kind}_of_heads{which}"
    return settings.once(name, lambda: mb.expand_dims(x=table, axes=[1], name=name))


def _query_factor(positions: Any, beta: float, period: int) -> Any:
    """1 + beta * log(1 + floor(position / period)), float32 [1, 1, length, 1]."""
    whole = mb.floor_div(x=positions, y=np.int32(period), name="query_period")
    periods = mb.cast(x=whole, dtype="fp32", name=f"{FLOAT32}query_periods")
    log = mb.log(x=mb.add(x=periods, y=1.0, name=f"{FLOAT32}query_next"), name=f"{FLOAT32}query_log")
    gain = mb.mul(x=log, y=np.float32(beta), name=f"{FLOAT32}query_gain")
    factor = mb.add(x=gain, y=1.0, name=f"{FLOAT32}query_factor")
    return mb.expand_dims(x=factor, axes=[1, 3], name="query_factor_column")


def _mask(positions: Any, max_tokens: int, group: int) -> Any:
    """0 where a query sees a cache entry, _MASKED elsewhere: [1, 1, group * length, max_tokens]."""
    entries = np.arange(max_tokens, dtype=np.int32)[None, None, None]
    column = mb.expand_dims(x=positions, axes=[1, 3], name="mask_column")
    seen = mb.cast(x=mb.greater_equal(x=column, y=entries, name="mask_seen"), dtype="fp32", name="mask_weight")
    unseen = mb.sub(x=np.float32(1), y=seen, name="mask_unseen")
    mask = mb.mul(x=unseen, y=np.float32(_MASKED), name="mask")
    # one token needs no copies: its mask is broadcast over the group
    alone = positions.shape[1] == 1 or group == 1
    return mask if alone else mb.tile(x=mask, reps=[1, 1, group, 1], name="mask_of_group")


def _attention(context: Any, node: Any) -> None:
    arguments = _arguments(context, node)
    qkv, cos, sin, positions, key_cache, value_cache, heads, kv_heads, head_dim, scale, beta, period = arguments
    settings = _active.get()
    group, half = heads // kv_heads, head_dim // 2

    def named(part: str) -> str:
        # names of our own: those that the builder makes up are also names of other nodes, which bisection would mix up
        return f"{node.name}_{part}"

    rows = mb.reshape(x=qkv, shape=[1, -1, heads + 2 * kv_heads, head_dim], name=named("rows"))
    by_head = mb.transpose(x=rows, perm=[0, 2, 1, 3], name=named("heads"))
    turning, values = mb.split(x=by_head, split_sizes=[heads + kv_heads, kv_heads], axis=1, name=named("parts"))
    first, second = mb.split(x=turning, split_sizes=[half, half], axis=-1, name=named("halves"))
    cos, sin = _of_heads(settings, cos, "cos"), _of_heads(settings, sin, "sin")
    first_cos, second_sin = mb.mul(x=first, y=cos, name=named("fc")), mb.mul(x=second, y=sin, name=named("ss"))
    second_cos, first_sin = mb.mul(x=second, y=cos, name=named("sc")), mb.mul(x=first, y=sin, name=named("fs"))
    turned = mb.concat(
        values=[
            mb.sub(x=first_cos, y=second_sin, name=named("turned_first")),
            mb.add(x=second_cos, y=first_sin, name=named("turned_second")),
        ],
        axis=-1,
        name=named("turned"),
    )
    queries, keys = mb.split(x=turned, split_sizes=[heads, kv_heads], axis=1, name=named("turned_parts"))
    if beta and settings.max_tokens > period:  # the factor is 1 within the first period
        factor = settings.once("query_factor", lambda: _query_factor(positions, beta, period))
        queries = mb.mul(x=queries, y=factor, name=named("queries"))

    keys = _written(settings, key_cache, keys, positions, named("key"))
    values = _written(settings, value_cache, values, positions, named("value"))
    mask = settings.once("mask", lambda: _mask(positions, settings.max_tokens, group))
    folded = mb.reshape(x=queries, shape=[1, kv_heads, -1, head_dim], name=named("folded"))
    attended = _attend(settings, folded, keys, values, mask, scale, head_dim, named)
    unfolded = mb.reshape(x=attended, shape=[1, heads, -1, head_dim], name=named("unfolded"))
    by_row = mb.transpose(x=unfolded, perm=[0, 2, 1, 3], name=named("by_row"))
    out = mb.reshape(x=by_row, shape=[1, -1, heads * head_dim], name=node.name)
    context.add((out, keys, values), node.name)


def _written(settings: Lowering, cache: Any, update: Any, positions: Any, name: str) -> Any:
    """The cache with `update` at `positions`, which count up by one."""
    if not settings.ios18:
        at = settings.once("flat_positions", lambda: mb.squeeze(x=positions, axes=[0], name="flat_positions"))
        return mb.scatter(data=cache, indices=at, updates=update, axis=2, mode="update", name=name)

    def bounds() -> tuple[Any, Any]:
        corner = mb.slice_by_size(x=positions, begin=[0, 0], size=[1, 1], name="first_position")
        begin = mb.reshape(x=corner, shape=[1], name="write_begin")
        shape = mb.shape(x=positions, name="positions_shape")
        count = mb.slice_by_size(x=shape, begin=[1], size=[1], name="write_count")
        end = mb.add(x=begin, y=count, name="write_end")
        zeros = np.zeros(2, np.int32)
        width = np.asarray([cache.shape[1]], np.int32)
        last = np.asarray([cache.shape[3]], np.int32)
        return (
            mb.concat(values=[zeros, begin, zeros[:1]], axis=0, name="write_from"),
            mb.concat(values=[np.ones(1, np.int32), width, end, last], axis=0, name="write_to"),
        )

    begin, end = settings.once("bounds", bounds)
    return mb.slice_update(x=cache, update=update, begin=begin, end=end, name=name)


def _attend(
    settings: Lowering,
    queries: Any,
    keys: Any,
    values: Any,
    mask: Any,
    scale: float,
    head_dim: int,
    named: Callable[[str], str],
) -> Any:
    """softmax(queries @ keys.T * scale + mask) @ values."""
    # the fused op divides by sqrt(head_dim) itself; factors apply in float32, for most are no float16
    factor = scale * head_dim**0.5 if settings.ios18 else scale
    if abs(factor - 1) > 1e-6:
        queries = mb.mul(x=queries, y=np.float32(factor), name=FLOAT32 + named("scaled"))
    if settings.ios18:
        return mb.scaled_dot_product_attention(
            query=queries, key=keys, value=values, attn_mask=mask, name=named("attended")
        )
    scores = mb.add(x=mb.matmul(x=queries, y=keys, transpose_y=True, name=named("scores")), y=mask, name=named("seen"))
    return mb.matmul(x=mb.softmax(x=scores, axis=-1, name=named("weights")), y=values, name=named("attended"))


def _bias(context: Any, node: Any) -> None:
    x, slots, _, axis = _arguments(context, node)
    weights = _active.get().weights
    vector = np.concatenate([weights.rows(slot) for slot in slots]).astype(np.float32)
    if x.op is not None and x.op.op_type == "linear" and axis % len(x.shape) == len(x.shape) - 1:
        # coremltools' own pass for this would copy the placeholder's zeros into a new weight
        before = 0 if x.op.bias is None else x.op.bias.val
        context.add(mb.linear(x=x.op.x, weight=x.op.weight, bias=vector + before, name=node.name))
        return
    context.add(mb.add(x=x, y=_along(vector, x, axis), name=node.name))


def _along(vector: np.ndarray[Any, Any], x: Any, axis: int) -> np.ndarray[Any, Any]:
    """A vector, shaped to meet an axis of x."""
    return vector.reshape(-1, *[1] * (len(x.shape) - 1 - axis % len(x.shape)))


def _scale(context: Any, node: Any) -> None:
    x, slot, _, axis = _arguments(context, node)
    gain = _active.get().weights.rows(slot).astype(np.float32)
    context.add(mb.mul(x=x, y=_along(gain, x, axis), name=node.name))


def _convolution(context: Any, node: Any) -> None:
    x, slot, shape, bits, group, symmetric, stride, padding, dilation, groups = _arguments(context, node)
    settings = _active.get()
    if bits == 16:  # a placeholder of its own shape: a reshape of one would be folded into zeros
        weight = constant(Part((slot,), "float", settings.half), tuple(shape))
        weight = cast_without_value(weight, "fp32") if settings.half else weight
    else:
        matrix = _matrix(settings, (slot,), shape[0], int(np.prod(shape[1:])), bits, group, symmetric)
        weight = mb.reshape(x=matrix, shape=shape, name=f"{node.name}_kernel")
        freeze(weight.op)
    pad = [amount for amount in padding for _ in range(2)]
    out = mb.conv(
        x=x,
        weight=weight,
        strides=stride,
        pad_type="custom",
        pad=pad,
        dilations=dilation,
        groups=groups,
        name=node.name,
    )
    context.add(out)


_TABLE: Mapping[str, Callable[[Any, Any], None]] = {
    "linear": _linear,
    "embedding": _embedding,
    "rms_norm": _rms_norm,
    "add_rms_norm": _add_rms_norm,
    "layer_norm": _layer_norm,
    "rotary": _rotary,
    "attention": _attention,
    "bias": _bias,
    "scale": _scale,
    "convolution": _convolution,
}

# how many arguments of an op are tensors, which come first; of others one is
_TENSORS: Mapping[str, int] = {"add_rms_norm": 2, "attention": 6}
