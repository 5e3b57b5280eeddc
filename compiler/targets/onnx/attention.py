"""Attention over a cache as GroupQueryAttention: rotary tables, sequence lengths, scaled queries, INT8 caches.

The kernel takes the tables of cos and sin for every position, counts positions itself from the lengths that it is
given, and writes keys and values behind those of its past, in place where past and present are one buffer.

Operator reference: onnxruntime `docs/ContribOperators.md`, com.microsoft.GroupQueryAttention.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from artifacts.formats import onnx as formats
from compiler.quantize.kv import CacheScales
from compiler.targets.onnx.geometry import padded_head
from compiler.targets.onnx.lower import MICROSOFT, TABLE, Lowering, Values, arguments

Float32 = NDArray[np.float32]


class Attention:
    """The lowerings of `rotary` and `attention` for one graph.

    mask: an input to be added that sequence lengths come from, int64 [batch, total] with a one for every valid token;
    None takes them from positions. cache: the INT8 scales of every attention in order; None keeps caches in float32.
    """

    def __init__(self, mask: str | None = None, cache: Sequence[CacheScales] | None = None) -> None:
        self._mask = mask
        self._cache = cache
        self._shared: dict[tuple[Any, ...], Values] = {}
        self._positions: dict[ir.Value, int] = {}
        self._count = 0
        self.table = {**TABLE, "rotary": self._rotary, "attention": self._attention}

    def asked(self, ports: Mapping[ir.Value, str]) -> formats.Cache | None:
        """What the graph's attentions ask of a call whose inputs are these, where they do of one of them."""
        for value, most in self._positions.items():
            if value in ports:
                return formats.Cache(positions=ports[value], most=most, mask=self._mask)
        return None

    def _once(self, make: Callable[[int], Values], kind: str, *key: Any) -> Values:
        """What attentions share is made before the first of them. make: told how many of its kind there are."""
        if (kind, *key) not in self._shared:
            self._shared[kind, *key] = make(sum(known == kind for known, *_ in self._shared))
        return self._shared[kind, *key]

    def _rotary(self, low: Lowering, node: ir.Node) -> Values:
        """Tables for every position of the cache, of angles in float32 as the dialect has them."""
        readers = {use.node: use.idx for value in node.outputs for use in value.uses()}
        elsewhere = [reader for reader, at in readers.items() if reader.op_type != "attention" or at not in (1, 2)]
        if elsewhere or any(value.is_graph_output() for value in node.outputs):
            raise low.refuse("edge.rotary is lowered for edge.attention only")
        a = arguments(node)
        frequencies, factor = np.asarray(a["inv_freq"], np.float32), np.float32(a["attention_factor"])
        length = max(_cache_length(reader) for reader in readers)

        def tables(count: int) -> Values:
            angle = np.arange(length, dtype=np.float32)[:, None] * frequencies
            behind = (0, 0), (0, padded_head(2 * len(frequencies)) // 2 - len(frequencies))
            cos, sin = (np.pad((turn(angle) * factor).astype(np.float32), behind) for turn in (np.cos, np.sin))
            return low.constant(f"rotary_{count}.cos", cos), low.constant(f"rotary_{count}.sin", sin)

        return self._once(tables, "rotary", frequencies.tobytes(), float(factor), length)

    def _attention(self, low: Lowering, node: ir.Node) -> Values:
        qkv, cos, sin, positions, key, value = node.inputs
        assert qkv is not None and cos is not None and sin is not None and positions is not None
        a = arguments(node)
        heads, kv_heads, head_dim = a["heads"], a["kv_heads"], a["head_dim"]
        length, size = _cache_length(node), padded_head(head_dim)
        self._positions[positions] = min(length, self._positions.get(positions, length))
        if a["query_beta"] and length > a["query_period"]:  # in the first period the factor is one
            qkv = low.op("Mul", [qkv, *self._query_factor(low, positions, a)])[0]
        if size != head_dim:
            qkv = _resized(low, qkv, heads + 2 * kv_heads, head_dim, size)
            for cache in (key, value, *node.outputs[1:]):
                assert cache is not None and cache.shape is not None
                cache.shape = ir.Shape([*cache.shape.numpy()[:3], size])
        lengths = self._once(lambda _: self._lengths(low, positions), "lengths", positions)
        inputs: list[ir.Value | None] = [qkv, None, None, key, value, *lengths]
        rotates = _rotates(cos, sin, head_dim)
        if rotates:
            inputs += [cos, sin]
        quantized: dict[str, Any] = {}
        if self._cache is not None:
            scales = self._cache[self._count]
            kind = "PER_TENSOR" if scales.key.size == 1 else "PER_CHANNEL"
            inputs += [None] * (12 - len(inputs))
            for name, scale in (("key", scales.key), ("value", scales.value)):
                wide = scale if scale.size == 1 else _padded_scales(scale, kv_heads, size)
                inputs.append(low.constant(f"attention_{self._count}.{name}_scale", wide))
            quantized = {"k_quant_type": kind, "v_quant_type": kind, "kv_cache_bit_width": 8}
        self._count += 1
        out, present_key, present_value = low.op(
            "GroupQueryAttention",
            inputs,
            MICROSOFT,
            outputs=3,
            num_heads=heads,
            kv_num_heads=kv_heads,
            scale=a["scale"],
            do_rotary=int(rotates),
            rotary_interleaved=0,
            **quantized,
        )
        if size != head_dim:
            out = _resized(low, out, heads, size, head_dim)
        return out, present_key, present_value

    def _lengths(self, low: Lowering, positions: ir.Value) -> Values:
        """Valid length - 1 of each sequence, int32 [batch], and the longest length, int32 []."""
        axis = low.constant("axis_1", np.asarray([1], np.int64))
        one = low.constant("one_i32", np.asarray(1, np.int32))
        if self._mask is None:
            last = low.op("Cast", low.op("ReduceMax", [positions, axis], keepdims=0), to=ir.DataType.INT32)
            return *last, *low.op("Add", [*low.op("ReduceMax", last, keepdims=0), one])
        mask = ir.val(self._mask, ir.DataType.INT64, ["batch", "total"])
        low.graph.inputs.append(mask)
        valid = low.op("ReduceSum", [*low.op("Cast", [mask], to=ir.DataType.INT32), axis], keepdims=0)
        total = low.op("Gather", [*low.op("Shape", [mask]), low.constant("index_1", np.asarray(1, np.int64))])
        return *low.op("Sub", [*valid, one]), *low.op("Cast", total, to=ir.DataType.INT32)

    def _query_factor(self, low: Lowering, positions: ir.Value, a: Mapping[str, Any]) -> Values:
        """Llama 4's query scaling as a row [batch, seq, q + k + v widths] of factors, 1 on keys and values.

        Scaling before the rotation is exact: a rotation is linear.
        """
        heads, kv_heads, head_dim, beta, period = (
            a[name] for name in ("heads", "kv_heads", "head_dim", "query_beta", "query_period")
        )

        def factor(count: int) -> Values:
            mask = np.zeros((heads + 2 * kv_heads) * head_dim, np.float32)
            mask[: heads * head_dim] = beta
            one = low.constant("one_f32", np.asarray(1, np.float32))
            last = low.constant("axis_last", np.asarray([-1], np.int64))
            at = low.op("Cast", [positions], to=ir.DataType.FLOAT)
            periods = low.op("Div", [*at, low.constant(f"period_{period}", np.asarray(period, np.float32))])
            grown = low.op("Log", low.op("Add", [*low.op("Floor", periods), one]))
            gain = low.op("Mul", [*low.op("Unsqueeze", [*grown, last]), low.constant(f"query_mask_{count}", mask)])
            return low.op("Add", [*gain, one])

        return self._once(factor, "factor", positions, heads, kv_heads, head_dim, beta, period)


def _cache_length(node: ir.Node) -> int:
    """Positions that the cache of an edge attention has room for."""
    key = node.inputs[4]
    assert key is not None and key.shape is not None
    return key.shape.numpy()[2]


def _rotates(cos: ir.Value, sin: ir.Value, head_dim: int) -> bool:
    """Whether tables turn anything: frequencies of zero are how a layer has no rotary positions."""
    assert cos.const_value is not None and sin.const_value is not None
    return bool((cos.const_value.numpy()[:, : head_dim // 2] != 1).any() or (sin.const_value.numpy() != 0).any())


def _resized(low: Lowering, x: ir.Value, heads: int, have: int, want: int) -> ir.Value:
    """x [batch, seq, heads * have] with heads of another size: zeros behind each half of a head, or less of them.

    By halves, because the rotation pairs them; zeros change neither scores nor what the values sum to.
    """

    def sizes(*values: int) -> ir.Value:
        return low.constant("sizes_" + "_".join(map(str, values)), np.asarray(values, np.int64))

    halves = low.op("Reshape", [x, sizes(0, 0, 2 * heads, have // 2)])
    if want > have:
        halves = low.op("Pad", [*halves, sizes(0, 0, 0, 0, 0, 0, 0, (want - have) // 2)])
    else:
        halves = low.op("Slice", [*halves, sizes(0), sizes(want // 2), sizes(3)])
    return low.op("Reshape", [*halves, sizes(0, 0, heads * want)])[0]


def _padded_scales(scale: Float32, kv_heads: int, size: int) -> Float32:
    """The scales of channels [kv_heads * head size] for heads of a larger size, whose zeros need none: 1."""
    halves = scale.reshape(kv_heads, 2, -1)
    filled = np.pad(halves, ((0, 0), (0, 0), (0, size // 2 - halves.shape[2])), constant_values=1)
    return filled.reshape(-1)
