"""Capturing and compiling in processes of their own, one after the other.

Every framework takes memory that it does not give back: PyTorch 130 MB and 60 of its files, transformers, which the
capture imports, another 100, TVM with LLVM 60 and 120 of its files. So one process captures the graphs as plain data,
and another lowers and compiles them: neither adds to the other's memory. The caller, which waits meanwhile and counts
too, imports no framework at all for it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from artifacts import Progress, silent
from artifacts.formats.interface import Dimension
from artifacts.formats.tvm import Function
from compiler.apart import apart
from compiler.heap import give_back
from compiler.targets.base import Job, bare
from compiler.targets.tensors import Tensor
from compiler.targets.tvm.captured import Captured, capture_functions
from compiler.targets.tvm.isa import Isa
from compiler.targets.tvm.triples import Triple
from compiler.targets.tvm.weights import nothing, tables_of, tensors

Objects = dict[tuple[str, str], list[Path]]
Narrowed = Mapping[tuple[str, str, str], Dimension]


def capture_graphs(job: Job, functions: Sequence[Function], narrowed: Narrowed) -> Captured:
    """The graphs of the job's functions."""
    found: Captured = apart(_capture, bare(job), functions, dict(narrowed), progress=silent)
    return found


def check_lowering(functions: Sequence[Function], captured: Captured, job: Job, isa: Isa) -> None:
    """Lower the functions without compiling them. Raises EdgewrightError naming the ops that the target lacks."""
    shapes = _shapes(tensors(bare(job), tables_of(captured)))
    apart(_lower, functions, captured, shapes, isa, progress=silent)


def compile_variants(
    functions: Sequence[Function],
    captured: Captured,
    parameters: list[Tensor],
    machines: list[Triple],
    description: str,
    scratch: Path,
    progress: Progress,
) -> Objects:
    """The object files of every variant, by triple and variant name, under `scratch`."""
    arguments = functions, captured, _shapes(parameters), machines, description, scratch
    objects: Objects = apart(_compile, *arguments, progress=progress)
    return objects


def _shapes(parameters: list[Tensor]) -> list[Tensor]:
    return [dataclasses.replace(t, blocks=nothing) for t in parameters]


def _capture(job: Job, functions: Sequence[Function], narrowed: Narrowed, _: Progress) -> Captured:
    return capture_functions(job.model, job.schemes, functions, narrowed)


def _lower(functions: Sequence[Function], captured: Captured, parameters: list[Tensor], isa: Isa, _: Progress) -> None:
    from compiler.targets.tvm.module import library_module

    library_module(functions, isa, captured, parameters, "{}")


def _compile(
    functions: Sequence[Function],
    captured: Captured,
    parameters: list[Tensor],
    machines: list[Triple],
    description: str,
    scratch: Path,
    progress: Progress,
) -> Objects:
    from compiler.targets.tvm.compilation import compile_module
    from compiler.targets.tvm.module import library_module

    found: Objects = {}
    total = sum(len(m.variants) for m in machines)
    for isa in dict.fromkeys(v.isa for m in machines for v in m.variants):
        module = library_module(functions, isa, captured, parameters, description)
        give_back()
        for machine in machines:
            for variant in machine.variants:
                if variant.isa == isa:
                    progress("compiling kernels", len(found), total)
                    prefix = f"edgewright_{isa.name}_" if machine.container == "archive" else None
                    stem = scratch / machine.name / variant.name
                    stem.parent.mkdir(exist_ok=True)
                    found[machine.name, variant.name] = compile_module(module, machine.target(variant), stem, prefix)
        del module
    return found
