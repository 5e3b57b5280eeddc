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
import mmap
import multiprocessing
import shutil
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compiler.targets.base import Job
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
    found: Captured = _apart(_capture, _bare(job))
    return found


def compile_variants(
    job: Job, captured: Captured, tensors: list[Tensor], machines: list[Triple], description: str, scratch: Path
) -> Objects:
    """The object files of every variant, by triple and variant name, under `scratch`."""
    shapes = [dataclasses.replace(t, blocks=tuple) for t in tensors]
    objects: Objects = _apart(_compile, _bare(job), captured.graphs, shapes, machines, description, scratch)
    return objects


def _bare(job: Job) -> Job:
    """The job without its weights: neither they nor what reads them travel between processes."""
    nothing: Any = None
    return dataclasses.replace(job, weights=nothing)


def _apart(function: Any, *arguments: Any) -> Any:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def _capture(job: Job) -> Captured:
    from compiler.models import decoder

    return Captured({graph: capture(job, graph) for graph in GRAPHS}, decoder.rotary_frequencies(job.spec))


def _compile(
    job: Job,
    graphs: dict[Graph, list[PlainNode]],
    tensors: list[Tensor],
    machines: list[Triple],
    description: str,
    scratch: Path,
) -> Objects:
    import compiler.dialect  # noqa: F401  its ops have to be known before graphs of them are made
    from compiler.targets.tvm.compilation import compile_module
    from compiler.targets.tvm.module import decoder_module

    found: Objects = {}
    for isa in dict.fromkeys(v.isa for m in machines for v in m.variants):
        module = decoder_module(job, isa, graphs, tensors, description)
        _give_back()
        for machine in machines:
            for variant in machine.variants:
                if variant.isa == isa:
                    prefix = f"edgewright_{isa.name}_" if machine.container == "archive" else None
                    executable = compile_module(module, machine.target(variant), prefix)
                    found[machine.name, variant.name] = _objects(executable, scratch / machine.name, variant)
                    del executable
                    _give_back()
        del module
    return found


def _give_back() -> None:
    """Return what is not in use to the system: memory that malloc would keep, 70 MB of LLVM's after each variant, and
    pages of machine code, which come back from their files when they run: 60 MB of PyTorch's never do."""
    gc.collect()
    libc, maps = ctypes.CDLL(None), Path("/proc/self/maps")
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)
    for line in maps.read_text(encoding="utf-8").splitlines() if maps.exists() else []:
        span, permissions, _, _, _, *path = line.split(maxsplit=5)
        if permissions == "r-xp" and path and path[0].startswith("/"):
            start, stop = (int(address, 16) for address in span.split("-"))
            libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(stop - start), mmap.MADV_DONTNEED)


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
