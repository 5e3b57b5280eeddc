"""From a Relax module to machine code: the pass pipeline and TVM's target. Knows neither PyTorch nor linkers."""

from __future__ import annotations

from typing import Any

import tvm
from tvm import relax, tirx


def compile_module(module: Any, target: dict[str, Any], system_lib_prefix: str | None = None) -> Any:
    """Machine code for a TVM target, with memory planned ahead. The result exports itself as objects."""
    if system_lib_prefix is not None:
        module = module.with_attr("system_lib_prefix", system_lib_prefix)
    goal = tvm.target.Target(target)
    entries = [v.name_hint for v, f in module.functions.items() if isinstance(f, relax.Function)]
    return relax.build(module, target=goal, relax_pipeline=_pipeline(entries))


def _pipeline(entries: list[str]) -> Any:
    """Upstream's default without its rewrites of reshapes, which look for unscheduled kernels and reject ours."""
    t = relax.transform
    return tvm.transform.Sequential(
        [
            t.DeadCodeElimination(entries),
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
            tvm.transform.module_pass(_order_shapes, opt_level=0),
            t.AttachGlobalSymbol(),
        ]
    )


def _order_shapes(module: Any, _: Any) -> Any:
    """Sort the statements of the functions that compute symbolic shapes, one store to a place of its own each.

    VMShapeLower (apache-tvm 0.27) takes them from a table hashed by addresses, so their order, and with it the machine
    code, changed from run to run. They read only the sizes that were given, never each other.
    """
    for variable, function in module.functions.items():
        computes_shapes = isinstance(function, tirx.PrimFunc) and "tirx.is_host_func" in function.attrs
        if computes_shapes and isinstance(function.body, tirx.SeqStmt):
            ordered = sorted(function.body.seq, key=lambda store: int(store.indices[0]))
            module[variable] = function.with_body(tirx.SeqStmt(ordered))
    return module
