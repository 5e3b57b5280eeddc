"""The ARM64 tier: a Python and the runtimes in their builds for ARM64 Linux, in a folder of the user's cache.

What lives here: bringing them there (`install`), what is missing, and the command that starts that Python on an
emulated CPU. What must not: what it runs.

The interpreter and its C libraries are Debian's, fetched by apt, which checks their signatures, into folders of its
own: it needs no rights and changes nothing of this system. Wheels are pip's, in the versions that are installed here,
checked against the index. The digest of every unpacked file is kept, so that `install` repairs what was damaged. An
emulator that counts instructions (`arm64_counts.py`) is part of it where this machine can have one.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import os
import shutil
import subprocess
import zipfile
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from artifacts import EdgewrightError, MissingTool, Progress, silent, user_cache
from artifacts.locks import locked
from device_farm import arm64, arm64_counts

SETUP = "edgewright farm setup"
_SUITE, _PYTHON = "bookworm", "3.11"
_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_DEBIAN = (
    *("python3.11-minimal", "libpython3.11-minimal", "libpython3.11-stdlib", "libc6", "libgcc-s1", "libstdc++6"),
    *("zlib1g", "libexpat1", "libffi8", "libbz2-1.0", "liblzma5"),
)
_WHEELS = (
    *("onnxruntime", "onnx", "numpy", "ml_dtypes", "protobuf", "typing_extensions", "pydantic", "pydantic_core"),
    *("annotated_types", "typing_inspection", "safetensors", "tokenizers", "pyyaml", "pillow"),
)
_TVM = ("apache-tvm", "apache-tvm-ffi")
# of TVM's half gigabyte, what a session loads
_ONLY = {"apache_tvm": ("tvm/__init__.py", "tvm/lib/libtvm_runtime.so")}
_LIBRARIES = "usr/lib/aarch64-linux-gnu"
# Android's names of what glibc calls otherwise, so that libraries for phones load
_BIONIC = {"libc.so": "libc.so.6", "libm.so": "libm.so.6", "libdl.so": "libdl.so.2"}
# What programs read of a CPU: onnxruntime and TVM choose their kernels by it, and qemu 7.2 shows that of this machine
# (Cortex-A53, A76, Neoverse N2: of those with i8mm, one whose number does not crash onnxruntime 1.31 under qemu 7.2)
_CPU_PART = {"neon": "0xd03", "dotprod": "0xd0b", "i8mm": "0xd49"}
_NEON = "fp asimd evtstrm aes pmull sha1 sha2 crc32 cpuid"
_DOTPROD = f"{_NEON} atomics fphp asimdhp asimdrdm lrcpc dcpop asimddp"
_FEATURES = {"neon": _NEON, "dotprod": _DOTPROD, "i8mm": f"{_DOTPROD} i8mm bf16"}


def place() -> Path:
    """Where the tier is, or would be."""
    return user_cache() / "arm64"


def missing(*, emulated: bool = True) -> str | None:
    """What keeps artifacts from running in the tier, or None; emulated: here, not on a phone. Reads no digest."""
    if emulated and arm64.emulator() is None:
        return f"no qemu-aarch64: apt-get install {arm64.PACKAGES[0]}"
    return None if _state(place()) is not None else f"not installed: {SETUP}"


def uncounted() -> str | None:
    """What keeps instructions from being counted in the tier, as `missing` says what keeps artifacts from running."""
    state = _state(place())
    if state is None or "uncounted" not in state:
        return f"not installed: {SETUP}"
    return None if state["uncounted"] is None else str(state["uncounted"])


def identity() -> str:
    """A digest of all that is installed, by which what was found with it is told from what was found with another."""
    try:
        return hashlib.sha256((place() / "tier.json").read_bytes()).hexdigest()
    except OSError:
        return "none"


def installed(*, emulated: bool = True) -> Path:
    """The tier's folder; emulated: with all that it takes to run it here. Raises MissingTool."""
    if (problem := missing(emulated=emulated)) is not None:
        state, _, advice = problem.partition(": ")
        raise MissingTool(f"the ARM64 tier cannot run ({state}); run: {advice}")
    return place()


def python(
    arguments: Sequence[str | Path], *, cpu: str, log: Path | None = None, counts: Path | None = None
) -> list[str]:
    """The command that runs the tier's Python on an emulated CPU; `environment` belongs to it.

    cpu: a key of `arm64.CPUS`. Files are this machine's, by the same paths. log: of every instruction that is reached,
    see `arm64.integer_instructions`. counts: of executed instructions instead, see `arm64_counts.marks`; nothing is
    `uncounted` then. Raises MissingTool.
    """
    folder = installed()
    if counts is not None:
        return _emulated(folder, cpu, arm64_counts.emulator(folder / arm64_counts.FOLDER, counts), arguments)
    emulator = arm64.emulator()
    assert emulator is not None  # it is part of that
    return _emulated(folder, cpu, [emulator, *(["-d", "in_asm", "-D", str(log)] if log else [])], arguments)


def _emulated(folder: Path, cpu: str, emulator: list[str], arguments: Sequence[str | Path]) -> list[str]:
    program = folder / "root/usr/bin" / f"python{_PYTHON}"
    return [*emulator, "-cpu", arm64.CPUS[cpu], "-L", str(folder / cpu), str(program), *map(str, arguments)]


def environment(given: dict[str, str]) -> dict[str, str]:
    """The same variables, with the tier's packages behind those of PYTHONPATH and nothing of this machine's loader."""
    paths = [*filter(None, [given.get("PYTHONPATH")]), str(place() / "site")]
    kept = {key: value for key, value in given.items() if not key.startswith(("LD_", "QEMU_"))}
    return {**kept, "PYTHONPATH": os.pathsep.join(paths), "PYTHONNOUSERSITE": "1", "PYTHONDONTWRITEBYTECODE": "1"}


def install(progress: Progress = silent) -> bool:
    """Bring the tier into its place, unless it is there whole and in the versions that are installed here; whether
    anything was done. Raises MissingTool naming what this machine or its network lacks."""
    for tool, package in (("apt-get", None), ("dpkg-deb", None), (arm64.emulator(), arm64.PACKAGES[0])):
        if tool is None or not shutil.which(tool):
            why = f"run: apt-get install {package}" if package else "use Debian, Ubuntu, or a container of them"
            raise MissingTool(f"the ARM64 tier needs {tool or 'qemu-aarch64'}, which is not on this machine; {why}")
    if not _KEYRING.exists():
        raise MissingTool(f"no {_KEYRING}, by which Debian's files are checked; apt-get install debian-archive-keyring")
    folder, wheels = place(), _requirements()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with locked(folder.parent):
            if _whole(folder, wheels):
                return False
            scratch = folder.parent / ".arm64-new"  # one name, so that a killed run leaves nothing for ever
            shutil.rmtree(scratch, ignore_errors=True)
            try:
                _fill(scratch / "arm64", scratch, wheels, progress)
                if folder.exists():
                    folder.rename(scratch / "old")
                (scratch / "arm64").rename(folder)
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
    except OSError as error:
        raise EdgewrightError(
            f"{folder}: cannot be written ({error.strerror}); set XDG_CACHE_HOME to another place"
        ) from error
    return True


def _requirements() -> list[str]:
    """`name==version` of what is installed here; TVM where it is."""
    found = [f"{name}=={version(name)}" for name in _WHEELS]
    try:
        return found + [f"{name}=={version(name)}" for name in _TVM]
    except PackageNotFoundError:
        return found


def _fill(new: Path, scratch: Path, wheels: list[str], progress: Progress) -> None:
    archives = scratch / "archives"
    counting = scratch / "counting"
    for made in (archives, counting, new):
        made.mkdir(parents=True)
    total = 1 + len(wheels)
    lacking = arm64_counts.lacking()
    _fetch_debian(scratch / "apt", archives, counting if lacking is None else None)
    for archive in sorted(archives.glob("*.deb")):
        _ran(["dpkg-deb", "-x", archive, new / "root"], f"{archive.name} cannot be unpacked")
    for name, known in _BIONIC.items():
        (new / "root" / _LIBRARIES / name).symlink_to(f"../../../lib/aarch64-linux-gnu/{known}")
    for at, requirement in enumerate(wheels):
        progress("fetching the ARM64 tier", 1 + at, total)
        arm64.wheel_archive(requirement, archives, _PYTHON)
    for archive in archives.glob("*.whl"):
        wanted = _ONLY.get(archive.name.split("-")[0], ("*",))
        with zipfile.ZipFile(archive) as wheel:
            names = [name for name in wheel.namelist() if any(fnmatch.fnmatch(name, one) for one in wanted)]
            wheel.extractall(new / "site", names)
    for cpu in arm64.CPUS:
        (new / cpu / "proc").mkdir(parents=True)
        for name in ("lib", "usr"):
            (new / cpu / name).symlink_to(f"../root/{name}")
        (new / cpu / "proc" / "cpuinfo").write_text(_cpuinfo(cpu), encoding="utf-8")
    if lacking is None:
        lacking = _counter(new, counting, scratch)
    fetched = _digests(archives) | _digests(counting)
    state = {"wheels": wheels, "uncounted": lacking, "archives": fetched, "files": _digests(new)}
    (new / "tier.json").write_text(json.dumps(state, indent=1), encoding="utf-8")
    progress("fetching the ARM64 tier", total, total)


def _counter(folder: Path, archives: Path, scratch: Path) -> str | None:
    """Make the emulator that counts and try it: why it does not do so on this machine; None where it does."""
    log = scratch / "marks"
    try:
        arm64_counts.fill(folder / arm64_counts.FOLDER, archives, scratch)
        emulator = arm64_counts.emulator(folder / arm64_counts.FOLDER, log)
        command = _emulated(folder, "neon", emulator, ["-I", "-S", "-c", arm64_counts.TRIAL])
        arm64_counts.check(command, environment(dict(os.environ)), log)
    except EdgewrightError as error:
        return f"{str(error).replace(': ', ', ')}: {SETUP} tries again"
    return None


def _fetch_debian(folder: Path, out: Path, counting: Path | None) -> None:
    """Debian's files for ARM64, by an apt whose lists, status and configuration are all in `folder`; into `counting`
    those of this machine's emulator that counts."""
    (folder / "lists" / "partial").mkdir(parents=True)
    (folder / "cache" / "archives" / "partial").mkdir(parents=True)
    (folder / "status").touch()
    own = arm64_counts.debian() if counting else None
    machines = list(dict.fromkeys(["arm64", *filter(None, [own])]))
    source = f"deb [arch={','.join(machines)} signed-by={_KEYRING}] http://deb.debian.org/debian {_SUITE} main\n"
    (folder / "sources.list").write_text(source, encoding="utf-8")
    settings = {
        "Dir::State": folder,
        "Dir::State::lists": folder / "lists",
        "Dir::State::status": folder / "status",
        "Dir::Cache": folder / "cache",
        "Dir::Etc::sourcelist": folder / "sources.list",
        "Dir::Etc::sourceparts": "-",
        "APT::Architecture": "arm64",
        "APT::Sandbox::User": "",
        "Acquire::Languages": "none",
        "Acquire::Retries": "3",
    }
    lines = [f'{key} "{value}";' for key, value in settings.items()]
    lines += [*(f'APT::Architectures:: "{name}";' for name in machines), ""]
    (folder / "apt.conf").write_text("\n".join(lines), encoding="utf-8")
    asked = [(out, ["update", "--error-on=any"]), (out, ["download", *(f"{name}:arm64" for name in _DEBIAN)])]
    if counting:
        asked.append((counting, ["download", *(f"{name}:{own}" for name in arm64_counts.PACKAGES)]))
    for where, words in asked:
        why = "Debian's files could not be fetched from deb.debian.org"
        variables = {**os.environ, "APT_CONFIG": str(folder / "apt.conf"), "LC_ALL": "C"}
        _ran(["apt-get", "-q", *words], why, cwd=where, env=variables)


def _ran(command: Sequence[str | Path], why: str, **options: Any) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    if done.returncode:
        raise MissingTool(f"the ARM64 tier was not installed: {why}: {done.stderr.strip()[-300:]}")


def _cpuinfo(cpu: str) -> str:
    said = {"processor": "0", "Features": _FEATURES[cpu], "CPU implementer": "0x41", "CPU architecture": "8"}
    said |= {"CPU variant": "0x0", "CPU part": _CPU_PART[cpu], "CPU revision": "0"}
    return "".join(f"{key}\t: {value}\n" for key, value in said.items()) + "\n"


def _state(folder: Path) -> dict[str, Any] | None:
    """What `install` wrote down last of all."""
    try:
        found = json.loads((folder / "tier.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _whole(folder: Path, wheels: list[str]) -> bool:
    state = _state(folder)
    if state is None or state.get("wheels") != wheels or "uncounted" not in state:
        return False
    if state["uncounted"] is not None and arm64_counts.lacking() is None:  # what was missing has come
        return False
    found = _digests(folder)
    found.pop("tier.json", None)
    return found == state.get("files")


def _digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file by its path; bytecode is no part of it."""
    found = {}
    for where, _, names in os.walk(folder):
        for path in (Path(where) / name for name in names):
            if not path.is_symlink() and path.suffix != ".pyc":
                with path.open("rb") as file:
                    found[str(path.relative_to(folder))] = hashlib.file_digest(file, "sha256").hexdigest()
    return found
