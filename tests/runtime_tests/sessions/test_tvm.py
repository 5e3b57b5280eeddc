"""The TVM session, in a child process as it is used: parity by the artifact's own gates, memory by kind, refusals."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from artifacts import EdgewrightError, read_manifest, silent, staged, write_manifest
from artifacts.formats.tvm import Library
from compiler import pipeline
from compiler.checkpoint import Checkpoint
from compiler.expectations import write_vectors
from edgewright.api import recipe_type
from runtime_tests.drivers.text import Decoder
from runtime_tests.jobs import Job
from runtime_tests.process import child_environment, run_child
from runtime_tests.sessions import make_session
from runtime_tests.sessions.tvm import best_library, map_parameters
from tests.compiler.conftest import building_here

TINY = Path(__file__).parents[3] / "recipes" / "checkpoints" / "tiny-ministral3"
RULES: Mapping[str, list[dict[str, Any]]] = {
    "int4": [{"match": "model.embed_tokens", "bits": 8, "group": 32}, {"match": "*", "bits": 4, "group": 32}],
    "int8": [{"match": "*", "bits": 8, "group": 32}],
}


@pytest.fixture(scope="module", params=["int4", pytest.param("int8", marks=pytest.mark.nightly)])
def package(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained tiny checkpoint as a TVM artifact of the best library for this machine, built as recipes are."""
    out = tmp_path_factory.mktemp("tvm")
    content = {
        "name": "tiny",
        "checkpoint": {"path": str(TINY)},
        "quantize": {"rules": RULES[request.param]},
        "context": {"max_tokens": 512},
        "targets": {"tvm": {"triples": []}},
    }
    recipe, checkpoint = recipe_type().model_validate(content), Checkpoint(TINY)
    with building_here(0), staged(out / "tvm") as folder:
        done = pipeline.quantize(recipe, checkpoint, "here", None, out / "quantized", silent)
        draft = pipeline.build(recipe, "tvm", done, checkpoint, folder, silent)
        write_vectors(draft, done, checkpoint, folder, silent)
        write_manifest(folder, draft)
    return out / "tvm"


def test_parity_of_the_trained_checkpoint(package: Path) -> None:
    ended = run_child(Job(kind="quality", artifact=package), lambda event: None)
    assert ended.exit_code == 0, ended.stderr_tail
    found = {figure["name"]: figure["value"] for figure in ended.result["figures"]}
    assert found["exact_max_abs_logit"] <= 1e-4 and found["decode_exact_max_abs_logit"] <= 1e-4
    assert found["shipped_mean_kl"] <= 2e-3 and found["decode_shipped_mean_kl"] <= 2e-3
    assert found["shipped_top1"] >= 0.97
    assert found["golden_positions_past_original"] > 0


def test_memory_is_the_cache_and_little_more(package: Path) -> None:
    """Parameters stay the file's: a load adds the cache to anonymous memory and at most 40 MB, here under 1 MB, and
    running adds the activations of a chunk. Half of the parameters, in any precision, would be noticed."""
    program = (
        "import sys, json; from pathlib import Path; from artifacts import read_manifest\n"
        "from device_farm.memory import read_split; from runtime_tests.sessions import make_session\n"
        "from runtime_tests.drivers.text import Decoder\n"
        "import numpy as np; path = Path(sys.argv[1]); session = make_session(path, read_manifest(path))\n"
        "decoder = Decoder(session, read_manifest(path).components[0], 512)\n"
        "before = read_split(); session.load(); loaded = read_split()\n"
        "decoder.prefill(np.arange(200)); decoder.decode(3); ran = read_split()\n"
        "print(json.dumps([s.anonymous - before.anonymous for s in (loaded, ran)] + [ran.file - before.file]))"
    )
    command = [sys.executable, "-c", program, str(package)]
    done = subprocess.run(command, capture_output=True, text=True, env=child_environment(), check=True)
    loaded, ran, mapped = json.loads(done.stdout)
    states: Any = read_manifest(package).runtime["states"]
    cache = 4 * sum(int(np.prod(state["shape"])) for state in states)
    activations = 128 * 4 * (3 * 768 + 4096)
    size = (package / "params.bin").stat().st_size
    spare = min(40e6, size / 2)
    assert cache <= loaded <= cache + spare
    assert ran <= cache + activations + spare
    assert mapped > size * 0.9  # they were read, through the map


IDS = np.random.default_rng(3).integers(0, 4096, 300)


@pytest.mark.parametrize("exact", [True, False])
def test_prefill_and_decode_give_the_rows_of_all_logits(package: Path, exact: bool) -> None:
    """In chunks of the 128 tokens that the manifest names, and one by one. A reset forgets all that was before."""
    session = make_session(package, read_manifest(package))
    session.load(exact=exact)
    decoder = Decoder(session, read_manifest(package).components[0], 512)
    rows = [decoder.prefill(IDS[:280]), *(decoder.decode(int(token)) for token in IDS[280:])]
    logits = decoder.logits(IDS)
    np.testing.assert_allclose(np.stack(rows), logits[279:], atol=1e-4 if exact else 1e-3)
    decoder.prefill(IDS[150:])
    np.testing.assert_array_equal(decoder.prefill(IDS[:280]), rows[0])
    assert session.stand_in is None and session.footprint() == [] and session.warnings == ()


def test_calls_that_would_leave_the_tensors_are_refused(package: Path) -> None:
    session = make_session(package, read_manifest(package))
    session.load()

    def call(ids: list[int], first: int, entry: str = "prefill") -> Any:
        positions = np.arange(first, first + len(ids))[None]
        return session.call("decoder", entry, input_ids=np.array([ids]), positions=positions)

    kept = call([1, 2, 3], 0)["logits"]
    copy = kept.copy()
    for ids, first, entry, words in (
        ([4096], 3, "decode", "input_ids from 4096 to 4096 do not lie in 0 to 4095"),
        ([-1], 3, "decode", "input_ids from -1"),
        ([1], 512, "decode", "positions from 512 to 512 do not lie in 0 to 511"),
        ([1], 4, "decode", "positions go on from 3 one by one, not from 4"),
        ([1, 2], 3, "decode", "tokens is 2; it takes 1 to 1"),
        ([1] * 129, 0, "prefill", "tokens is 129; it takes 1 to 128"),
        ([1] * 129, 0, "score", "tokens is 129; it takes 1 to 128"),
    ):
        with pytest.raises(EdgewrightError, match=words):
            call(ids, first, entry)
    call([5], 3, "decode")
    np.testing.assert_array_equal(kept, copy)  # results are the caller's
    again = call([3], 2, "decode")["logits"]  # back to a position that is in the cache
    np.testing.assert_allclose(again, copy, atol=1e-3)


def test_other_parameters_are_refused(package: Path, tmp_path: Path) -> None:
    digest: Any = read_manifest(package).runtime["params_digest"]
    data = (package / "params.bin").read_bytes()
    changed = tmp_path / "params.bin"
    for content, words in (
        (data[:16] + bytes(32) + data[48:], "was not made for this library"),
        (data[:-4096], "cut short"),
        (b"no parameters" * 10, "not a parameter file"),
        (b"", "not a parameter file"),
    ):
        changed.write_bytes(content)
        with pytest.raises(EdgewrightError, match=words):
            map_parameters(changed, digest)


def test_the_best_library_that_the_cpu_runs() -> None:
    def library(variant: str, *features: str, triple: str = "host") -> Library:
        return Library(triple=triple, variant=variant, path=f"{variant}.so", features=features)

    wide, narrow = library("wide", "avx512f", "avx512_vnni"), library("narrow", "avx2")
    listed = (library("phone", triple="aarch64-linux-android24"), wide, narrow)
    assert best_library(listed, frozenset({"avx512f", "avx512_vnni", "avx2"})) == wide
    assert best_library(listed, frozenset({"avx512f", "avx2"})) == narrow
    with pytest.raises(EdgewrightError, match="it would need avx512f avx512_vnni or avx2"):
        best_library(listed, frozenset({"sse2"}))
