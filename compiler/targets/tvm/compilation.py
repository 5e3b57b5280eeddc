"""From a Relax module to machine code: the pass pipeline and TVM's target. Knows neither PyTorch nor linkers."""

from __future__ import annotations

from typing import Any

import tvm
from tvm import relax

DESCRIBE = "describe"


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
            t.AttachGlobalSymbol(),
        ]
    )
