"""What an app does: the C++ example and the C API, on this machine, and built for ARM64 Linux under emulation."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from compiler.targets.tvm.link import zig
from device_farm import arm64
from tests.compiler.conftest import shared_folder
from tests.compiler.targets.tvm.conftest import LINUX, Artifact, host_variants, reference_logits

PROMPT = [int(t) for t in np.random.default_rng(0).integers(0, 160, 37)]
MADE = 24
ARM = "aarch64-linux-gnu.2.28"
Floats = NDArray[np.float32]
Scores = Callable[[str, bool, list[int]], Floats]
needs_emulator = pytest.mark.skipif(arm64.missing() is not None, reason=f"ARM64 emulation: {arm64.missing()}")


@dataclass(frozen=True)
class Programs:
    """The artifact's example, and `scores.cc`, which prints what the C API gives for every token."""

    example: Path
    scores: Path


def build_programs(artifact: Path, out: Path, packages: Path, target: str | None = None) -> Programs:
    """Compile edgewright.cc and link it with each program against the TVM in `packages`, as CMakeLists.txt does.

    target: zig's name of one that is not this machine; here, the machine's own C++ compiler where it has one.
    """
    found = Programs(out / "example", out / "scores")
    if found.scores.exists():
        return found
    here = shutil.which("c++") if target is None else None
    compiler = [here] if here else zig("c++", *(["-target", target] if target else []))
    folders = [artifact / "include", packages / "tvm_ffi/include", packages / "tvm_ffi/3rdparty/dlpack/include"]
    flags = ["-std=c++20", "-O1", "-Wall", "-Werror", *(f"-I{folder}" for folder in folders)]
    libraries = [packages / "tvm" / "lib", packages / "tvm_ffi" / "lib"]
    linked = [*(f"-L{folder}" for folder in libraries), *(f"-Wl,-rpath,{folder}" for folder in libraries)]
    linked += ["-Wl,--no-as-needed", "-ltvm_runtime", "-ltvm_ffi"]
    library = out / "edgewright.o"
    example, scores = artifact / "example" / "example.cc", Path(__file__).with_name("scores.cc")
    for command in (
        [*flags, "-c", artifact / "src" / "edgewright.cc", "-o", library],
        [*flags, example, library, "-o", found.example, *linked],
        [*flags, scores, library, "-o", found.scores, *linked],
    ):
        done = subprocess.run([*compiler, *command], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    return found


@pytest.fixture(scope="session")
def programs(everywhere: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Programs:
    """For this machine, against the installed packages."""
    spec = find_spec("tvm")
    assert spec is not None and spec.origin is not None
    with shared_folder(tmp_path_factory, "tvm-programs") as folder:
        return build_programs(everywhere.folder, folder, Path(spec.origin).parents[1])


@pytest.fixture(scope="session")
def arm_packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """TVM's runtime from its ARM64 wheels."""
    with shared_folder(tmp_path_factory, "tvm-arm64-packages") as folder:
        if not (folder / "tvm_ffi").exists():
            arm64.wheel_files(f"apache-tvm=={version('apache-tvm')}", "tvm/lib/libtvm_runtime.so", folder)
            arm64.wheel_files(f"apache-tvm-ffi=={version('apache-tvm-ffi')}", "tvm_ffi/", folder)
    return folder


@pytest.fixture(scope="session")
def arm_programs(arm_linux: Artifact, arm_packages: Path, tmp_path_factory: pytest.TempPathFactory) -> Programs:
    """For ARM64 Linux."""
    with shared_folder(tmp_path_factory, "tvm-arm64-programs") as folder:
        return build_programs(arm_linux.folder, folder, arm_packages, ARM)


@pytest.fixture
def scores(everywhere: Artifact, programs: Programs, tmp_path: Path) -> Scores:
    """scores(variant, exact, tokens): logits [tokens, vocabulary] on this machine."""

    def run(variant: str, exact: bool, tokens: list[int]) -> Floats:
        library, out = everywhere.folder / "host" / f"libmodel-{variant}.so", tmp_path / "logits"
        command = [programs.scores, library, everywhere.folder / "params.bin", str(int(exact)), out, *map(str, tokens)]
        subprocess.run(command, check=True)
        return np.fromfile(out, np.float32).reshape(len(tokens), -1)

    return run


def expected(artifact: Artifact) -> Floats:
    return np.asarray(reference_logits(artifact.job, np.array(PROMPT)), np.float32)


def unexplained(made: list[int], exact: Floats, shipped: Floats) -> list[int]:
    """The steps at which a greedy token is not the exact path's and rounded activations do not explain it.

    exact, shipped: logits that each step chose from. An error of at most e on every logit can turn the order of two
    tokens only where they are less than 2 e apart.
    """
    largest = np.abs(shipped - exact).max()
    best = np.sort(exact, axis=-1)
    close = best[:, -1] - best[:, -2] < 2 * largest
    return [i for i, token in enumerate(made) if token != exact[i].argmax() and not close[i]]


@pytest.mark.parametrize("variant", [v.name for v in host_variants()])
def test_c_api_agrees_with_pytorch(everywhere: Artifact, scores: Scores, variant: str) -> None:
    reference = expected(everywhere)
    np.testing.assert_allclose(scores(variant, True, PROMPT), reference, atol=1e-4)
    shipped = scores(variant, False, PROMPT)
    assert 1e-4 < np.abs(shipped - reference).max() < 0.5  # activations are rounded, but not more than to 8 bits


def test_example_decodes_greedily(everywhere: Artifact, programs: Programs, scores: Scores) -> None:
    def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run([programs.example, *arguments], capture_output=True, text=True, check=False)

    params = everywhere.folder / "params.bin"
    done = run(everywhere.folder / "host", params, str(MADE), *map(str, PROMPT))
    assert done.returncode == 0, done.stderr
    made = [int(line) for line in done.stdout.split()]
    assert len(made) == MADE
    variant, chosen_from = host_variants()[0].name, slice(len(PROMPT) - 1, -1)
    exact, shipped = (scores(variant, precise, PROMPT + made)[chosen_from] for precise in (True, False))
    assert unexplained(made, exact, shipped) == []
    # the rule has teeth here: at a third of these steps even the second best token would have been noticed
    second = [int(t) for t in np.argsort(exact, axis=-1)[:, -2]]
    assert len(unexplained(second, exact, shipped)) >= MADE // 4

    assert "outside of the vocabulary" in run(everywhere.folder / "host", params, "1", "161").stderr
    assert "do not fit the context" in run(everywhere.folder / "host", params, "1", *["1"] * 97).stderr
    assert "holds no library for this CPU" in run(everywhere.folder, params, "1", "1").stderr


def test_parameters_of_another_library_are_refused(everywhere: Artifact, programs: Programs, tmp_path: Path) -> None:
    data = bytearray((everywhere.folder / "params.bin").read_bytes())
    changed = {"another": data[:16] + bytes(32) + data[48:], "cut": data[:70], "text": b"hello" * 100}
    for name, content in changed.items():
        (tmp_path / name).write_bytes(content)
        command = [programs.example, everywhere.folder / "host", tmp_path / name, "1", "1"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 1 and str(tmp_path / name) in done.stderr
    short = tmp_path / "short"
    short.write_bytes(data[: len(data) // 2])
    command = [programs.example, everywhere.folder / "host", short, "1", "1"]
    assert "cut short" in subprocess.run(command, capture_output=True, text=True, check=False).stderr


@pytest.mark.nightly
@needs_emulator
def test_arm64_agrees_with_this_machine(
    arm_linux: Artifact, scores: Scores, arm_programs: Programs, arm_packages: Path, tmp_path: Path
) -> None:
    out, libraries = tmp_path / "logits", [arm_packages / "tvm" / "lib", arm_packages / "tvm_ffi" / "lib"]
    same = {exact: scores(host_variants()[0].name, exact, PROMPT) for exact in (True, False)}
    for variant in arm64.CPUS:
        for exact in (True, False):
            library = arm_linux.folder / LINUX / f"libmodel-{variant}.so"
            arguments = [library, arm_linux.folder / "params.bin", str(int(exact)), out, *map(str, PROMPT)]
            done = arm64.run([arm_programs.scores, *arguments], cpu=variant, libraries=libraries)
            assert done.returncode == 0, done.stderr
            found = np.fromfile(out, np.float32).reshape(len(PROMPT), -1)
            # without integer dot products, what ships is the exact path
            alike = exact or variant == "neon"
            assert np.abs(found - same[alike]).max() <= (1e-5 if alike else 1e-3)


@pytest.mark.nightly
@needs_emulator
def test_example_picks_the_variant_of_an_emulated_cpu(
    arm_linux: Artifact, arm_programs: Programs, arm_packages: Path, tmp_path: Path
) -> None:
    libraries = [arm_packages / "tvm" / "lib", arm_packages / "tvm_ffi" / "lib"]
    for cpu in arm64.CPUS:
        folder = tmp_path / cpu  # only the library that this CPU should take
        folder.mkdir()
        name = f"libmodel-{cpu}.so"
        (folder / name).symlink_to(arm_linux.folder / LINUX / name)
        command = [arm_programs.example, folder, arm_linux.folder / "params.bin", "3", *map(str, PROMPT)]
        done = arm64.run(command, cpu=cpu, libraries=libraries)
        assert done.returncode == 0, done.stderr
        assert len(done.stdout.split()) == 3
