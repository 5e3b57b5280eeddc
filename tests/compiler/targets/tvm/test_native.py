"""What an app does: the C++ example and the C API, on this machine, and built for ARM64 Linux under emulation."""

from __future__ import annotations

import fcntl
import os
import subprocess
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from compiler.targets.tvm.link import zig
from device_farm import arm64
from tests.compiler.conftest import reference_logits
from tests.compiler.targets.tvm.conftest import Artifact, host_variants

PROMPT = [int(t) for t in np.random.default_rng(0).integers(0, 160, 37)]
Floats = NDArray[np.float32]
needs_emulator = pytest.mark.skipif(arm64.missing() is not None, reason=f"ARM64 emulation: {arm64.missing()}")


def compile_program(artifact: Path, program: Path, out: Path, packages: Path, target: str | None = None) -> None:
    """Build edgewright.cc and a program against the TVM in `packages`, as CMakeLists.txt does."""
    libraries = [packages / "tvm" / "lib", packages / "tvm_ffi" / "lib"]
    includes = [artifact / "include", packages / "tvm_ffi/include", packages / "tvm_ffi/3rdparty/dlpack/include"]
    command = zig("c++", *(["-target", target] if target else []), "-std=c++20", "-O1", "-Wall", "-Werror")
    command += [f"-I{folder}" for folder in includes] + [str(artifact / "src" / "edgewright.cc"), str(program)]
    command += ["-o", str(out), *(f"-L{folder}" for folder in libraries)]
    command += ["-Wl,--no-as-needed", "-ltvm_runtime", "-ltvm_ffi", *(f"-Wl,-rpath,{folder}" for folder in libraries)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="session")
def installed() -> Path:
    """The folder of the installed packages."""
    spec = find_spec("tvm")
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parents[1]


@pytest.fixture(scope="session")
def example(everywhere: Artifact, installed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("native") / "example"
    compile_program(everywhere.folder, everywhere.folder / "example" / "example.cc", out, installed)
    return out


@pytest.fixture(scope="session")
def arm_packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """TVM's runtime from its ARM64 wheels, shared by parallel workers."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "arm64-packages"
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "tvm_ffi").exists():
            arm64.wheel_files(f"apache-tvm=={version('apache-tvm')}", "tvm/lib/libtvm_runtime.so", folder)
            arm64.wheel_files(f"apache-tvm-ffi=={version('apache-tvm-ffi')}", "tvm_ffi/", folder)
    return folder


@pytest.fixture(scope="session")
def scores(
    everywhere: Artifact, installed: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, bool], Floats]:
    """scores(variant, exact): logits [tokens, vocabulary] of PROMPT on this machine."""
    folder = tmp_path_factory.mktemp("scores")
    program = folder / "scores"
    compile_program(everywhere.folder, Path(__file__).with_name("scores.cc"), program, installed)

    def run(variant: str, exact: bool) -> Floats:
        library = everywhere.folder / "host" / f"libmodel-{variant}.so"
        out = folder / "logits"
        command = [program, library, everywhere.folder / "params.bin", str(int(exact)), out, *map(str, PROMPT)]
        subprocess.run(command, check=True)
        return np.fromfile(out, np.float32).reshape(len(PROMPT), -1)

    return run


def expected(artifact: Artifact) -> Floats:
    return np.asarray(reference_logits(artifact.job.spec, artifact.job.weights, np.array([PROMPT]))[0], np.float32)


@pytest.mark.parametrize("variant", [v.name for v in host_variants()])
def test_c_api_agrees_with_pytorch(everywhere: Artifact, scores: Callable[[str, bool], Floats], variant: str) -> None:
    reference = expected(everywhere)
    np.testing.assert_allclose(scores(variant, True), reference, atol=1e-4)
    shipped = scores(variant, False)
    assert 1e-4 < np.abs(shipped - reference).max() < 0.5  # activations are rounded, but not more than to 8 bits


def test_example_decodes_greedily(everywhere: Artifact, example: Path) -> None:
    def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run([example, *arguments], capture_output=True, text=True, check=False)

    params = everywhere.folder / "params.bin"
    done = run(everywhere.folder / "host", params, "5", *map(str, PROMPT))
    assert done.returncode == 0, done.stderr
    tokens = [int(line) for line in done.stdout.split()]
    # each made token is the likeliest one after all before it, within the error of int8 activations
    text = np.array([PROMPT + tokens])
    logits = reference_logits(everywhere.job.spec, everywhere.job.weights, text)[0][len(PROMPT) - 1 : -1]
    assert len(tokens) == 5
    assert (logits.max(-1) - logits[np.arange(5), tokens] < 0.5).all()

    assert "outside of the vocabulary" in run(everywhere.folder / "host", params, "1", "160").stderr
    assert "do not fit the context" in run(everywhere.folder / "host", params, "1", *["1"] * 97).stderr
    assert "holds no library for this CPU" in run(everywhere.folder, params, "1", "1").stderr


def test_parameters_of_another_library_are_refused(everywhere: Artifact, example: Path, tmp_path: Path) -> None:
    data = bytearray((everywhere.folder / "params.bin").read_bytes())
    changed = {"another": data[:16] + bytes(32) + data[48:], "cut": data[:70], "text": b"hello" * 100}
    for name, content in changed.items():
        (tmp_path / name).write_bytes(content)
        command = [example, everywhere.folder / "host", tmp_path / name, "1", "1"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 1 and str(tmp_path / name) in done.stderr
    short = tmp_path / "short"
    short.write_bytes(data[: len(data) // 2])
    command = [example, everywhere.folder / "host", short, "1", "1"]
    assert "cut short" in subprocess.run(command, capture_output=True, text=True, check=False).stderr


@needs_emulator
def test_arm64_agrees_with_this_machine(
    everywhere: Artifact, scores: Callable[[str, bool], Floats], arm_packages: Path, tmp_path: Path
) -> None:
    program, out = tmp_path / "scores", tmp_path / "logits"
    source = Path(__file__).with_name("scores.cc")
    compile_program(everywhere.folder, source, program, arm_packages, "aarch64-linux-gnu.2.28")
    libraries = [arm_packages / "tvm" / "lib", arm_packages / "tvm_ffi" / "lib"]
    here = host_variants()[0].name
    for variant in arm64.CPUS:
        for exact in (True, False):
            library = everywhere.folder / "aarch64-linux-gnu" / f"libmodel-{variant}.so"
            command = [program, library, everywhere.folder / "params.bin", str(int(exact)), out, *map(str, PROMPT)]
            done = arm64.run(command, cpu=variant, libraries=libraries)
            assert done.returncode == 0, done.stderr
            found = np.fromfile(out, np.float32).reshape(len(PROMPT), -1)
            # without integer dot products, what ships is the exact path
            same = scores(here, exact or variant == "neon")
            assert np.abs(found - same).max() <= (1e-5 if exact or variant == "neon" else 1e-3)


@needs_emulator
def test_example_picks_the_variant_of_an_emulated_cpu(
    everywhere: Artifact, arm_packages: Path, example: Path, tmp_path: Path
) -> None:
    program = tmp_path / "example"
    source = everywhere.folder / "example" / "example.cc"
    compile_program(everywhere.folder, source, program, arm_packages, "aarch64-linux-gnu.2.28")
    libraries = [arm_packages / "tvm" / "lib", arm_packages / "tvm_ffi" / "lib"]
    for cpu in arm64.CPUS:
        folder = tmp_path / cpu  # only the library that this CPU should take
        folder.mkdir()
        name = f"libmodel-{cpu}.so"
        (folder / name).symlink_to(everywhere.folder / "aarch64-linux-gnu" / name)
        command = [program, folder, everywhere.folder / "params.bin", "3", *map(str, PROMPT)]
        done = arm64.run(command, cpu=cpu, libraries=libraries)
        assert done.returncode == 0, done.stderr
        assert len(done.stdout.split()) == 3
