"""From a captured decoder to an ONNX graph: a table from dialect and aten ops to ONNX Runtime's fused kernels.

| dialect | kernel |
|---|---|
| linear | com.microsoft::MatMulNBits; FusedMatMul at 16 bits |
| embedding | com.microsoft::GatherBlockQuantized over the bytes of a tied head; Gather at 16 bits |
| rms_norm, add_rms_norm | SimplifiedLayerNormalization, com.microsoft::SkipSimplifiedLayerNormalization |
| rotary, attention | com.microsoft::GroupQueryAttention with do_rotary over cos and sin tables, shared caches |

Operator reference: onnxruntime `docs/ContribOperators.md`. Sequence lengths come from `attention_mask`, as
onnxruntime-genai feeds it. Knows nothing of files beside the graph's own weights.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from compiler.checkpoint import row_blocks
from compiler.codes import Int8
from compiler.graph import Node, capture_decoder
from compiler.quantize.kv import CacheScales
from compiler.quantize.packed import PackedWeights
from compiler.targets.onnx.external import ExternalData

if TYPE_CHECKING:
    from compiler.targets.base import Job

_MS = "com.microsoft"
_OPSETS = {"": 21, _MS: 1}
_IR_VERSION = 10
_INLINE_BYTES = 65536


def needs_positions(job: Job) -> bool:
    """Whether queries are scaled by position anywhere in the cache (Llama 4 scaling is 1 in its first period)."""
    return bool(job.spec.query_beta) and job.max_tokens > job.spec.query_period


class Lowering:
    """Walks one captured decoder and builds its ONNX graph, streaming weights into the external-data file."""

    def __init__(
        self, job: Job, data: ExternalData, progress: Callable[[int], None], cache: list[CacheScales] | None = None
    ) -> None:
        """cache: the INT8 scales of every layer's KV cache; None keeps it in float32."""
        self.job = job
        self.cache = cache
        self.data = data
        self.progress = progress
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, TensorProto] = {}
        self._values: dict[Node, str | tuple[str, ...]] = {}

    def run(self) -> onnx.ModelProto:
        """The finished model; its large weights are in the external-data file."""
        spec, options = self.job.spec, self.job.options
        program = capture_decoder(spec, self.job.schemes, output=options.logits)
        placeholders = [n for n in program.graph.nodes if n.op == "placeholder"]
        names = ["input_ids", "position_ids"]
        for i in range(spec.layers):
            names += [f"past_key_values.{i}.key", f"past_key_values.{i}.value"]
        for node, name in zip(placeholders, names, strict=True):
            self._values[node] = name
        self._sequence_lengths()
        outputs: list[str] = []
        for node in program.graph.nodes:
            if node.op == "call_function":
                self._values[node] = self._lower(node)
            elif node.op == "output":
                outputs = [str(self._values[n]) for n in node.args[0]]
        return self._model(outputs)

    # -- graph building ---------------------------------------------------------------------------------------

    def node(self, op: str, inputs: list[str], outputs: list[str], domain: str = "", **attributes: Any) -> str:
        name = f"{outputs[0]}/{op}"
        self.nodes.append(helper.make_node(op, inputs, outputs, name=name, domain=domain, **attributes))
        return outputs[0]

    def constant(self, name: str, value: NDArray[Any]) -> str:
        if name not in self.initializers:
            self.initializers[name] = onnx.numpy_helper.from_array(value, name)
        return name

    def floats(self, name: str, value: NDArray[np.float32]) -> str:
        """A float32 tensor: in the graph when small, else in the external-data file."""
        if value.nbytes <= _INLINE_BYTES:
            return self.constant(name, value)
        if name not in self.initializers:
            self.initializers[name] = self.data.add(name, TensorProto.FLOAT, list(value.shape), [value])
        return name

    def _model(self, outputs: list[str]) -> onnx.ModelProto:
        spec = self.job.spec
        info = helper.make_tensor_value_info
        ids: list[str | int | None] = ["batch", "sequence"]
        inputs = [
            info("input_ids", TensorProto.INT64, ids),
            info("attention_mask", TensorProto.INT64, ["batch", "total"]),
        ]
        if needs_positions(self.job):
            inputs.append(info("position_ids", TensorProto.INT64, ids))
        length = 1 if self.job.options.logits == "last" else "sequence"
        cached = TensorProto.FLOAT if self.cache is None else TensorProto.INT8
        results = [info(outputs[0], TensorProto.FLOAT, ["batch", length, spec.vocab])]
        for i in range(spec.layers):
            for j, kind in enumerate(("key", "value")):
                shape: list[str | int | None] = ["batch", spec.kv_heads, "past", spec.head_dim]
                inputs.append(info(f"past_key_values.{i}.{kind}", cached, shape))
                shape = ["batch", spec.kv_heads, "total", spec.head_dim]
                results.append(info(outputs[1 + 2 * i + j], cached, shape))
        graph = helper.make_graph(self.nodes, self.job.name, inputs, results, list(self.initializers.values()))
        opsets = [helper.make_opsetid(domain, version) for domain, version in _OPSETS.items()]
        return helper.make_model(graph, opset_imports=opsets, ir_version=_IR_VERSION, producer_name="edgewright")

    def _sequence_lengths(self) -> None:
        """What GroupQueryAttention wants: valid length - 1 of each row, and the total length, both int32."""
        self.node("Cast", ["attention_mask"], ["mask_i32"], to=TensorProto.INT32)
        axis = self.constant("axis_1", np.asarray([1], np.int64))
        self.node("ReduceSum", ["mask_i32", axis], ["valid_lengths"], keepdims=0)
        self.node("Sub", ["valid_lengths", self.constant("one_i32", np.asarray(1, np.int32))], ["seqlens_k"])
        self.node("Shape", ["attention_mask"], ["mask_shape"])
        self.node("Gather", ["mask_shape", self.constant("index_1", np.asarray(1, np.int64))], ["total_i64"])
        self.node("Cast", ["total_i64"], ["total_sequence_length"], to=TensorProto.INT32)

    # -- lowering ---------------------------------------------------------------------------------------------

    def _lower(self, node: Node) -> str | tuple[str, ...]:
        if node.target is operator.getitem:
            source, index = node.args
            return self._values[source][index]
        target = str(node.target)
        try:
            lowering = _TABLE[target]
        except KeyError:
            raise NotImplementedError(f"the ONNX target has no lowering for {target}") from None
        return lowering(self, node)

    def value(self, node: Any) -> str:
        name = self._values[node]
        assert isinstance(name, str)
        return name

    def linear(self, node: Node) -> str:
        x, slots, rows, columns, bits, group, symmetric = node.args
        name = "+".join(slots)
        out = "logits" if _is_output(node) else node.name
        if bits == 16:
            weight = self._half(name, slots, sum(rows), columns)
            return self.node("FusedMatMul", [self.value(x), weight], [out], _MS, transB=1)
        inputs = [self.value(x), *self._quantized(name, slots, rows, columns, bits, group, symmetric)]
        return self.node(
            "MatMulNBits",
            inputs,
            [out],
            _MS,
            K=columns,
            N=sum(rows),
            bits=bits,
            block_size=group,
            accuracy_level=self.job.options.accuracy_level,
        )

    def embedding(self, node: Node) -> str:
        ids, slot, rows, columns, bits, group, symmetric = node.args
        if bits == 16:
            return self.node("Gather", [self._half(slot, [slot], rows, columns), self.value(ids)], [node.name])
        packed, scales, *zeros = self._quantized(slot, [slot], [rows], columns, bits, group, symmetric)
        flat = f"{slot}.rows"
        shape = [rows, columns * bits // 8]
        self.initializers[flat] = self.data.alias(flat, TensorProto.UINT8, shape, self.initializers[packed])
        return self.node(
            "GatherBlockQuantized",
            [flat, self.value(ids), scales, *zeros],
            [node.name],
            _MS,
            bits=bits,
            block_size=group,
            gather_axis=0,
            quantize_axis=1,
        )

    def _half(self, name: str, slots: list[str], rows: int, columns: int) -> str:
        """A matrix at 16 bits as float32: ONNX Runtime's CPU kernels would copy half-precision weights to it."""
        if name not in self.initializers:
            blocks = (block for slot in slots for block in self._blocks(slot, columns, self.job.weights.rows))
            self.initializers[name] = self.data.add(name, TensorProto.FLOAT, [rows, columns], blocks)
        return name

    def _quantized(
        self, name: str, slots: list[str], rows: list[int], columns: int, bits: int, group: int, symmetric: bool
    ) -> list[str]:
        """Initializers of one or more slots, concatenated by rows: packed codes, scales and, if any, zero points."""
        packed, scales, zeros = f"{name}.q{bits}", f"{name}.scales", f"{name}.zeros"
        if packed not in self.initializers:
            weights, total, groups = self.job.weights, sum(rows), columns // group
            blocks = (block for slot in slots for block in self._blocks(slot, columns, weights.packed))
            shape = [total, groups, group * bits // 8]
            self.initializers[packed] = self.data.add(packed, TensorProto.UINT8, shape, blocks)
            blocks = (block for slot in slots for block in self._blocks(slot, columns, weights.scales, count=False))
            self.initializers[scales] = self.data.add(scales, TensorProto.FLOAT, [total, groups], blocks)
            if not symmetric:
                points = [pack_zero_points(_zeros(weights, slot), bits) for slot in slots]
                shape = [total, points[0].shape[1]]
                self.initializers[zeros] = self.data.add(zeros, TensorProto.UINT8, shape, points)
        return [packed, scales] if symmetric else [packed, scales, zeros]

    def _blocks(
        self, slot: str, columns: int, read: Callable[[str, int, int], NDArray[Any]], count: bool = True
    ) -> Iterator[NDArray[Any]]:
        rows = self.job.weights.shape(slot)[0]
        for start, stop in row_blocks(rows, columns):
            yield read(slot, start, stop)
            if count:
                self.progress((stop - start) * columns)

    def _norm_weight(self, slot: str) -> str:
        return self.floats(slot, self.job.weights.rows(slot))

    def rms_norm(self, node: Node) -> str:
        x, slot, _, eps = node.args
        inputs = [self.value(x), self._norm_weight(slot)]
        return self.node("SimplifiedLayerNormalization", inputs, [node.name], axis=-1, epsilon=eps, stash_type=1)

    def add_rms_norm(self, node: Node) -> tuple[str, str]:
        x, residual, slot, _, eps = node.args
        outputs = [f"{node.name}.normed", "", "", f"{node.name}.sum"]
        inputs = [self.value(x), self.value(residual), self._norm_weight(slot)]
        self.node("SkipSimplifiedLayerNormalization", inputs, outputs, _MS, epsilon=eps)
        return outputs[0], outputs[3]

    def rotary(self, node: Node) -> tuple[str, str]:
        """Tables for every position of the cache, in float32 from float64 angles' float32 counterparts."""
        _, inv_freq, factor = node.args
        angle = np.arange(self.job.max_tokens, dtype=np.float32)[:, None] * np.asarray(inv_freq, np.float32)
        self.floats("cos_cache", (np.cos(angle) * np.float32(factor)).astype(np.float32))
        self.floats("sin_cache", (np.sin(angle) * np.float32(factor)).astype(np.float32))
        return "cos_cache", "sin_cache"

    def attention(self, node: Node) -> tuple[str, str, str]:
        qkv, cos, sin, positions, key, value, heads, kv_heads, head_dim, scale, beta, period = node.args
        packed = self.value(qkv)
        if needs_positions(self.job):
            factor = self._query_factor(self.value(positions), heads, kv_heads, head_dim, beta, period)
            packed = self.node("Mul", [packed, factor], [f"{node.name}.scaled"])
        past = [self.value(key), self.value(value)]
        present = [name.replace("past_key_values", "present") for name in past]
        inputs = [packed, "", "", *past, "seqlens_k", "total_sequence_length", self.value(cos), self.value(sin)]
        quantized: dict[str, Any] = {}
        if self.cache is not None:
            scales = self.cache[int(past[0].split(".")[1])]
            names = [self.floats(f"{past[0]}.scale", scales.key), self.floats(f"{past[1]}.scale", scales.value)]
            inputs += ["", "", "", *names]
            kind = "PER_TENSOR" if scales.key.size == 1 else "PER_CHANNEL"
            quantized = {"k_quant_type": kind, "v_quant_type": kind, "kv_cache_bit_width": 8}
        self.node(
            "GroupQueryAttention",
            inputs,
            [node.name, *present],
            _MS,
            num_heads=heads,
            kv_num_heads=kv_heads,
            scale=scale,
            do_rotary=1,
            rotary_interleaved=0,
            **quantized,
        )
        return node.name, present[0], present[1]

    def _query_factor(self, positions: str, heads: int, kv_heads: int, head_dim: int, beta: float, period: int) -> str:
        """Llama 4's query scaling as a row [batch, seq, q + k + v widths] of factors, 1 on keys and values.

        Scaling before the rotation is exact: a rotation is linear. One for the whole graph.
        """
        if "query_factor" in {n.output[0] for n in self.nodes}:
            return "query_factor"
        mask = np.zeros((heads + 2 * kv_heads) * head_dim, np.float32)
        mask[: heads * head_dim] = beta
        one = self.constant("one", np.asarray(1, np.float32))
        axis = self.constant("axis_last", np.asarray([-1], np.int64))
        self.node("Cast", [positions], ["positions_f32"], to=TensorProto.FLOAT)
        self.node("Div", ["positions_f32", self.constant("period", np.asarray(period, np.float32))], ["periods"])
        self.node("Floor", ["periods"], ["whole_periods"])
        self.node("Add", ["whole_periods", one], ["next_period"])
        self.node("Log", ["next_period"], ["log_period"])
        self.node("Unsqueeze", ["log_period", axis], ["log_column"])
        self.node("Mul", ["log_column", self.floats("query_mask", mask)], ["query_gain"])
        return self.node("Add", ["query_gain", one], ["query_factor"])

    def split(self, node: Node) -> tuple[str, ...]:
        x, size, axis = node.args
        count = len(node.meta["val"])
        outputs = [f"{node.name}.{i}" for i in range(count)]
        sizes = self.constant(f"split_{size}x{count}", np.asarray([size] * count, np.int64))
        self.node("Split", [self.value(x), sizes], outputs, axis=axis)
        return tuple(outputs)

    def cat(self, node: Node) -> str:
        parts, axis = node.args
        return self.node("Concat", [self.value(p) for p in parts], [node.name], axis=axis)

    def silu(self, node: Node) -> str:
        return self.node("QuickGelu", [self.value(node.args[0])], [node.name], _MS, alpha=1.0)

    def mul(self, node: Node) -> str:
        return self.node("Mul", [self.value(node.args[0]), self.value(node.args[1])], [node.name])

    def slice(self, node: Node) -> str:
        """A full slice, or the last position."""
        x, axis, start, stop = (*node.args, None, None)[:4]
        if start in (0, None) and (stop is None or stop > 1 << 40):
            return self.value(x)
        if (axis, start) != (1, -1):
            raise NotImplementedError(f"the ONNX target lowers no slice {node.args[1:]}")
        out: str = node.name
        index = self.constant("last", np.asarray([-1], np.int64))
        self.nodes.append(helper.make_node("Gather", [self.value(x), index], [out], name="last_position", axis=1))
        return out


_TABLE: dict[str, Callable[[Lowering, Node], str | tuple[str, ...]]] = {
    "edge.linear.default": Lowering.linear,
    "edge.embedding.default": Lowering.embedding,
    "edge.rms_norm.default": Lowering.rms_norm,
    "edge.add_rms_norm.default": Lowering.add_rms_norm,
    "edge.rotary.default": Lowering.rotary,
    "edge.attention.default": Lowering.attention,
    "aten.split.Tensor": Lowering.split,
    "aten.cat.default": Lowering.cat,
    "aten.silu.default": Lowering.silu,
    "aten.mul.Tensor": Lowering.mul,
    "aten.slice.Tensor": Lowering.slice,
}


def _is_output(node: Node) -> bool:
    return any(user.op == "output" for user in node.users)


def _zeros(weights: PackedWeights, slot: str) -> Int8:
    zeros = weights.zeros(slot)
    assert zeros is not None
    return zeros


def pack_zero_points(zeros: Int8, bits: int) -> NDArray[np.uint8]:
    """Zero points [rows, groups] in MatMulNBits' layout: offset codes packed along the groups, rows byte-padded."""
    offset = zeros.view(np.uint8) + np.uint8(1 << (bits - 1))
    if bits == 8:
        return offset
    if offset.shape[1] % 2:
        offset = np.pad(offset, ((0, 0), (0, 1)))
    return (offset[:, 0::2] & np.uint8(15)) | (offset[:, 1::2] << np.uint8(4))


def write_model(model: onnx.ModelProto, path: Path) -> None:
    """Write the graph; its external data must already lie beside it."""
    path.write_bytes(model.SerializeToString(deterministic=True))
