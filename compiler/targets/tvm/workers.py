"""Capturing and compiling in processes of their own, one after the other.

Every framework takes memory that it does not give back: transformers, which the capture imports, 100 MB, TVM with LLVM
250. So one process captures the graphs as plain data, and another lowers and compiles them: neither adds to the
other's memory or to the caller's.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import shutil
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from compiler.targets.base import Job
from compiler.targets.tvm.captured import GRAPHS, Graph, PlainNode, capture
from compiler.targets.tvm.params import Tensor
from compiler.targets.tvm.triples import Triple, Variant

Objects = dict[tuple[str, str], list[Path]]
Captured = dict[Graph, list[PlainNode]]


def compile_variants(
    job: Job, tensors: list[Tensor], machines: list[Triple], description: str, scratch: Path
) -> Objects:
    """The object files of every variant, by triple and variant name, under `scratch`."""
    # neither weights nor the blocks that read them are needed, nor do they travel between processes
    nothing: Any = None
    bare = dataclasses.replace(job, weights=nothing)
    shapes = [dataclasses.replace(t, blocks=tuple) for t in tensors]
    captured = _apart(_capture, bare)
    objects: Objects = _apart(_compile, bare, captured, shapes, machines, description, scratch)
    return objects


def _apart(function: Any, *arguments: Any) -> Any:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def _capture(job: Job) -> Captured:
    return {graph: capture(job, graph) for graph in GRAPHS}


def _compile(
    job: Job, captured: Captured, tensors: list[Tensor], machines: list[Triple], description: str, scratch: Path
) -> Objects:
    import compiler.dialect  # noqa: F401  its ops have to be known before graphs of them are made
    from compiler.targets.tvm.compilation import compile_module
    from compiler.targets.tvm.module import decoder_module

    found: Objects = {}
    for isa in {v.isa: None for m in machines for v in m.variants}:
        module = decoder_module(job, isa, captured, tensors, description)
        for machine in machines:
            for variant in machine.variants:
                if variant.isa == isa:
                    prefix = f"edgewright_{isa.name}_" if machine.container == "archive" else None
                    executable = compile_module(module, machine.target(variant), prefix)
                    found[machine.name, variant.name] = _objects(executable, scratch / machine.name, variant)
    return found


def _objects(executable: Any, folder: Path, variant: Variant) -> list[Path]:
    """The object files of a compiled module, under names that stay distinct in an archive."""
    folder.mkdir(exist_ok=True)
    found: list[Path] = []

    def keep(_: str, objects: list[str], **__: Any) -> None:
        for i, name in enumerate(objects):
            found.append(folder / f"{variant.name}-{i}.o")
            shutil.copyfile(name, found[-1])

    executable.export_library(str(folder / "objects.tar"), fcompile=keep)
    return found
