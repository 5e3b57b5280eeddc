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
from collections.abc import Iterable, Mapping, Sequence
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
_PLATFORMS = tuple(f"manylinux{glibc}_aarch64" for glibc in ("_2_28", "_2_27", "_2_24", "_2_17", "2014"))
# Source: Arm Architecture Reference Manual, C7.2: mask and value of an instruction, whatever its registers
_INTEGER: Mapping[str, tuple[int, int]] = {
    "sdot": (0xBFE0FC00, 0x0E809400),
    "sdot element": (0xBFC0F400, 0x0F80E000),
    "udot": (0xBFE0FC00, 0x2E809400),
    "udot element": (0xBFC0F400, 0x2F80E000),
    "smmla": (0xFFE0FC00, 0x4E80A400),
    "ummla": (0xFFE0FC00, 0x6E80A400),
    "usmmla": (0xFFE0FC00, 0x4E80AC00),
}


def cpu_of(isa: Sequence[str]) -> str:
    """The key of CPUS that has what every core of a phone has, and no more."""
    return next((name for name in ("i8mm", "dotprod") if name in isa), "neon")


def cpus_of(isas: Iterable[Sequence[str]]) -> list[str]:
    """Those of several phones, each once; of no phone in particular all that are told apart."""
    return list(dict.fromkeys(map(cpu_of, isas))) or list(CPUS)


def emulator() -> str | None:
    """The user-mode emulator of this machine."""
    return next((found for name in _EMULATORS if (found := shutil.which(name))), None)


def missing() -> str | None:
    """What has to be installed before ARM64 programs run here, or None. For `edgewright doctor`."""
    if emulator() is None:
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
    path = ":".join(str(folder) for folder in libraries)
    options = ["-cpu", CPUS[cpu], "-L", str(_ROOT), "-E", f"LD_LIBRARY_PATH={path}"]
    emulated = [str(emulator()), *options, *map(str, command)]
    try:
        return subprocess.run(emulated, capture_output=True, text=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired as error:
        raise EdgewrightError(f"{command[0]}: still running under {cpu} emulation after {timeout_s:.0f} s") from error


def wheel_files(requirement: str, inside: str, folder: Path) -> Path:
    """Download the ARM64 wheel of `name==version`, unpack the files whose path begins with `inside`; returns `folder`.

    Raises MissingTool when pip finds no such wheel.
    """
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    with zipfile.ZipFile(wheel_archive(requirement, folder, python)) as archive:
        archive.extractall(folder, [name for name in archive.namelist() if name.startswith(inside)])
    return folder


def wheel_archive(requirement: str, folder: Path, python: str) -> Path:
    """Download the ARM64 wheel of `name==version` for a Python; pip compares its digest with the index's.

    Raises MissingTool when pip finds no such wheel.
    """
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "-d", str(folder)]
    command += ["--python-version", python, *(f"--platform={name}" for name in _PLATFORMS), requirement]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    name = requirement.split("==")[0].replace("-", "_").lower()
    wheels = [path for path in folder.glob("*.whl") if path.name.split("-")[0].lower() == name]
    if done.returncode or not wheels:
        raise MissingTool(f"the ARM64 wheel of {requirement} could not be downloaded: {done.stderr.strip()[-300:]}")
    return wheels[0]


def integer_instructions(log: Path) -> tuple[str, ...]:
    """Which of the instructions that quantized kernels are chosen by stand in code that an emulated run reached.

    log: of qemu's `-d in_asm`, every block once as it is first run: address, code, and words that old versions lack.
    """
    found = set()
    with log.open(encoding="ascii", errors="replace") as lines:
        for line in lines:
            if line.startswith("0x"):
                code = int(line.split(maxsplit=2)[1], 16)
                found |= {name for name, (mask, value) in _INTEGER.items() if code & mask == value}
    return tuple(sorted({name.partition(" ")[0] for name in found}))
