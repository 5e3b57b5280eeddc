"""One library: all functions of a decoder for one instruction set, as a Relax module. Knows no files and triples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tvm
from tvm import relax

from compiler.targets.base import Job
from compiler.targets.tvm.captured import Graph, PlainNode
from compiler.targets.tvm.compilation import DESCRIBE
from compiler.targets.tvm.isa import Isa
from compiler.targets.tvm.lower import ENTRIES, Kernels, Lowering
from compiler.targets.tvm.params import Tensor


def decoder_module(
    job: Job, isa: Isa, captured: Mapping[Graph, list[PlainNode]], parameters: list[Tensor], description: str
) -> Any:
    """The IRModule with every entry of `ENTRIES` and `describe() -> description` (JSON), kernels shared.

    captured: what `captured.capture` gives for each of `GRAPHS`.
    """
    kernels = Kernels()
    functions = {e.name: Lowering(job, isa, kernels, parameters, e).run(captured[e.graph]) for e in ENTRIES}
    module = tvm.IRModule({**{tvm.ir.GlobalVar(name): f for name, f in functions.items()}, **kernels.functions})
    text = relax.Function([], relax.SeqExpr([], tvm.ir.StringImm(description)), relax.ObjectType())
    module[DESCRIBE] = text.with_attr("global_symbol", DESCRIBE)
    # caches and parameters come as one tuple, so that a call passes three arguments, not hundreds
    return relax.transform.BundleModelParams()(module)
