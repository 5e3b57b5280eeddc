"""From a Relax module to machine code: the pass pipeline and TVM's target. Knows neither PyTorch nor linkers."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import tvm
from tvm import relax, tirx

from compiler.heap import give_back

_TOGETHER = 16  # kernels of an object: LLVM holds all of what it compiles together until it is done


def compile_module(module: Any, target: dict[str, Any], stem: Path, system_lib_prefix: str | None = None) -> list[Path]:
    """Machine code for a TVM target, with memory planned ahead: objects `stem`-0.o and so on, all to be linked.

    LLVM gets few kernels at a time, and gives their memory back: of one module of 500 it would take 500 MB for ARM64.
    """
    if system_lib_prefix is not None:
        module = module.with_attr("system_lib_prefix", system_lib_prefix)
    goal = tvm.target.Target(target)
    entries = [v.name_hint for v, f in module.functions.items() if isinstance(f, relax.Function)]
    with goal:
        module = _pipeline(entries)(module)
    attrs, functions = module.attrs, dict(module.functions)
    del module
    kernels = sorted((v for v, f in functions.items() if isinstance(f, tirx.PrimFunc)), key=lambda v: v.name_hint)
    found: list[Path] = []
    for at in range(_TOGETHER, len(kernels), _TOGETHER):  # but for the first ones, which the executable keeps
        part = kernels[at : at + _TOGETHER]
        built = tvm.tirx.build(tvm.IRModule({v: functions.pop(v) for v in part}, attrs=attrs), target=goal)
        found.append(stem.with_name(f"{stem.name}-{len(found)}.o"))
        built.write_to_file(str(found[-1]), "o")
        del built
        give_back()
    executable = relax.build(tvm.IRModule(functions, attrs=attrs), target=goal, relax_pipeline=None)

    def keep(_: str, objects: list[str], **__: Any) -> None:
        for name in objects:
            found.append(stem.with_name(f"{stem.name}-{len(found)}.o"))
            shutil.copyfile(name, found[-1])

    executable.export_library(str(stem.with_name(f"{stem.name}.tar")), fcompile=keep)
    return found


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
