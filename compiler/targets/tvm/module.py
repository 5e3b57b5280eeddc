"""One library: all functions of a model for one instruction set, as a Relax module. Knows no files and triples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tvm
from tvm import relax

from artifacts.formats import tvm as formats
from compiler.targets.tensors import Tensor
from compiler.targets.tvm.captured import Captured
from compiler.targets.tvm.isa import Isa
from compiler.targets.tvm.lower import Function, Kernels, Lowering
from compiler.targets.tvm.weights import tables_of


def library_module(
    functions: Sequence[formats.Function], isa: Isa, captured: Captured, parameters: list[Tensor], description: str
) -> Any:
    """The IRModule with every function in both precisions and `describe() -> description` (JSON), kernels shared."""
    kernels, tables = Kernels(), tables_of(captured)
    wanted = [
        *(Function(f.name, "int8", captured.graphs[f.name]) for f in functions),
        *(Function(f.exact, "exact", captured.graphs[f.name]) for f in functions),
    ]
    made = {f.name: Lowering(f, isa, kernels, parameters, tables).run() for f in wanted}
    module = tvm.IRModule({**{tvm.ir.GlobalVar(name): f for name, f in made.items()}, **kernels.functions})
    text = relax.Function([], relax.SeqExpr([], tvm.ir.StringImm(description)), relax.ObjectType())
    module[formats.DESCRIBE] = text.with_attr("global_symbol", formats.DESCRIBE)
    # caches and parameters come as one tuple, so that a call passes few arguments, not hundreds
    return relax.transform.BundleModelParams()(module)
