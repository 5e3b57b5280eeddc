"""TVM artifacts in TVM's own runtime: the library for this CPU, the parameter file mapped, caches in place.

What lives here: picking a library, mapping the parameters, and calls. What must not: TVM's compiler; only its runtime
library is loaded, a hundredth of the size. The parameter file's layout is that of `compiler/targets/tvm/params.py`.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import mmap
import platform
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tvm_ffi
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from artifacts import MANIFEST, EdgewrightError
from artifacts.manifest import payload_file

from . import Ids, Logits

_HEADER = struct.Struct("<8sII32s16x")
_RECORD = struct.Struct("<QQIIQQQQQ")
_KINDS = (np.uint8, np.float16, np.float32, np.uint16)
_ALIGN = 64
_BIG_CORES = 1
_CPU, _POOLED = 1, 2


class Library(BaseModel):
    """One library of the artifact; `features` is what /proc/cpuinfo has to list."""

    triple: str
    variant: str
    path: str
    features: tuple[str, ...]


class Settings(BaseModel):
    """What ``runtime`` of a TVM artifact's manifest must hold; other keys are for other readers."""

    model_config = ConfigDict(frozen=True)

    params: str
    libraries: tuple[Library, ...]
    max_tokens: int = Field(gt=0)
    vocab_size: int = Field(gt=0)
    layers: int = Field(gt=0)
    key_shape: tuple[int, ...]
    value_shape: tuple[int, ...]
    chunk: int = Field(gt=0)


class TvmRunner:
    """One library over one mapped parameter file; the cache belongs to the runner."""

    def __init__(self, artifact: Path, runtime: Mapping[str, JsonValue]) -> None:
        try:
            self._settings = Settings.model_validate(dict(runtime))
        except ValidationError as error:
            raise EdgewrightError(f"{artifact / MANIFEST}: runtime: {error}") from error
        self._params = payload_file(artifact, self._settings.params)
        self._library = payload_file(artifact, best_library(self._settings.libraries, cpu_features()).path)
        load_runtime()
        self._machine: Any = None
        self._state: Any = None
        self._suffix = ""
        self._length = 0

    def load(self, *, exact: bool = False, threads: int = 2) -> None:
        """Load the library and map the parameters; the cache is written to its end. exact: float32 activations."""
        tvm_ffi.get_global_func("runtime.config_threadpool")(_BIG_CORES, threads)
        self._suffix = "_exact" if exact else ""
        self._length = 0
        if self._machine is not None:
            return
        self._machine = tvm_ffi.load_module(str(self._library))["vm_load_executable"]()
        self._machine["vm_initialization"](_CPU, 0, _POOLED)
        about = json.loads(self._machine["describe"]())
        caches = []
        for _ in range(self._settings.layers):
            for shape in (self._settings.key_shape, self._settings.value_shape):
                caches.append(aligned(shape, np.float32))
                caches[-1].fill(0)
        mapped = map_parameters(self._params, about["params_digest"])
        self._state = tvm_ffi.convert([tvm_ffi.from_dlpack(array) for array in (*caches, *mapped)])

    def logits(self, ids: Ids) -> Logits:
        """[S, V] of one prefill from an empty cache, in chunks."""
        self._length = 0
        self._check(len(ids))
        out = np.empty((len(ids), self._settings.vocab_size), np.float32)
        for start in range(0, len(ids), self._settings.chunk):
            chunk = ids[start : start + self._settings.chunk]
            out[start : start + len(chunk)] = self._call("score", chunk)
        return out

    def prefill(self, ids: Ids) -> Logits:
        """[V] of the last position, from an empty cache, in chunks."""
        self._length = 0
        self._check(len(ids))
        row = np.empty(0, np.float32)
        for start in range(0, len(ids), self._settings.chunk):
            row = self._call("prefill", ids[start : start + self._settings.chunk])[0]
        return row.copy()

    def decode(self, token: int) -> Logits:
        """[V] after one more token."""
        self._check(1)
        row: Logits = self._call("decode", np.array([token], np.int64))[0].copy()
        return row

    def _check(self, count: int) -> None:
        if count == 0 or self._length + count > self._settings.max_tokens:
            raise EdgewrightError(
                f"{count} tokens after {self._length} do not fit the context of {self._settings.max_tokens}"
            )

    def _call(self, name: str, ids: Ids) -> NDArray[np.float32]:
        """[rows, V], over memory that belongs to the runtime."""
        inputs = []
        for row in (ids, np.arange(self._length, self._length + len(ids))):
            buffer = aligned((1, len(ids)), np.int64)
            buffer[0] = row
            inputs.append(tvm_ffi.from_dlpack(buffer))
        out: NDArray[np.float32] = np.from_dlpack(self._machine[name + self._suffix](*inputs, self._state))[0]
        self._length += len(ids)
        return out


def load_runtime() -> None:
    """Load libtvm_runtime of the installed TVM, without importing TVM. Raises ModuleNotFoundError."""
    found = importlib.util.find_spec("tvm")
    if found is None or found.origin is None:
        raise ModuleNotFoundError("No module named 'tvm'", name="tvm")
    ctypes.CDLL(str(Path(found.origin).parent / "lib" / "libtvm_runtime.so"), ctypes.RTLD_GLOBAL)


def aligned(shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
    """An uninitialized array at a multiple of 64 bytes, as TVM's kernels expect."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    room = np.empty(size + _ALIGN, np.uint8)
    start = -room.ctypes.data % _ALIGN
    found: NDArray[Any] = room[start : start + size].view(dtype).reshape(shape)
    return found


def best_library(libraries: tuple[Library, ...], features: frozenset[str]) -> Library:
    """The first library for this machine whose features are all there: the manifest lists the best first."""
    here = [library for library in libraries if library.triple == "host"]
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
        if size < _HEADER.size:
            raise EdgewrightError(f"{path}: not a parameter file; build the artifact again")
        # copy-on-write, because DLPack takes no read-only array; nothing writes, so every page stays the file's
        mapped = mmap.mmap(file.fileno(), size, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    magic, count, _, found = _HEADER.unpack_from(mapped)
    if magic != b"EDGEPAR1" or _HEADER.size + count * _RECORD.size > size:
        raise EdgewrightError(f"{path}: not a parameter file; build the artifact again")
    if found.hex() != digest:
        raise EdgewrightError(f"{path}: was not made for this library (digest {found.hex()}, it wants {digest})")
    arrays = []
    for i in range(count):
        offset, length, kind, dimensions, *shape = _RECORD.unpack_from(mapped, _HEADER.size + i * _RECORD.size)
        dims = shape[:dimensions]
        if kind >= len(_KINDS) or dimensions > 4 or offset % _ALIGN or offset + length > size:
            raise EdgewrightError(f"{path}: cut short or damaged; build the artifact again")
        dtype = np.dtype(_KINDS[kind])
        if int(np.prod(dims)) * dtype.itemsize != length:
            raise EdgewrightError(
                f"{path}: tensor {i} of {dims} does not fill {length} bytes; build the artifact again"
            )
        arrays.append(np.frombuffer(mapped, dtype, length // dtype.itemsize, offset).reshape(dims))
    return arrays


RUNNER = TvmRunner
