"""From objects to what a platform loads: shared libraries linked by lld, static archives. No NDK, no Xcode.

lld, and a C++ compiler for tests, come with the `ziglang` wheel. A shared library names what it needs (DT_NEEDED)
through stub libraries that define just the symbols used, and an undefined symbol that no stub has fails the link.
Android maps libraries in pages of 4 or 16 KB; 16 KB alignment serves both
(https://developer.android.com/guide/practices/page-sizes).
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

from artifacts import MissingTool, scratch_folder
from compiler.targets.tvm.triples import Triple

PAGE_BYTES = 16384
_C_LIBRARIES = {"android": ("libc.so", "libm.so"), "linux": ("libc.so.6", "libm.so.6")}
_MEMORY = ("memcpy", "memset", "memmove")
_ANGLES = ("acosf", "acoshf", "asinf", "asinhf", "atanf", "atan2f", "cosf", "coshf", "sinf", "sincosf", "sinhf", "tanf")
_MATH = (*_ANGLES, "erff", "expf", "exp2f", "fmaf", "fmodf", "logf", "log10f", "log2f", "powf", "sqrtf", "tanhf")
C_SYMBOLS = (*_MEMORY, *_MATH)
"""What the libraries may need of the C library."""


def zig(*arguments: str) -> list[str]:
    """The command of a tool in the ziglang wheel. Raises MissingTool."""
    if importlib.util.find_spec("ziglang") is None:
        raise MissingTool(
            "the TVM target links with lld, which the module ziglang brings: pip install 'edgewright[tvm]'"
        )
    return [sys.executable, "-m", "ziglang", *arguments]


def shared_library(out: Path, objects: list[Path], triple: Triple) -> None:
    """Link position-independent objects into `out`. Raises RuntimeError with lld's message when a symbol is missing."""
    machine = "x86_64" if triple.llvm.startswith("x86_64") else "aarch64"
    c, m = _C_LIBRARIES[triple.system]
    stubs = {"libtvm_runtime.so": (), "libtvm_ffi.so": _undefined(objects, "TVMFFI"), c: _MEMORY, m: _MATH}
    with scratch_folder() as folder:
        libraries = [_stub(folder, name, symbols, machine) for name, symbols in stubs.items()]
        _run(
            zig(
                "ld.lld",
                "-shared",
                "-z",
                f"max-page-size={PAGE_BYTES}",
                "-z",
                "defs",
                "-z",
                "noexecstack",
                "--build-id=none",
                "--hash-style=both",
                "--strip-debug",
                f"-soname={out.name}",
                "-o",
                str(out),
                *map(str, objects),
                *map(str, libraries),
            )
        )


def static_archive(out: Path, objects: list[Path], triple: Triple) -> None:
    """Pack objects into an archive with a symbol table, in Apple's or the GNU format."""
    form = "darwin" if triple.system == "ios" else "gnu"
    _run(zig("ar", f"--format={form}", "rcsD", str(out), *map(str, objects)))


def _undefined(objects: list[Path], prefix: str) -> tuple[str, ...]:
    """Names with this prefix in the objects: symbols of TVM are only ever used there, never defined."""
    found: set[str] = set()
    for path in objects:
        for name in path.read_bytes().split(b"\0"):
            if name.startswith(prefix.encode()) and name.isascii() and name.decode().isidentifier():
                found.add(name.decode())
    return tuple(sorted(found))


def _stub(folder: Path, name: str, symbols: tuple[str, ...], machine: str) -> Path:
    """A shared library `name` that defines `symbols` and nothing else."""
    source = folder / f"{name}.c"
    source.write_text("".join(f"void {s}(void) {{}}\n" for s in symbols), encoding="utf-8")
    out = folder / name
    flags = ["-nostdlib", "-fno-builtin", "-w", "-shared", f"-Wl,-soname,{name}"]
    _run(zig("cc", "-target", f"{machine}-linux-none", *flags, "-o", str(out), str(source)))
    return out


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{command[3]}: {done.stderr.strip() or done.stdout.strip()}")
