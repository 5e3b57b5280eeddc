"""Capturing and compiling in processes of their own, one after the other.

Every framework takes memory that it does not give back: PyTorch 130 MB and 60 of its files, transformers, which the
capture imports, another 100, TVM with LLVM 60 and 120 of its files. So one process captures the graphs as plain data,
and another lowers and compiles them: neither adds to the other's memory. The caller, which waits meanwhile and counts
too, imports no framework at all for it.
"""

from __future__ import annotations

import ctypes
import dataclasses
import gc
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from artifacts import Progress, silent
from compiler.apart import apart
from compiler.targets.base import Job, bare
from compiler.targets.tvm.captured import GRAPHS, Graph, PlainNode, capture
from compiler.targets.tvm.params import Tensor
from compiler.targets.tvm.triples import Triple, Variant

Objects = dict[tuple[str, str], list[Path]]


@dataclass(frozen=True)
class Captured:
    """What PyTorch knows of a job. frequencies: `decoder.rotary_frequencies`."""

    graphs: dict[Graph, list[PlainNode]]
    frequencies: tuple[list[float], float]


def capture_graphs(job: Job) -> Captured:
    """The job's graphs. Raises EdgewrightError for an op that the target does not lower."""
    found: Captured = apart(_capture, bare(job), progress=silent)
    return found


def compile_variants(
    job: Job,
    captured: Captured,
    tensors: list[Tensor],
    machines: list[Triple],
    description: str,
    scratch: Path,
    progress: Progress,
) -> Objects:
    """The object files of every variant, by triple and variant name, under `scratch`."""
    shapes = [dataclasses.replace(t, blocks=tuple) for t in tensors]
    arguments = bare(job), captured.graphs, shapes, machines, description, scratch
    objects: Objects = apart(_compile, *arguments, progress=progress)
    return objects


def _capture(job: Job, _: Progress) -> Captured:
    from compiler.models import decoder

    return Captured({graph: capture(job, graph) for graph in GRAPHS}, decoder.rotary_frequencies(job.spec))


def _compile(
    job: Job,
    graphs: dict[Graph, list[PlainNode]],
    tensors: list[Tensor],
    machines: list[Triple],
    description: str,
    scratch: Path,
    progress: Progress,
) -> Objects:
    import compiler.dialect  # noqa: F401  its ops have to be known before graphs of them are made
    from compiler.targets.tvm.compilation import compile_module
    from compiler.targets.tvm.module import decoder_module

    found: Objects = {}
    total = sum(len(m.variants) for m in machines)
    for isa in dict.fromkeys(v.isa for m in machines for v in m.variants):
        module = decoder_module(job, isa, graphs, tensors, description)
        _give_back()
        for machine in machines:
            for variant in machine.variants:
                if variant.isa == isa:
                    progress("compiling kernels", len(found), total)
                    prefix = f"edgewright_{isa.name}_" if machine.container == "archive" else None
                    executable = compile_module(module, machine.target(variant), prefix)
                    found[machine.name, variant.name] = _objects(executable, scratch / machine.name, variant)
                    del executable
                    _give_back()
        del module
    return found


def _give_back() -> None:
    """Return to the system what malloc would keep: 70 MB of LLVM's after each variant."""
    gc.collect()
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)


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
