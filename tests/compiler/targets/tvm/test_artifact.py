"""What is in an artifact: libraries as each platform loads them, parameters as they were packed, honest words."""

from __future__ import annotations

import hashlib
import subprocess

import numpy as np
import pytest

from compiler.targets.tvm import link
from compiler.targets.tvm.target import TvmTarget
from runtime_tests.sessions.tvm import map_parameters
from tests.compiler.targets.tvm import elf, macho
from tests.compiler.targets.tvm.conftest import LINUX, PHONES, TABLE, Artifact

ANDROID, _ = PHONES


def test_manifest_lists_every_library_best_first(everywhere: Artifact) -> None:
    listed = [(entry.triple, entry.variant) for entry in everywhere.runtime.libraries]
    for triple in PHONES:
        assert [variant for name, variant in listed if name == triple] == ["i8mm", "dotprod", "neon"]
    assert all((everywhere.folder / entry.path).is_file() for entry in everywhere.runtime.libraries)


def test_an_app_ships_parameters_and_its_own_platforms_libraries(everywhere: Artifact) -> None:
    """No library of the host or of Linux, none of the other platform, no sources and no example."""
    payload = everywhere.runtime.payload
    assert list(payload) == ["android", "ios"]
    for platform, names in payload.items():
        assert all((everywhere.folder / name).is_file() for name in names)
        libraries = [name for name in names if "libmodel" in name]
        own = {entry.path for entry in everywhere.runtime.libraries if platform in entry.triple}
        assert libraries == sorted(own)
        assert [name for name in names if name not in libraries and "token" not in name] == ["params.bin"]
    assert len(payload["android"]) - len(payload["ios"]) == 2, "three libraries against one archive of three"


@pytest.mark.parametrize("variant", ["neon", "dotprod", "i8mm"])
def test_android_library_loads_on_old_and_new_kernels(everywhere: Artifact, variant: str) -> None:
    library = elf.read(everywhere.folder / ANDROID / f"libmodel-{variant}.so")
    assert library.machine == "aarch64"
    assert library.needed == ["libtvm_runtime.so", "libtvm_ffi.so", "libc.so", "libm.so"]
    assert library.soname == f"libmodel-{variant}.so"
    assert all(alignment == 16384 for alignment in library.alignments)


@pytest.mark.parametrize(
    ("artifact", "triple"), [("everywhere", ANDROID), pytest.param("arm_linux", LINUX, marks=pytest.mark.nightly)]
)
def test_dot_products_are_in_the_machine_code_of_their_variant_only(
    request: pytest.FixtureRequest, artifact: str, triple: str
) -> None:
    folder = request.getfixturevalue(artifact).folder
    found = {
        variant: elf.count_instructions(elf.read(folder / triple / f"libmodel-{variant}.so").code)
        for variant in ("neon", "dotprod", "i8mm")
    }
    assert found["neon"] == {"sdot": 0, "smmla": 0}
    # three shapes of weights, two rows at once for a token and more for many, two halves of a byte for the 4-bit ones
    assert found["dotprod"]["sdot"] > 30 and found["dotprod"]["smmla"] == 0
    assert found["i8mm"]["sdot"] > 10 and found["i8mm"]["smmla"] > 30


def test_ios_archive_holds_every_variant_as_a_system_library(everywhere: Artifact) -> None:
    objects = macho.read(everywhere.folder / "arm64-apple-ios16.0" / "libmodel.a")
    assert all(found.ios == (16, 0) for found in objects)
    for variant in ("neon", "dotprod", "i8mm"):
        own = [found for found in objects if found.name.startswith(f"{variant}-")]
        defined = frozenset[str]().union(*(found.defined for found in own))
        assert f"edgewright_{variant}___tvm_ffi__library_bin" in defined
        assert all(f"edgewright_{variant}_" in symbol for symbol in defined)
        # how ffi.SystemLib finds them, and nothing besides the C library that the README does not name
        undefined = frozenset[str]().union(*(found.undefined for found in own)) - defined
        assert "TVMFFIEnvModRegisterSystemLibSymbol" in undefined
        assert all(symbol.startswith(("TVMFFI", "TVMBackend")) or symbol in link.C_SYMBOLS for symbol in undefined)
    # all of it goes into one app, so nothing may be defined twice
    every = [symbol for found in objects for symbol in found.defined]
    assert len(every) == len(set(every)) > 3 * 20


def test_parameters_are_the_packed_bytes(everywhere: Artifact) -> None:
    job, path = everywhere.job, everywhere.folder / "params.bin"
    data = path.read_bytes()
    digest = everywhere.runtime.params_digest
    assert hashlib.sha256(data[64:]).hexdigest() == digest == data[16:48].hex()
    arrays = map_parameters(path, digest)
    names = data[64 + 64 * len(arrays) :].split(b"\0")[: len(arrays)]
    found = dict(zip((n.decode() for n in names), arrays, strict=True))
    assert all(array.ctypes.data % 64 == 0 for array in arrays)
    np.testing.assert_array_equal(found[f"{TABLE}.codes"], job.weights.packed(TABLE))
    qkv = [f"model.layers.1.self_attn.{m}_proj" for m in "qkv"]
    np.testing.assert_array_equal(found["+".join(qkv) + ".codes"], np.concatenate([job.weights.packed(n) for n in qkv]))
    scales = found["+".join(qkv) + ".scales"]
    assert scales.dtype == np.float16
    np.testing.assert_array_equal(scales.astype(np.float32), np.concatenate([job.weights.scales(n) for n in qkv]))


def test_estimate_is_close_to_what_was_built(everywhere: Artifact) -> None:
    job = everywhere.job
    (estimate,) = TvmTarget().estimate(job)
    size = (everywhere.folder / "params.bin").stat().st_size
    assert 0 <= size - estimate.weight_bytes < 2 * 16384 + 64 * 64
    assert estimate.state_bytes == 2 * 2 * 2 * 32 * 96 * 4
    assert set(estimate.app_bytes) == {"android", "ios"}
    assert all(estimate.weight_bytes < size < estimate.file_bytes for size in estimate.app_bytes.values())


def test_a_prompt_goes_in_chunks(everywhere: Artifact) -> None:
    """What the manifest says of prefill is what its library's memory was planned for."""
    (component,) = everywhere.manifest.components
    assert component.entry("prefill").dimensions["tokens"].high == 16
    assert component.entry("decode").dimensions["tokens"].high == 1


def test_readme_names_the_runtime_and_what_was_not_run(everywhere: Artifact) -> None:
    text = (everywhere.folder / "README.md").read_text()
    assert everywhere.runtime.tvm in text and "TVMBackendParallelLaunch" in text
    assert "**were not run on a phone**" in text and "@" not in text
    assert f'set(TVM_VERSION "{everywhere.runtime.tvm}")' in (everywhere.folder / "CMakeLists.txt").read_text()


def test_an_undefined_symbol_fails_the_link(everywhere: Artifact, tmp_path) -> None:  # type: ignore[no-untyped-def]
    from compiler.targets.tvm import triples

    source = tmp_path / "wanting.c"
    source.write_text("int nobody_has_this(void); int f(void) { return nobody_has_this(); }")
    subprocess.run(
        link.zig("cc", "-target", "aarch64-linux-none", "-fPIC", "-c", str(source), "-o", str(tmp_path / "w.o")),
        check=True,
    )
    with pytest.raises(RuntimeError, match="nobody_has_this"):
        link.shared_library(tmp_path / "w.so", [tmp_path / "w.o"], triples.parse(ANDROID, ("neon",)))
