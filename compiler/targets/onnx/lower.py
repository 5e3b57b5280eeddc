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
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from compiler.graph import Node, capture_decoder
from compiler.quantize.kv import CacheScales
from compiler.targets.onnx.external import ExternalData
from compiler.targets.onnx.geometry import block_size, padded_head
from compiler.targets.onnx.initializers import Initializers

if TYPE_CHECKING:
    from compiler.targets.base import Job

_MS = "com.microsoft"
_OPSETS = {"": 21, _MS: 1}
_IR_VERSION = 10


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
        self.nodes: list[onnx.NodeProto] = []
        self.tensors = Initializers(job.weights, data, progress)
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
        head = padded_head(spec.head_dim)
        results = [info(outputs[0], TensorProto.FLOAT, ["batch", length, spec.vocab])]
        for i in range(spec.layers):
            for j, kind in enumerate(("key", "value")):
                shape: list[str | int | None] = ["batch", spec.kv_heads, "past", head]
                inputs.append(info(f"past_key_values.{i}.{kind}", cached, shape))
                shape = ["batch", spec.kv_heads, "total", head]
                results.append(info(outputs[1 + 2 * i + j], cached, shape))
        graph = helper.make_graph(self.nodes, self.job.name, inputs, results, list(self.tensors.made.values()))
        opsets = [helper.make_opsetid(domain, version) for domain, version in _OPSETS.items()]
        return helper.make_model(graph, opset_imports=opsets, ir_version=_IR_VERSION, producer_name="edgewright")

    def _sequence_lengths(self) -> None:
        """What GroupQueryAttention wants: valid length - 1 of each row, and the total length, both int32."""
        self.node("Cast", ["attention_mask"], ["mask_i32"], to=TensorProto.INT32)
        axis = self.tensors.constant("axis_1", np.asarray([1], np.int64))
        self.node("ReduceSum", ["mask_i32", axis], ["valid_lengths"], keepdims=0)
        one = self.tensors.constant("one_i32", np.asarray(1, np.int32))
        self.node("Sub", ["valid_lengths", one], ["seqlens_k"])
        self.node("Shape", ["attention_mask"], ["mask_shape"])
        index = self.tensors.constant("index_1", np.asarray(1, np.int64))
        self.node("Gather", ["mask_shape", index], ["total_i64"])
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
            weight = self.tensors.half(name, slots, sum(rows), columns)
            return self.node("FusedMatMul", [self.value(x), weight], [out], _MS, transB=1)
        tensors = self.tensors.quantized(name, slots, sum(rows), columns, bits, group, symmetric)
        return self.node(
            "MatMulNBits",
            [self.value(x), *tensors],
            [out],
            _MS,
            K=columns,
            N=sum(rows),
            bits=bits,
            block_size=block_size(columns, group),
            accuracy_level=self.job.options.accuracy_level,
        )

    def embedding(self, node: Node) -> str:
        ids, slot, rows, columns, bits, group, symmetric = node.args
        if bits == 16:
            table = self.tensors.half(slot, [slot], rows, columns)
            return self.node("Gather", [table, self.value(ids)], [node.name])
        packed, scales, *zeros = self.tensors.quantized(slot, [slot], rows, columns, bits, group, symmetric)
        flat = self.tensors.by_rows(f"{slot}.rows", packed, rows, columns * bits // 8)
        return self.node(
            "GatherBlockQuantized",
            [flat, self.value(ids), scales, *zeros],
            [node.name],
            _MS,
            bits=bits,
            block_size=block_size(columns, group),
            gather_axis=0,
            quantize_axis=1,
        )

    def rms_norm(self, node: Node) -> str:
        x, slot, _, eps = node.args
        inputs = [self.value(x), self.tensors.norm(slot)]
        return self.node("SimplifiedLayerNormalization", inputs, [node.name], axis=-1, epsilon=eps, stash_type=1)

    def add_rms_norm(self, node: Node) -> tuple[str, str]:
        x, residual, slot, _, eps = node.args
        outputs = [f"{node.name}.normed", "", "", f"{node.name}.sum"]
        inputs = [self.value(x), self.value(residual), self.tensors.norm(slot)]
        self.node("SkipSimplifiedLayerNormalization", inputs, outputs, _MS, epsilon=eps)
        return outputs[0], outputs[3]

    def rotary(self, node: Node) -> tuple[str, str]:
        """Tables for every position of the cache, in float32 from float64 angles' float32 counterparts."""
        _, inv_freq, factor = node.args
        angle = np.arange(self.job.max_tokens, dtype=np.float32)[:, None] * np.asarray(inv_freq, np.float32)
        filled = ((0, 0), (0, padded_head(2 * len(inv_freq)) // 2 - len(inv_freq)))
        for name, function in (("cos_cache", np.cos), ("sin_cache", np.sin)):
            self.tensors.floats(name, np.pad((function(angle) * np.float32(factor)).astype(np.float32), filled))
        return "cos_cache", "sin_cache"

    def attention(self, node: Node) -> tuple[str, str, str]:
        qkv, cos, sin, positions, key, value, heads, kv_heads, head_dim, scale, beta, period = node.args
        packed = self.value(qkv)
        if needs_positions(self.job):
            factor = self._query_factor(self.value(positions), heads, kv_heads, head_dim, beta, period)
            packed = self.node("Mul", [packed, factor], [f"{node.name}.scaled"])
        size, out = padded_head(head_dim), node.name
        if size != head_dim:
            packed = self._resized(packed, heads + 2 * kv_heads, head_dim, size, f"{node.name}.padded")
            out = f"{node.name}.wide"
        past = [self.value(key), self.value(value)]
        present = [name.replace("past_key_values", "present") for name in past]
        inputs = [packed, "", "", *past, "seqlens_k", "total_sequence_length", self.value(cos), self.value(sin)]
        quantized: dict[str, Any] = {}
        if self.cache is not None:
            scales = self.cache[int(past[0].split(".")[1])]
            kind = "PER_TENSOR" if scales.key.size == 1 else "PER_CHANNEL"
            inputs += ["", "", ""]
            for name, found in zip(past, (scales.key, scales.value), strict=True):
                filled = found if found.size == 1 else _padded_scales(found, kv_heads, size)
                inputs.append(self.tensors.floats(f"{name}.scale", filled))
            quantized = {"k_quant_type": kind, "v_quant_type": kind, "kv_cache_bit_width": 8}
        self.node(
            "GroupQueryAttention",
            inputs,
            [out, *present],
            _MS,
            num_heads=heads,
            kv_num_heads=kv_heads,
            scale=scale,
            do_rotary=1,
            rotary_interleaved=0,
            **quantized,
        )
        if size != head_dim:
            self._resized(out, heads, size, head_dim, node.name)
        return node.name, present[0], present[1]

    def _resized(self, x: str, heads: int, have: int, want: int, name: str) -> str:
        """x [batch, seq, heads * have] with heads of another size: zeros behind each half of a head, or less of them.

        By halves, because the rotation pairs them; zeros change neither scores nor what the values sum to.
        """
        split = self.tensors.constant(f"halves_{heads}x{have}", np.asarray([0, 0, 2 * heads, have // 2], np.int64))
        halves = self.node("Reshape", [x, split], [f"{name}.halves"])
        if want > have:
            widths = self.tensors.constant(f"pad_{have}_{want}", np.asarray([0] * 7 + [(want - have) // 2], np.int64))
            resized = self.node("Pad", [halves, widths], [f"{name}.resized"])
        else:
            bounds = [np.asarray([at], np.int64) for at in (0, want // 2, 3)]
            ends = [self.tensors.constant(f"slice_{have}_{want}_{i}", at) for i, at in enumerate(bounds)]
            resized = self.node("Slice", [halves, *ends], [f"{name}.resized"])
        shape = self.tensors.constant(f"heads_{heads}x{want}", np.asarray([0, 0, heads * want], np.int64))
        return self.node("Reshape", [resized, shape], [name])

    def _query_factor(self, positions: str, heads: int, kv_heads: int, head_dim: int, beta: float, period: int) -> str:
        """Llama 4's query scaling as a row [batch, seq, q + k + v widths] of factors, 1 on keys and values.

        Scaling before the rotation is exact: a rotation is linear. One for the whole graph.
        """
        if "query_factor" in {n.output[0] for n in self.nodes}:
            return "query_factor"
        mask = np.zeros((heads + 2 * kv_heads) * head_dim, np.float32)
        mask[: heads * head_dim] = beta
        one = self.tensors.constant("one", np.asarray(1, np.float32))
        axis = self.tensors.constant("axis_last", np.asarray([-1], np.int64))
        self.node("Cast", [positions], ["positions_f32"], to=TensorProto.FLOAT)
        self.node(
            "Div", ["positions_f32", self.tensors.constant("period", np.asarray(period, np.float32))], ["periods"]
        )
        self.node("Floor", ["periods"], ["whole_periods"])
        self.node("Add", ["whole_periods", one], ["next_period"])
        self.node("Log", ["next_period"], ["log_period"])
        self.node("Unsqueeze", ["log_period", axis], ["log_column"])
        self.node("Mul", ["log_column", self.tensors.floats("query_mask", mask)], ["query_gain"])
        return self.node("Add", ["query_gain", one], ["query_factor"])

    def split(self, node: Node) -> tuple[str, ...]:
        x, size, axis = node.args
        count = len(node.meta["val"])
        outputs = [f"{node.name}.{i}" for i in range(count)]
        sizes = self.tensors.constant(f"split_{size}x{count}", np.asarray([size] * count, np.int64))
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
        index = self.tensors.constant("last", np.asarray([-1], np.int64))
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


def _padded_scales(scale: NDArray[np.float32], kv_heads: int, size: int) -> NDArray[np.float32]:
    """The scales of channels [kv_heads * head size] for heads of a larger size, whose zeros need none: 1."""
    halves = scale.reshape(kv_heads, 2, -1)
    filled = np.pad(halves, ((0, 0), (0, 0), (0, size // 2 - halves.shape[2])), constant_values=1)
    return filled.reshape(-1)


def _is_output(node: Node) -> bool:
    return any(user.op == "output" for user in node.users)


def write_model(model: onnx.ModelProto, path: Path) -> None:
    """Write the graph; its external data must already lie beside it."""
    path.write_bytes(model.SerializeToString(deterministic=True))
