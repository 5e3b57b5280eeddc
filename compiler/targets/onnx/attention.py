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

from artifacts.formats import onnx as formats
from compiler.quantize.kv import CacheScales
from compiler.targets.onnx.lower import MICROSOFT, TABLE, Lowering, Values, arguments


class Attention:
    """The lowerings of `rotary` and `attention` for one graph.

    mask: an input to be added that sequence lengths come from, int64 [batch, total] with a one for every valid token;
    None takes them from positions. cache: the INT8 scales of every attention in order; None keeps caches in float32.
    """

    def __init__(self, mask: str | None = None, cache: Sequence[CacheScales] | None = None) -> None:
        self._mask = mask
        self._cache = cache
        self._made: dict[Any, tuple[ir.Value, ...]] = {}
        self._positions: dict[ir.Value, int] = {}
        self._count = 0
        self.table = {**TABLE, "rotary": self._rotary, "attention": self._attention}

    def asked(self, ports: Mapping[ir.Value, str]) -> formats.Cache | None:
        """What the graph's attentions ask of a call whose inputs are these, where they do of one of them."""
        for value, most in self._positions.items():
            if value in ports:
                return formats.Cache(positions=ports[value], most=most, mask=self._mask)
        return None

    def _once(self, key: Any, make: Callable[[], tuple[ir.Value, ...]]) -> tuple[ir.Value, ...]:
        """What every attention of the graph shares is made before the first."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def _rotary(self, low: Lowering, node: ir.Node) -> Values:
        """Tables for every position of the cache, of angles in float32 as the dialect has them."""
        readers = {use.node: use.idx for value in node.outputs for use in value.uses()}
        elsewhere = [reader for reader, at in readers.items() if reader.op_type != "attention" or at not in (1, 2)]
        if elsewhere or any(value.is_graph_output() for value in node.outputs):
            raise low.refuse("edge.rotary is lowered for edge.attention only")
        a = arguments(node)
        frequencies, factor = np.asarray(a["inv_freq"], np.float32), np.float32(a["attention_factor"])
        length = max(_cache_length(reader) for reader in readers)

        def tables() -> Values:
            angle = np.arange(length, dtype=np.float32)[:, None] * frequencies
            name = f"rotary_{len(self._made)}"
            found = {
                kind: (turn(angle) * factor).astype(np.float32) for kind, turn in (("cos", np.cos), ("sin", np.sin))
            }
            return tuple(low.constant(f"{name}.{kind}", table) for kind, table in found.items())

        return self._once(("rotary", frequencies.tobytes(), float(factor), length), tables)

    def _attention(self, low: Lowering, node: ir.Node) -> Values:
        qkv, cos, sin, positions, key, value = node.inputs
        assert qkv is not None and cos is not None and sin is not None and positions is not None
        a = arguments(node)
        if a["query_beta"] and _cache_length(node) > a["query_period"]:  # in the first period the factor is one
            qkv = low.op("Mul", [qkv, self._query_factor(low, positions, a)])[0]
        self._positions[positions] = min(_cache_length(node), self._positions.get(positions, 1 << 62))
        lengths = self._once(("lengths", positions), lambda: self._lengths(low, positions))
        inputs: list[ir.Value | None] = [qkv, None, None, key, value, *lengths]
        rotates = _rotates(cos, sin)
        if rotates:
            inputs += [cos, sin]
        quantized: dict[str, Any] = {}
        if self._cache is not None:
            scales = self._cache[self._count]
            names = [f"attention_{self._count}.{kind}_scale" for kind in ("key", "value")]
            found = [low.constant(name, s) for name, s in zip(names, (scales.key, scales.value), strict=True)]
            inputs = [*inputs, *[None] * (12 - len(inputs)), *found]
            kind = "PER_TENSOR" if scales.key.size == 1 else "PER_CHANNEL"
            quantized = {"k_quant_type": kind, "v_quant_type": kind, "kv_cache_bit_width": 8}
        self._count += 1
        return low.op(
            "GroupQueryAttention",
            inputs,
            MICROSOFT,
            outputs=3,
            num_heads=a["heads"],
            kv_num_heads=a["kv_heads"],
            scale=a["scale"],
            do_rotary=int(rotates),
            rotary_interleaved=0,
            **quantized,
        )

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

    def _query_factor(self, low: Lowering, positions: ir.Value, a: dict[str, Any]) -> ir.Value:
        """Llama 4's query scaling as a row [batch, seq, q + k + v widths] of factors, 1 on keys and values.

        Scaling before the rotation is exact: a rotation is linear.
        """
        heads, kv_heads, head_dim, beta, period = (
            a[name] for name in ("heads", "kv_heads", "head_dim", "query_beta", "query_period")
        )

        def factor() -> Values:
            mask = np.zeros((heads + 2 * kv_heads) * head_dim, np.float32)
            mask[: heads * head_dim] = beta
            one = low.constant("one_f32", np.asarray(1, np.float32))
            last = low.constant("axis_last", np.asarray([-1], np.int64))
            at = low.op("Cast", [positions], to=ir.DataType.FLOAT)
            periods = low.op("Div", [*at, low.constant(f"period_{period}", np.asarray(period, np.float32))])
            grown = low.op("Log", low.op("Add", [*low.op("Floor", periods), one]))
            name = f"query_mask_{len(self._made)}"
            gain = low.op("Mul", [*low.op("Unsqueeze", [*grown, last]), low.constant(name, mask)])
            return low.op("Add", [*gain, one])

        return self._once(("factor", positions, heads, kv_heads, head_dim, beta, period), factor)[0]


def _cache_length(node: ir.Node) -> int:
    """Positions that the cache of an edge attention has room for."""
    key = node.inputs[4]
    assert key is not None and key.shape is not None
    return key.shape.numpy()[2]


def _rotates(cos: ir.Value, sin: ir.Value) -> bool:
    """Whether tables turn anything: frequencies of zero are how a layer has no rotary positions."""
    assert cos.const_value is not None and sin.const_value is not None
    return bool((cos.const_value.numpy() != 1).any() or (sin.const_value.numpy() != 0).any())
