"""One library: all functions of a decoder for one instruction set, lowered to the point of machine code.

What lives here: assembling the Relax module and the pass pipeline. What does not: files, linkers, triples.
"""

from __future__ import annotations

from typing import Any

import tvm
from tvm import relax

from compiler.targets.base import Job
from compiler.targets.tvm.isa import Isa
from compiler.targets.tvm.lower import ENTRIES, Kernels, Lowering
from compiler.targets.tvm.params import Tensor

DESCRIBE = "describe"


def decoder_module(job: Job, isa: Isa, parameters: list[Tensor], chunk: int, description: str) -> Any:
    """The IRModule with every entry of `ENTRIES` and `describe() -> description` (JSON), kernels shared.

    chunk: the most tokens that a function of many takes at once; memory is planned for it.
    """
    kernels = Kernels()
    functions = {e.name: Lowering(job, isa, kernels, parameters, e, chunk).run() for e in ENTRIES}
    module = tvm.IRModule({**{tvm.ir.GlobalVar(name): f for name, f in functions.items()}, **kernels.functions})
    text = relax.Function([], relax.SeqExpr([], tvm.ir.StringImm(description)), relax.ObjectType())
    module[DESCRIBE] = text.with_attr("global_symbol", DESCRIBE)
    # caches and parameters come as one tuple, so that a call passes three arguments, not hundreds
    return relax.transform.BundleModelParams()(module)


def compile_module(module: Any, target: dict[str, Any], system_lib_prefix: str | None = None) -> Any:
    """Machine code for a TVM target, with memory planned ahead. The result exports itself as objects."""
    if system_lib_prefix is not None:
        module = module.with_attr("system_lib_prefix", system_lib_prefix)
    goal = tvm.target.Target(target)
    return relax.build(module, target=goal, relax_pipeline=_pipeline())


def _pipeline() -> Any:
    """Upstream's default without its rewrites of reshapes, which look for unscheduled kernels and reject ours."""
    t = relax.transform
    return tvm.transform.Sequential(
        [
            t.DeadCodeElimination([*(e.name for e in ENTRIES), DESCRIBE]),
            t.LegalizeOps(),
            t.ToNonDataflow(),
            t.RemovePurityChecking(),
            t.CallTIRRewrite(),
            t.StaticPlanBlockMemory(),
            t.LowerAllocTensor(),
            t.KillAfterLastUse(),
            t.LowerRuntimeBuiltin(),
            t.ComputePrimValue(),
            t.VMShapeLower(),
            t.AttachGlobalSymbol(),
        ]
    )
