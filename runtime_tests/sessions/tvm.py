"""TVM artifacts in TVM's own runtime: the library for this CPU, the parameter file mapped, caches in place.

What lives here: picking a library, mapping the parameters, and calls. What must not: TVM's compiler; only its runtime
library is loaded, a hundredth of the size. The parameter file's layout is that of `artifacts/formats/tvm.py`.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import mmap
import os
import platform
from pathlib import Path
from typing import Any

import numpy as np
import tvm_ffi
from numpy.typing import NDArray

from artifacts import EdgewrightError, Figure, Manifest
from artifacts.formats.interface import Entry
from artifacts.formats.tvm import (
    ALIGN,
    DESCRIBE,
    DIMENSIONS,
    HEADER,
    HOST,
    KINDS,
    MAGIC,
    RECORD,
    SCORE,
    SCORED,
    Library,
    TvmRuntime,
)
from artifacts.manifest import payload_file

from . import Arrays, call_sizes, runtime_section

_SHARED_CORES = -3  # kSpecifyThreadShareAllCore of TVM's threading_backend.h
_CPU, _POOLED = 1, 2


class TvmSession:
    """See `Session`. One library over one mapped parameter file; the states belong to the session."""

    warnings: tuple[str, ...] = ()
    stand_in: str | None = None
    exact_stand_in: str | None = None

    def __init__(self, artifact: Path, manifest: Manifest) -> None:
        self._runtime = runtime_section(TvmRuntime, artifact, manifest)
        self._params = payload_file(artifact, self._runtime.params)
        self._library = payload_file(artifact, best_library(self._runtime.libraries, cpu_features()).path)
        self._components = {component.name: component for component in manifest.components}
        self._functions = {(f.component, f.entry): f for f in self._runtime.functions}
        load_runtime()
        self._machine: Any = None
        self._exact = False
        # by component: states that come and go, by name; and what a call ends with, those in place and the parameters
        self._states: dict[str, dict[str, NDArray[Any]]] = {}
        self._held: dict[str, Any] = {}
        # by component: positions that its caches hold since the last reset; later ones are never read, so that a reset
        # need not write gigabytes
        self._used: dict[str, int] = {}

    def load(self, *, exact: bool = False, threads: int = 2) -> None:
        """Load the library and map the parameters; the caches are written to their ends. exact: float32 activations."""
        _set_threads(threads)
        self._exact = exact
        if self._machine is not None:
            self.reset()
            return
        self._machine = tvm_ffi.load_module(str(self._library))["vm_load_executable"]()
        self._machine["vm_initialization"](_CPU, 0, _POOLED)
        about = json.loads(self._machine[DESCRIBE]())
        mapped = map_parameters(self._params, about["params_digest"])
        for name in self._components:
            states = [state for state in self._runtime.states if state.component == name]
            self._states[name] = {s.name: aligned(s.shape, s.dtype) for s in states if not s.in_place}
            caches = [zeros(s.shape, s.dtype) for s in states if s.in_place]
            self._held[name] = tvm_ffi.convert([tvm_ffi.from_dlpack(array) for array in (*caches, *mapped)])
        self.reset()

    def reset(self) -> None:
        """Every state to zeros, as far as a call can tell."""
        for states in self._states.values():
            for state in states.values():
                state.fill(0)
        self._used = {s.component: 0 for s in self._runtime.states if s.in_place}

    def call(self, component: str, entry: str, **arrays: NDArray[Any]) -> Arrays:
        """The entry's outputs by name."""
        shipped = {e.name for e in self._components[component].entries}
        wanted = self._components[component].entry(SCORED if entry == SCORE and entry not in shipped else entry)
        where = f"{component}.{entry}"
        call_sizes(where, wanted, arrays)
        _check_values(where, wanted, arrays)
        if component in self._used:
            self._used[component] = _counted(where, wanted, arrays, self._used[component])
        function = self._functions[component, entry]
        states = self._states[component]
        inputs = [*(_own(arrays[port.name]) for port in wanted.inputs), *states.values()]
        run = self._machine[function.exact if self._exact else function.name]
        found = run(*map(tvm_ffi.from_dlpack, inputs), self._held[component])
        # memory of the runtime's, which the next call may take
        results = [np.from_dlpack(one).copy() for one in ([found] if isinstance(found, tvm_ffi.Tensor) else found)]
        outputs = len(wanted.outputs)
        for state, value in zip(states.values(), results[outputs:], strict=False):
            np.copyto(state, value)
        return {port.name: value for port, value in zip(wanted.outputs, results, strict=False)}

    def footprint(self) -> list[Figure]:
        """Nothing: the runtime runs here."""
        return []


def _check_values(where: str, entry: Entry, arrays: Arrays) -> None:
    """EdgewrightError for whole numbers that the kernels would read, or write, past the end of a tensor with."""
    for port in entry.inputs:
        values = arrays[port.name]
        if port.below is not None and values.size and not 0 <= values.min() <= values.max() < port.below:
            raise EdgewrightError(
                f"{where}: {port.name} from {values.min()} to {values.max()} do not lie in 0 to {port.below - 1}"
            )


def _counted(where: str, entry: Entry, arrays: Arrays, used: int) -> int:
    """Positions in the caches after a call; EdgewrightError for one that would leave some out."""
    for port in entry.inputs:
        if port.counts:
            values = arrays[port.name]
            first = int(values.flat[0])
            if first > used or (values != np.arange(first, first + values.shape[-1])).any():
                raise EdgewrightError(f"{where}: {port.name} go on from {used} one by one, not from {first}")
            return first + int(values.shape[-1])
    raise EdgewrightError(f"{where}: none of its inputs counts positions, by which its caches are filled")


def _own(array: NDArray[Any]) -> NDArray[Any]:
    found = aligned(array.shape, array.dtype)
    np.copyto(found, array)
    return found


def load_runtime() -> None:
    """Load libtvm_runtime of the installed TVM, without importing TVM. Raises ModuleNotFoundError."""
    found = importlib.util.find_spec("tvm")
    if found is None or found.origin is None:
        raise ModuleNotFoundError("No module named 'tvm'", name="tvm")
    ctypes.CDLL(str(Path(found.origin).parent / "lib" / "libtvm_runtime.so"), ctypes.RTLD_GLOBAL)


def _set_threads(threads: int) -> None:
    """Let the pool's threads share all cores of this process: of its own, on x86-64 TVM takes half of the cores, and
    binds this thread, with all that it starts later, to one."""
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    tvm_ffi.get_global_func("runtime.config_threadpool")(_SHARED_CORES, threads, [str(core) for core in sorted(cores)])


def aligned(shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
    """An uninitialized array at a multiple of 64 bytes, as TVM's kernels expect."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    room = np.empty(size + ALIGN, np.uint8)
    start = -room.ctypes.data % ALIGN
    found: NDArray[Any] = room[start : start + size].view(dtype).reshape(shape)
    return found


def zeros(shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
    """As `aligned`, written to its end."""
    found = aligned(shape, dtype)
    found.fill(0)
    return found


def best_library(libraries: tuple[Library, ...], features: frozenset[str]) -> Library:
    """The first library for this machine whose features are all there: the manifest lists the best first."""
    arm = platform.machine() == "aarch64"  # where libraries for phones load beside those of the machine that built
    here = [lib for lib in libraries if lib.triple == HOST or (arm and lib.triple.startswith("aarch64-linux"))]
    for library in here:
        if features.issuperset(library.features):
            return library
    wanted = " or ".join(" ".join(library.features) for library in here) or "none"
    raise EdgewrightError(
        f"no library of this artifact runs on this CPU ({platform.machine()}); it would need {wanted}"
    )


def cpu_features() -> frozenset[str]:
    """What /proc/cpuinfo says of the first CPU."""
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith(("flags", "Features")):
            return frozenset(line.split(":", 1)[1].split())
    return frozenset()


def map_parameters(path: Path, digest: str) -> list[NDArray[Any]]:
    """The tensors of a parameter file in order, views of a private map. EdgewrightError unless it has this digest."""
    with path.open("rb") as file:
        size = path.stat().st_size
        if size < HEADER.size:
            raise EdgewrightError(f"{path}: not a parameter file; build the artifact again")
        # copy-on-write, because DLPack takes no read-only array; nothing writes, so every page stays the file's
        mapped = mmap.mmap(file.fileno(), size, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    magic, count, _, found = HEADER.unpack_from(mapped)
    if magic != MAGIC or HEADER.size + count * RECORD.size > size:
        raise EdgewrightError(f"{path}: not a parameter file; build the artifact again")
    if found.hex() != digest:
        raise EdgewrightError(f"{path}: was not made for this library (digest {found.hex()}, it wants {digest})")
    arrays = []
    for i in range(count):
        offset, length, kind, dimensions, *shape = RECORD.unpack_from(mapped, HEADER.size + i * RECORD.size)
        dims = shape[:dimensions]
        if kind >= len(KINDS) or dimensions > DIMENSIONS or offset % ALIGN or offset + length > size:
            raise EdgewrightError(f"{path}: cut short or damaged; build the artifact again")
        dtype = np.dtype(KINDS[kind])
        if int(np.prod(dims)) * dtype.itemsize != length:
            raise EdgewrightError(
                f"{path}: tensor {i} of {dims} does not fill {length} bytes; build the artifact again"
            )
        arrays.append(np.frombuffer(mapped, dtype, length // dtype.itemsize, offset).reshape(dims))
    return arrays


SESSION = TvmSession
