"""Counting the instructions of an emulated program: an emulator that takes plugins, and the plugin.

What lives here: bringing both into the ARM64 tier's folder, the words that qemu takes, and the marks between which a
program is counted. What must not: the tier (`arm64_tier.py`) and what is counted.

Debian's static qemu takes no plugins and later releases have no other, so that Bookworm's dynamic one is fetched, with
every library that it loads: it is the same on every machine, and its counts with it. The plugin is `counting.c`,
compiled here. A count is of instructions, which cost very different times: it shows that work was added, never how
long anything takes.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from artifacts import EdgewrightError, MissingTool

FOLDER = "counts"
GET_COMPILER = "pip install ziglang, or apt-get install gcc; then edgewright farm setup"
PACKAGES = (
    *("qemu-user", "libc6", "libcapstone4", "libffi8", "libgcc-s1", "libglib2.0-0", "libgmp10", "libgnutls30"),
    *("libhogweed6", "libidn2-0", "libnettle8", "libnuma1", "libp11-kit0", "libpcre2-8-0", "libtasn1-6"),
    *("libunistring2", "liburing2", "zlib1g"),
)
_EMULATOR, _PLUGIN = "qemu-aarch64", "counting.so"
# Debian's names of machines, and their loaders of programs
_MACHINES = {"x86_64": ("amd64", "ld-linux-x86-64.so.2"), "aarch64": ("arm64", "ld-linux-aarch64.so.1")}
_MARK = 0xED6E  # as in counting.c
TRIAL = f"import os, contextlib\nwith contextlib.suppress(OSError): os.lseek(-1, {_MARK}, 0)"
"""A Python program that makes one mark."""


def debian() -> str | None:
    """Debian's name of this machine's architecture; None where its emulator is not fetched."""
    found = _MACHINES.get(platform.machine())
    return found and found[0]


def compiler() -> list[str] | None:
    """The command of a C compiler."""
    if importlib.util.find_spec("ziglang") is not None:
        return [sys.executable, "-m", "ziglang", "cc"]
    return next(([found] for name in ("cc", "gcc", "clang") if (found := shutil.which(name))), None)


def lacking() -> str | None:
    """What keeps this machine from counting, with what to do about it, before anything is fetched; or None."""
    if debian() is None:
        return f"no emulator that takes plugins for {platform.machine()}: use x86-64 or ARM64"
    return f"no C compiler: {GET_COMPILER}" if compiler() is None else None


def fill(folder: Path, archives: Path, scratch: Path) -> None:
    """Unpack Debian's archives of `PACKAGES` into a folder that is made, as far as the emulator needs them, and compile
    the plugin. Raises MissingTool."""
    root = scratch / "emulator"
    for archive in sorted(archives.glob("*.deb")):
        _ran(["dpkg-deb", "-x", str(archive), str(root)], f"{archive.name} cannot be unpacked")
    folder.mkdir()
    (root / "usr" / "bin" / _EMULATOR).rename(folder / _EMULATOR)
    for library in sorted([*root.glob("lib/*/*.so*"), *root.glob("usr/lib/*/*.so*")]):
        library.rename(folder / library.name)  # links too, which name their neighbours
    command = compiler()
    assert command is not None  # the caller has asked `lacking`
    source = Path(__file__).with_name("counting.c")
    options = ["-O2", "-shared", "-fPIC", "-ffreestanding", "-nostdlib", "-o", str(folder / _PLUGIN), str(source)]
    caches = {name: str(scratch / "zig") for name in ("ZIG_GLOBAL_CACHE_DIR", "ZIG_LOCAL_CACHE_DIR")}
    _ran([*command, *options], "the plugin that counts could not be compiled", env={**os.environ, **caches})


def emulator(folder: Path, log: Path) -> list[str]:
    """The command of the emulator, before its other options; log: where the program's marks go."""
    _, loader = _MACHINES[platform.machine()]
    own = [str(folder / loader), "--library-path", str(folder), str(folder / _EMULATOR)]
    # what the kernel would give the program at random, from which C libraries take their seeds
    return [*own, "-seed", "1", "-plugin", str(folder / _PLUGIN), "-d", "plugin", "-D", str(log)]


def check(command: list[str], environment: dict[str, str], log: Path) -> None:
    """Run the trial's command. Raises EdgewrightError where it does not work on this machine."""
    _ran(command, "the emulator that counts does not run here", environment)
    if len(marks(log)) != 1:
        raise EdgewrightError("the emulator that counts ran, and its plugin did not")


def mark() -> None:
    """In the program that is counted: have the count logged. Without the plugin it does nothing."""
    with suppress(OSError):
        os.lseek(-1, _MARK, os.SEEK_SET)


def marks(log: Path) -> list[int]:
    """The instructions that were executed until each mark. Raises EdgewrightError where the log holds anything else."""
    try:
        return [int(line) for line in log.read_text(encoding="ascii").splitlines()]
    except (OSError, ValueError) as error:
        raise EdgewrightError(f"the emulator's log of instruction counts cannot be read: {error}") from error


def _ran(command: list[str], why: str, env: dict[str, str] | None = None) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    if done.returncode:
        raise MissingTool(f"{why}: {done.stderr.strip()[-300:]}")
