"""From a captured decoder to a Relax module: upstream's importer with our converter table for the dialect.

| dialect | kernels |
|---|---|
| linear | `dot.quantize` + `dot.matmul` (int8 activations), or `exact.arrange` + `exact.matmul` |
| embedding | `pointwise.embedding`, over the same tensors as a tied head |
| rms_norm, add_rms_norm | `pointwise.rms_norm` |
| rotary | `pointwise.look_up` in tables of the parameter file |
| attention | `attention.append`, in place, then `attention.attend` |
| silu of one half times the other | `pointwise.gated_silu` |

Other ops go through upstream's converters with `compat.py`'s corrections. A function takes (ids int64 [1, tokens],
positions int64 [1, tokens], state), where `state` is a tuple of the caches and then of the parameters, in file order.
Knows no triples and no files.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import tvm
from tvm import relax
from tvm.relax.frontend.torch import from_exported_program

from compiler.graph import Node
from compiler.targets.base import Job
from compiler.targets.tvm import compat, schedules
from compiler.targets.tvm.captured import NAMED, Graph, PlainNode, last_slice, program, whole_slice
from compiler.targets.tvm.geometry import heads_of
from compiler.targets.tvm.isa import Isa
from compiler.targets.tvm.kernels import attention, dot, exact, pointwise
from compiler.targets.tvm.params import Tensor
from compiler.targets.tvm.weights import FACTORS, ROTARY, Matrix

Expr = Any
Precision = Literal["int8", "exact"]


@dataclass(frozen=True)
class Entry:
    """A function of the library."""

    name: str
    precision: Precision
    graph: Graph


ENTRIES = (
    *(Entry(name, "int8", graph) for name, graph in NAMED.items()),
    *(Entry(f"{name}_exact", "exact", graph) for name, graph in NAMED.items()),
)


class Kernels:
    """The PrimFuncs of one library, each made once however many functions call it."""

    def __init__(self) -> None:
        self._builder = relax.BlockBuilder()
        self._made: dict[str, Expr] = {}
        self.functions: dict[Expr, Expr] = {}

    def get(self, name: str, make: Callable[[str], Expr]) -> Expr:
        if name not in self._made:
            function = make(name)
            variable = self._builder.add_func(function, name)
            self._made[name] = variable
            self.functions[variable] = function
        return self._made[name]


class Lowering:
    """One function of the library: the converters, closed over its kernels, parameters and precision."""

    def __init__(self, job: Job, isa: Isa, kernels: Kernels, parameters: list[Tensor], entry: Entry) -> None:
        self.job, self.isa, self.kernels, self.entry = job, isa, kernels, entry
        self.tokens = entry.graph.tokens
        self.variables = {
            t.name: relax.Var(f"p{i}", relax.TensorType(t.shape, t.dtype)) for i, t in enumerate(parameters)
        }
        self.heads = heads_of(job)

    def run(self, nodes: list[PlainNode]) -> Expr:
        """The Relax function (ids, positions, caches and parameters) -> logits float32 [1, tokens or 1, vocab]."""
        count = self.tokens if self.tokens is not None else tvm.tirx.Var("tokens", "int64")
        caches = [self.heads.key_shape, self.heads.value_shape] * self.job.spec.layers
        found = program(nodes, [(1, count), (1, count), *caches])
        module = from_exported_program(
            found, custom_convert_map=self._table(), run_ep_decomposition=False, unwrap_unit_return_tuple=True
        )
        main = module["main"]
        attributes: dict[str, Any] = {"num_input": 2, "global_symbol": self.entry.name}
        if self.tokens is None:
            attributes["tir_var_upper_bound"] = {"tokens": self.job.options.chunk}
        attrs = tvm.ir.make_node("ir.DictAttrs", **attributes)
        return relax.Function([*main.params, *self.variables.values()], main.body, main.ret_ty, attrs=attrs)

    def _table(self) -> dict[str, Callable[[Node, Any], Expr]]:
        return {
            **compat.CONVERTERS,
            "linear.default": self.linear,
            "embedding.default": self.embedding,
            "rms_norm.default": self.rms_norm,
            "add_rms_norm.default": self.add_rms_norm,
            "rotary.default": self.rotary,
            "attention.default": self.attention,
            "mul.Tensor": self.mul,
            "slice.Tensor": self.slice,
        }

    # -- emitting ---------------------------------------------------------------------------------------------

    @property
    def _suffix(self) -> str:
        return "gemv" if self.tokens == 1 else "gemm"

    def _call(self, importer: Any, kernel: Expr, arguments: list[Expr], *outs: tuple[tuple[Expr, ...], str]) -> Expr:
        types = [relax.TensorType(shape, dtype) for shape, dtype in outs]
        call = relax.call_tir(kernel, arguments, types[0] if len(types) == 1 else types)
        return importer.block_builder.emit(call)

    def _several(
        self, importer: Any, kernel: Expr, arguments: list[Expr], *outs: tuple[tuple[Expr, ...], str]
    ) -> list[Expr]:
        found = self._call(importer, kernel, arguments, *outs)
        if len(outs) == 1:
            return [found]
        return [importer.block_builder.emit(relax.TupleGetItem(found, i)) for i in range(len(outs))]

    # -- the dialect ------------------------------------------------------------------------------------------

    def linear(self, node: Node, importer: Any) -> Expr:
        x, slots, rows, columns, bits, group, _ = importer.retrieve_args(node)
        matrix = Matrix("+".join(slots), sum(rows), columns, bits, group or columns)
        weights = [self.variables[name] for name in matrix.tensors]
        kind = str(weights[-1].ty.dtype).replace("uint16", "bfloat16")
        count, tokens = x.ty.shape[1], self.tokens
        out = ((1, count, matrix.rows), "float32")
        paired = self.isa.matrix and tokens is None and matrix.rows % 2 == 0
        layout = None
        if self.entry.precision == "int8" and bits != 16 and self.isa.dot:
            layout = dot.layout(columns, bits, matrix.group, self.isa, paired)
        if layout is None:
            return self._exact(importer, matrix, weights, kind, x, out)

        rows_out = (count + 1) // 2 if paired else count
        width = 2 if paired else 1
        outs: list[tuple[tuple[Expr, ...], str]] = [
            ((rows_out, columns * width), "int8"),
            ((rows_out, columns // matrix.group * width), "float32"),
        ]
        if layout.starts:
            outs.append(((rows_out, layout.units, layout.starts * width), "int32"))
        name = f"quantize_{columns}_{bits}_{matrix.group}_{'pairs' if paired else self._suffix}"
        quantize = self.kernels.get(name, lambda n: dot.quantize(n, tokens, layout))
        parts = self._several(importer, quantize, [x], *outs)

        def make(name: str) -> Expr:
            table = schedules.GEMV if tokens == 1 else schedules.GEMM
            tile = schedules.fitting(table[self.isa.name], matrix.rows)
            if paired:
                return dot.matmul_pairs(name, matrix.rows, layout, tile, kind)
            return dot.matmul(name, tokens, matrix.rows, layout, self.isa, tile, kind)

        name = f"dot_{matrix.rows}_{columns}_{bits}_{matrix.group}_{self._suffix}"
        return self._call(importer, self.kernels.get(name, make), [*weights, *parts], out)

    def _exact(self, importer: Any, matrix: Matrix, weights: list[Expr], kind: str, x: Expr, out: Any) -> Expr:
        tokens, columns, bits = self.tokens, matrix.columns, matrix.bits
        lanes = exact.float_lanes(columns, bits, matrix.group, self.isa.float_lanes)
        if bits == 4:
            arrange = self.kernels.get(
                f"arrange_{columns}_{lanes}_{self._suffix}", lambda n: exact.arrange(n, tokens, columns, lanes)
            )
            x = self._call(importer, arrange, [x], ((x.ty.shape[1], columns), "float32"))

        def make(name: str) -> Expr:
            tile = schedules.EXACT_GEMV if tokens == 1 else schedules.EXACT_GEMM[self.isa.name]
            tile = schedules.fitting(tile, matrix.rows)
            return exact.matmul(name, tokens, matrix.rows, columns, bits, matrix.group, lanes, tile, kind)

        name = f"exact_{matrix.rows}_{columns}_{bits}_{matrix.group}_{kind}_{self._suffix}"
        return self._call(importer, self.kernels.get(name, make), [*weights, x], out)

    def embedding(self, node: Node, importer: Any) -> Expr:
        ids, slot, rows, columns, bits, group, _ = importer.retrieve_args(node)
        matrix = Matrix(slot, rows, columns, bits, group or columns)
        weights = [self.variables[name] for name in matrix.tensors]
        kind = str(weights[-1].ty.dtype).replace("uint16", "bfloat16")
        kernel = self.kernels.get(
            f"embedding_{self._suffix}",
            lambda n: pointwise.embedding(n, self.tokens, rows, columns, bits, matrix.group, kind),
        )
        return self._call(importer, kernel, [ids, *weights], ((1, ids.ty.shape[1], columns), "float32"))

    def rms_norm(self, node: Node, importer: Any) -> Expr:
        x, slot, columns, eps = importer.retrieve_args(node)
        return self._norm(importer, [x], slot, columns, eps)[0]

    def add_rms_norm(self, node: Node, importer: Any) -> list[Expr]:
        x, residual, slot, columns, eps = importer.retrieve_args(node)
        return self._norm(importer, [x, residual], slot, columns, eps)

    def _norm(self, importer: Any, inputs: list[Expr], slot: str, columns: int, eps: float) -> list[Expr]:
        add = len(inputs) == 2
        count = inputs[0].ty.shape[1]
        # the last norm may see one token in a function of many
        tokens = 1 if isinstance(count, tvm.tirx.IntImm) else None
        kernel = self.kernels.get(
            f"{'add_' if add else ''}norm_{columns}_{'gemv' if tokens else 'gemm'}",
            lambda n: pointwise.rms_norm(n, tokens, columns, eps, add),
        )
        out = ((1, count, columns), "float32")
        return self._several(importer, kernel, [*inputs, self.variables[slot]], *([out] * len(inputs)))

    def rotary(self, node: Node, importer: Any) -> list[Expr]:
        positions = importer.retrieve_args(node)[0]
        half = self.job.spec.head_dim // 2
        kernel = self.kernels.get(
            f"rotary_{self._suffix}",
            lambda n: pointwise.look_up(n, self.tokens, self.heads.max_tokens, half),
        )
        out = ((1, positions.ty.shape[1], half), "float32")
        return self._several(importer, kernel, [positions, *(self.variables[t] for t in ROTARY)], out, out)

    def attention(self, node: Node, importer: Any) -> tuple[Expr, Expr, Expr]:
        qkv, cos, sin, positions, keys, values = importer.retrieve_args(node)[:6]
        tokens, at, builder = self.tokens, self.heads, importer.block_builder
        factors = [self.variables[FACTORS]] if FACTORS in self.variables else []
        append = self.kernels.get(f"append_{self._suffix}", lambda n: attention.append(n, tokens, at))
        written = builder.emit(
            relax.op.call_tir_inplace(
                append, relax.Tuple([qkv, cos, sin, positions, keys, values]), [4, 5], [keys.ty, values.ty]
            )
        )
        keys, values = (builder.emit(relax.TupleGetItem(written, i)) for i in range(2))
        attend = self.kernels.get(
            f"attend_{self._suffix}", lambda n: attention.attend(n, tokens, at, bool(factors), self.isa)
        )
        out = ((1, qkv.ty.shape[1], at.heads * at.head_dim), "float32")
        return self._call(importer, attend, [qkv, cos, sin, positions, *factors, keys, values], out), keys, values

    # -- what the dialect leaves to aten ------------------------------------------------------------------------

    def mul(self, node: Node, importer: Any) -> Expr:
        """silu(gate) * up over one fused projection in one kernel; any other product as it is."""
        split = _gated(node)
        if split is None or 2 * split.args[1] != int(importer.env[split.args[0]].ty.shape[2]):
            return importer.block_builder.emit(relax.op.multiply(*importer.retrieve_args(node)))
        x, columns = importer.env[split.args[0]], split.args[1]
        count = x.ty.shape[1]
        kernel = self.kernels.get(
            f"gated_silu_{columns}_{self._suffix}",
            lambda n: pointwise.gated_silu(n, self.tokens, columns),
        )
        return self._call(importer, kernel, [x], ((1, count, columns), "float32"))

    def slice(self, node: Node, importer: Any) -> Expr:
        """A full slice, or the last token."""
        x = importer.retrieve_args(node)[0]
        if whole_slice(node.args):
            return x
        assert last_slice(node.args), "refused when captured"
        if self.tokens == 1:
            return x
        columns = int(x.ty.shape[2])
        kernel = self.kernels.get("last_token", lambda n: pointwise.last_token(n, None, columns))
        return self._call(importer, kernel, [x], ((1, 1, columns), "float32"))


def _gated(node: Node) -> Node | None:
    """The split of a fused gate-and-up projection whose two parts `node` multiplies, or None."""
    silu, up = node.args
    if str(silu.target) != "aten.silu.default":
        return None
    parts = (silu.args[0], up)
    if any(part.target is not operator.getitem for part in parts):
        return None
    (left, first), (right, second) = (part.args for part in parts)
    fits = left is right and (first, second) == (0, 1) and str(left.target) == "aten.split.Tensor"
    return left if fits else None
