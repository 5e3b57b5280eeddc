"""From a captured function to a Relax one: upstream's importer with our converter table for the dialect.

| dialect | kernels |
|---|---|
| linear | `dot.quantize` + `dot.matmul` (int8 activations), or `exact.arrange` + `exact.matmul` |
| embedding | `pointwise.embedding`, over the same tensors as a tied head |
| rms_norm, add_rms_norm | `pointwise.rms_norm` |
| layer_norm | `pointwise.layer_norm` |
| rotary | `pointwise.look_up` in tables of the parameter file |
| attention | `attention.append`, in place, then `attention.attend` |
| bias, scale | an addition, a product |
| convolution | `pointwise.dequantize`, then as in `convolutions.py`, with bias and relu |
| silu of one half times the other | `pointwise.gated_silu` |

Other ops go through upstream's converters with `compat.py`'s corrections. A function takes the inputs of its entry, its
states that come and go, and one tuple: the caches of its component and then the parameters, in file order.
Knows no triples and no files.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, Literal

import tvm
from tvm import relax
from tvm.relax.frontend.torch.exported_program_translator import ExportedProgramImporter

from artifacts import EdgewrightError
from compiler.graph import Node
from compiler.targets.tensors import Tensor
from compiler.targets.tvm import aten, compat, schedules
from compiler.targets.tvm.aten import Converter, gated, halved, last_slice, named, refuse_unlowered, whole_slice
from compiler.targets.tvm.captured import Graph, factors_of, frequencies_of, heads_of, program
from compiler.targets.tvm.convolutions import Convolutions
from compiler.targets.tvm.isa import Isa
from compiler.targets.tvm.kernels import attention, dot, exact, pointwise
from compiler.targets.tvm.weights import Matrix, Tables

Expr = Any
Precision = Literal["int8", "exact"]


@dataclass(frozen=True)
class Function:
    """A function of the library."""

    name: str
    precision: Precision
    graph: Graph


class Kernels:
    """The PrimFuncs of one library, each made once however many functions call it."""

    def __init__(self) -> None:
        self._builder = relax.BlockBuilder()
        self._made: dict[Hashable, Expr] = {}
        self.functions: dict[Expr, Expr] = {}

    def get(self, name: str, make: Callable[[str], Expr], *about: Hashable) -> Expr:
        """The kernel of this name; about: what else tells it from others of the name."""
        if (name, about) not in self._made:
            function = make(name)
            variable = self._builder.add_func(function, name)
            self._made[name, about] = variable
            self.functions[variable] = function
        return self._made[name, about]


class Lowering:
    """One function of the library: the converters, closed over its kernels, parameters and precision."""

    def __init__(
        self, function: Function, isa: Isa, kernels: Kernels, parameters: list[Tensor], tables: Tables
    ) -> None:
        self.function, self.isa, self.kernels, self.tables = function, isa, kernels, tables
        # kernels for any number of tokens, also where one of many is left
        self.many = bool(function.graph.most)
        self.variables = {
            t.name: relax.Var(f"p{i}", relax.TensorType(t.shape, t.dtype)) for i, t in enumerate(parameters)
        }
        self._plain = {node.name: node for node in function.graph.nodes}
        self.convolutions = Convolutions(kernels, self._call, isa)

    def run(self) -> Expr:
        """The Relax function; see the module's docstring. Raises EdgewrightError naming the ops without a lowering."""
        graph = self.function.graph
        symbols: dict[Any, Expr] = {name: tvm.tirx.Var(name, "int64") for name in graph.most}
        shapes = [tuple(symbols.get(d, d) for d in port.shape) for port in graph.ports]
        importer = ExportedProgramImporter()
        table = self._table(importer)
        refuse_unlowered(graph.nodes, table)
        module = importer.from_exported_program(
            program(graph, [*shapes, *graph.caches]),
            keep_params_as_input=False,
            unwrap_unit_return_tuple=True,
            no_bind_return_tuple=False,
            custom_convert_map=table,
        )
        main = module["main"]
        attributes: dict[str, Any] = {"num_input": len(graph.ports), "global_symbol": self.function.name}
        if graph.most:
            attributes["tir_var_upper_bound"] = dict(graph.most)
        attrs = tvm.ir.make_node("ir.DictAttrs", **attributes)
        return relax.Function([*main.params, *self.variables.values()], main.body, main.ret_ty, attrs=attrs)

    def _table(self, importer: Any) -> dict[str, Converter]:
        """A converter for every op, by the name that the importer looks up."""
        upstream: dict[str, Converter] = {name: named(convert) for name, convert in importer.convert_map.items()}
        self._upstream = upstream | {name: named(convert, True) for name, convert in compat.CONVERTERS.items()}
        return {
            **self._upstream,
            "edge.linear.default": self.linear,
            "edge.embedding.default": self.embedding,
            "edge.rms_norm.default": self.rms_norm,
            "edge.add_rms_norm.default": self.add_rms_norm,
            "edge.layer_norm.default": self.layer_norm,
            "edge.rotary.default": self.rotary,
            "edge.attention.default": self.attention,
            "edge.bias.default": self.bias,
            "edge.scale.default": self.scale,
            "edge.convolution.default": self.convolution,
            "mul.Tensor": self.mul,
            "relu.default": self.relu,
            "slice.Tensor": self.slice,
        }

    # -- emitting ---------------------------------------------------------------------------------------------

    def _tokens(self, count: Expr) -> int | None:
        """What a kernel is made for: one token, or any number."""
        return 1 if not self.many and isinstance(count, tvm.tirx.IntImm) and int(count) == 1 else None

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

    def _rows(self, importer: Any, x: Expr, last: int = 1) -> Expr:
        """x with all dimensions but the last ones as [1, tokens]."""
        shape = list(x.ty.shape)
        if len(shape) == 2 + last and aten.is_size(shape[0], 1):
            return x
        count = 1
        for size in shape[: len(shape) - last]:
            count = count * size
        return importer.block_builder.emit(relax.op.reshape(x, [1, count, *shape[len(shape) - last :]]))

    def _shaped(self, importer: Any, y: Expr, like: Expr, last: int = 1) -> Expr:
        """y [1, tokens, columns] with the leading dimensions of `like`."""
        lead = list(like.ty.shape)[: len(like.ty.shape) - last]
        if len(lead) == 2 and aten.is_size(lead[0], 1):
            return y
        return importer.block_builder.emit(relax.op.reshape(y, [*lead, y.ty.shape[2]]))

    # -- the dialect ------------------------------------------------------------------------------------------

    def _weights(self, matrix: Matrix) -> tuple[list[Expr], str]:
        """The variables of a matrix, and the dtype of its scales or values."""
        weights = [self.variables[name] for name in matrix.tensors]
        return weights, str(weights[-1].ty.dtype).replace("uint16", "bfloat16")

    def linear(self, node: Node, importer: Any) -> Expr:
        given, slots, rows, columns, bits, group, _ = importer.retrieve_args(node)
        matrix = Matrix("+".join(slots), sum(rows), columns, bits, group or columns)
        x = self._rows(importer, given)
        return self._shaped(importer, self._linear(importer, matrix, x), given)

    def _linear(self, importer: Any, matrix: Matrix, x: Expr) -> Expr:
        weights, kind = self._weights(matrix)
        columns, bits = matrix.columns, matrix.bits
        count = x.ty.shape[1]
        tokens = self._tokens(count)
        out = ((1, count, matrix.rows), "float32")
        paired = self.isa.matrix and tokens is None and matrix.rows % 2 == 0
        layout = None
        if self.function.precision == "int8" and bits != 16 and self.isa.dot:
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
        name = f"quantize_{columns}_{bits}_{matrix.group}_{'pairs' if paired else _suffix(tokens)}"
        quantize = self.kernels.get(name, lambda n: dot.quantize(n, tokens, layout))
        parts = self._several(importer, quantize, [x], *outs)

        def make(name: str) -> Expr:
            table = schedules.GEMV if tokens == 1 else schedules.GEMM
            tile = schedules.fitting(table[self.isa.name], matrix.rows)
            if paired:
                return dot.matmul_pairs(name, matrix.rows, layout, tile, kind)
            return dot.matmul(name, tokens, matrix.rows, layout, self.isa, tile, kind)

        name = f"dot_{matrix.rows}_{columns}_{bits}_{matrix.group}_{_suffix(tokens)}"
        return self._call(importer, self.kernels.get(name, make), [*weights, *parts], out)

    def _exact(self, importer: Any, matrix: Matrix, weights: list[Expr], kind: str, x: Expr, out: Any) -> Expr:
        columns, bits = matrix.columns, matrix.bits
        tokens = self._tokens(x.ty.shape[1])
        lanes = exact.float_lanes(columns, bits, matrix.group, self.isa.float_lanes)
        if bits == 4:
            arrange = self.kernels.get(
                f"arrange_{columns}_{lanes}_{_suffix(tokens)}", lambda n: exact.arrange(n, tokens, columns, lanes)
            )
            x = self._call(importer, arrange, [x], ((x.ty.shape[1], columns), "float32"))

        def make(name: str) -> Expr:
            tile = schedules.EXACT_GEMV if tokens == 1 else schedules.EXACT_GEMM[self.isa.name]
            tile = schedules.fitting(tile, matrix.rows)
            return exact.matmul(name, tokens, matrix.rows, columns, bits, matrix.group, lanes, tile, kind)

        name = f"exact_{matrix.rows}_{columns}_{bits}_{matrix.group}_{kind}_{_suffix(tokens)}"
        return self._call(importer, self.kernels.get(name, make), [*weights, x], out)

    def embedding(self, node: Node, importer: Any) -> Expr:
        given, slot, rows, columns, bits, group, _ = importer.retrieve_args(node)
        matrix = Matrix(slot, rows, columns, bits, group or columns)
        weights, kind = self._weights(matrix)
        ids = self._rows(importer, given, 0)
        tokens = self._tokens(ids.ty.shape[1])
        kernel = self.kernels.get(
            f"embedding_{_suffix(tokens)}",
            lambda n: pointwise.embedding(n, tokens, rows, columns, bits, matrix.group, kind),
            *(rows, columns, bits, matrix.group, kind),
        )
        found = self._call(importer, kernel, [ids, *weights], ((1, ids.ty.shape[1], columns), "float32"))
        return self._shaped(importer, found, given, 0)

    def rms_norm(self, node: Node, importer: Any) -> Expr:
        x, slot, columns, eps = importer.retrieve_args(node)
        return self._norm(importer, [x], slot, columns, eps)[0]

    def add_rms_norm(self, node: Node, importer: Any) -> list[Expr]:
        x, residual, slot, columns, eps = importer.retrieve_args(node)
        return self._norm(importer, [x, residual], slot, columns, eps)

    def _norm(self, importer: Any, given: list[Expr], slot: str, columns: int, eps: float) -> list[Expr]:
        inputs = [self._rows(importer, x) for x in given]
        add = len(inputs) == 2
        count = inputs[0].ty.shape[1]
        # the last norm may see one token in a function of many
        tokens = 1 if aten.is_size(count, 1) else None
        kernel = self.kernels.get(
            f"{'add_' if add else ''}norm_{columns}_{'gemv' if tokens else 'gemm'}",
            lambda n: pointwise.rms_norm(n, tokens, columns, eps, add),
            eps,
        )
        out = ((1, count, columns), "float32")
        found = self._several(importer, kernel, [*inputs, self.variables[slot]], *([out] * len(inputs)))
        return [self._shaped(importer, y, given[0]) for y in found]

    def layer_norm(self, node: Node, importer: Any) -> Expr:
        given, slot, columns, eps = importer.retrieve_args(node)
        x = self._rows(importer, given)
        count, tokens = x.ty.shape[1], self._tokens(x.ty.shape[1])
        kernel = self.kernels.get(
            f"layer_norm_{columns}_{_suffix(tokens)}", lambda n: pointwise.layer_norm(n, tokens, columns, eps), eps
        )
        found = self._call(importer, kernel, [x, self.variables[slot]], ((1, count, columns), "float32"))
        return self._shaped(importer, found, given)

    def rotary(self, node: Node, importer: Any) -> list[Expr]:
        given, table = importer.retrieve_args(node)[0], frequencies_of(self._plain[node.name])
        at = self._rows(importer, given, 0)
        tokens, half, positions = self._tokens(at.ty.shape[1]), len(table[0]), table[2]
        kernel = self.kernels.get(
            f"rotary_{_suffix(tokens)}",
            lambda n: pointwise.look_up(n, tokens, positions, half),
            *(positions, half),
        )
        out = ((1, at.ty.shape[1], half), "float32")
        values = [self.variables[name] for name in self.tables.rotary_names(table)]
        found = self._several(importer, kernel, [at, *values], out, out)
        return [self._shaped(importer, y, given, 0) for y in found]

    def attention(self, node: Node, importer: Any) -> tuple[Expr, Expr, Expr]:
        qkv, cos, sin, positions, keys, values = importer.retrieve_args(node)[:6]
        if len(qkv.ty.shape) != 3 or not aten.is_size(qkv.ty.shape[0], 1):
            raise EdgewrightError("tvm: no lowering for edge.attention of more than one sequence")
        plain, builder, tokens = self._plain[node.name], importer.block_builder, self._tokens(qkv.ty.shape[1])
        at, scaling = heads_of(plain), factors_of(plain)
        factors = [self.variables[self.tables.factors_name(scaling)]] if scaling else []
        suffix = _suffix(tokens)
        append = self.kernels.get(f"append_{suffix}", lambda n: attention.append(n, tokens, at), at)
        written = builder.emit(
            relax.op.call_tir_inplace(
                append, relax.Tuple([qkv, cos, sin, positions, keys, values]), [4, 5], [keys.ty, values.ty]
            )
        )
        keys, values = (builder.emit(relax.TupleGetItem(written, i)) for i in range(2))
        scaled = bool(factors)
        attend = self.kernels.get(
            f"attend_{suffix}", lambda n: attention.attend(n, tokens, at, scaled, self.isa), at, scaled
        )
        out = ((1, qkv.ty.shape[1], at.heads * at.head_dim), "float32")
        return self._call(importer, attend, [qkv, cos, sin, positions, *factors, keys, values], out), keys, values

    def bias(self, node: Node, importer: Any) -> Expr:
        x, slots, rows, axis = importer.retrieve_args(node)
        emit, rank = importer.block_builder.emit, len(x.ty.shape)
        vectors = [self.variables[slot] for slot in slots]
        vector = vectors[0] if len(vectors) == 1 else emit(relax.op.concat(vectors, 0))
        if (found := self.convolutions.biased(node, importer, vector, axis % rank)) is not None:
            return found
        return emit(relax.op.add(x, self._along(importer, vector, sum(rows), rank - 1 - axis % rank)))

    def _along(self, importer: Any, vector: Expr, count: int, behind: int) -> Expr:
        """A vector, with a dimension of one for each of the `behind` that a value has behind its axis."""
        if not behind:
            return vector
        return importer.block_builder.emit(relax.op.reshape(vector, [count, *[1] * behind]))

    def scale(self, node: Node, importer: Any) -> Expr:
        x, slot, columns, axis = importer.retrieve_args(node)
        rank = len(x.ty.shape)
        vector = self._along(importer, self.variables[slot], columns, rank - 1 - axis % rank)
        return importer.block_builder.emit(relax.op.multiply(x, vector))

    def convolution(self, node: Node, importer: Any) -> Expr:
        x, slot, shape, bits, group, _, stride, padding, dilation, groups = importer.retrieve_args(node)
        rows, columns = shape[0], 1
        for size in shape[1:]:
            columns *= size
        matrix = Matrix(slot, rows, columns, bits, group or columns)
        weights, kind = self._weights(matrix)
        kernel = self.kernels.get(
            f"dequantize_{rows}_{columns}_{bits}_{matrix.group}_{kind}",
            lambda n: pointwise.dequantize(n, rows, columns, bits, matrix.group, kind),
        )
        flat = self._call(importer, kernel, weights, ((rows, columns), "float32"))
        return self.convolutions.emit(node, importer, x, flat, (shape, stride, padding, dilation, groups))

    def relu(self, node: Node, importer: Any) -> Expr:
        found = self.convolutions.relu(node, importer)
        return self._upstream["relu.default"](node, importer) if found is None else found

    # -- what the dialect leaves to aten ------------------------------------------------------------------------

    def mul(self, node: Node, importer: Any) -> Expr:
        """silu(gate) * up over one fused projection in one kernel; any other product as it is."""
        split = gated(node)
        if split is None or not halved(split, importer.env[split.args[0]]):
            return self._upstream["mul.Tensor"](node, importer)
        given, columns = importer.env[split.args[0]], split.args[1]
        x = self._rows(importer, given)
        count, tokens = x.ty.shape[1], self._tokens(x.ty.shape[1])
        kernel = self.kernels.get(
            f"gated_silu_{columns}_{_suffix(tokens)}", lambda n: pointwise.gated_silu(n, tokens, columns)
        )
        return self._shaped(importer, self._call(importer, kernel, [x], ((1, count, columns), "float32")), given)

    def slice(self, node: Node, importer: Any) -> Expr:
        """A full slice, or the last token, of which the number need not be known; any other as upstream has it."""
        x = importer.retrieve_args(node)[0]
        if whole_slice(node.args):
            return x
        one = len(x.ty.shape) == 3 and aten.is_size(x.ty.shape[0], 1) and str(x.ty.dtype) == "float32"
        if not one or not last_slice(node.args):
            return self._upstream["slice.Tensor"](node, importer)
        if aten.is_size(x.ty.shape[1], 1):
            return x
        columns = int(x.ty.shape[2])
        kernel = self.kernels.get("last_token", lambda n: pointwise.last_token(n, None, columns), columns)
        return self._call(importer, kernel, [x], ((1, 1, columns), "float32"))


def _suffix(tokens: int | None) -> str:
    return "gemv" if tokens == 1 else "gemm"
