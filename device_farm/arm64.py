"""Running ARM64 programs here, under qemu's user-mode emulation: which CPU, which libraries, what is missing.

What an emulated run proves is that code computes the right numbers with a given set of CPU features, never how fast
it is or how much memory it takes. What lives here: finding the emulator and ARM64 libraries, and starting a program.
What must not: what the program is.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from artifacts import EdgewrightError, MissingTool

PACKAGES = ("qemu-user-static", "libc6-arm64-cross", "libstdc++6-arm64-cross", "libgcc-s1-arm64-cross")
INSTALL = f"apt-get install {' '.join(PACKAGES)}"
CPUS: Mapping[str, str] = {
    "neon": "cortex-a53",
    "dotprod": "cortex-a76",
    "i8mm": "max,sve=off",  # the emulated SVE is of no phone and slows everything down
}
_EMULATORS = ("qemu-aarch64-static", "qemu-aarch64")
_ROOT = Path("/usr/aarch64-linux-gnu")
_PLATFORMS = ("manylinux_2_28_aarch64", "manylinux_2_17_aarch64", "manylinux2014_aarch64")


def missing() -> str | None:
    """What has to be installed before ARM64 programs run here, or None. For `edgewright doctor`."""
    if not any(shutil.which(name) for name in _EMULATORS):
        return f"no qemu-aarch64: {INSTALL}"
    if not (_ROOT / "lib" / "ld-linux-aarch64.so.1").exists() or not (_ROOT / "lib" / "libstdc++.so.6").exists():
        return f"no ARM64 C and C++ libraries in {_ROOT}: {INSTALL}"
    return None


def run(
    command: Sequence[str | Path], *, cpu: str, libraries: Sequence[Path] = (), timeout_s: float = 600
) -> subprocess.CompletedProcess[str]:
    """Run an ARM64 Linux program to its end and return its output.

    cpu: a key of CPUS, the newest feature it has. libraries: folders with its shared libraries.
    Raises MissingTool without an emulator, EdgewrightError when the program runs longer than `timeout_s`.
    """
    if (problem := missing()) is not None:
        raise MissingTool(problem)
    emulator = next(found for name in _EMULATORS if (found := shutil.which(name)))
    path = ":".join(str(folder) for folder in libraries)
    emulated = [emulator, "-cpu", CPUS[cpu], "-L", str(_ROOT), "-E", f"LD_LIBRARY_PATH={path}", *map(str, command)]
    try:
        return subprocess.run(emulated, capture_output=True, text=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired as error:
        raise EdgewrightError(f"{command[0]}: still running under {cpu} emulation after {timeout_s:.0f} s") from error


def wheel_files(requirement: str, inside: str, folder: Path) -> Path:
    """Download the ARM64 wheel of `name==version`, unpack the files whose path begins with `inside`; returns `folder`.

    Raises MissingTool when pip finds no such wheel.
    """
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "-d", str(folder)]
    command += ["--python-version", python, *(f"--platform={name}" for name in _PLATFORMS), requirement]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(folder.glob(f"{requirement.split('==')[0].replace('-', '_')}-*.whl"))
    if done.returncode or not wheels:
        raise MissingTool(f"the ARM64 wheel of {requirement} could not be downloaded: {done.stderr.strip()[-300:]}")
    with zipfile.ZipFile(wheels[0]) as archive:
        archive.extractall(folder, [name for name in archive.namelist() if name.startswith(inside)])
    return folder
