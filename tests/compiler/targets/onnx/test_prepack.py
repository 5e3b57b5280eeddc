"""Weights packed in the data file: what is written, that answers are the same, that memory is not copied."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from artifacts import Manifest, read_manifest
from artifacts.formats import onnx as formats
from compiler.models.base import Model, read_model
from compiler.plan import plan
from compiler.slots import HALF, Scheme
from compiler.targets import load_target
from compiler.targets.onnx import prepack
from compiler.targets.onnx.options import OnnxOptions
from device_farm import arm64_tier
from edgewright import api, text
from recipes.schema import Recipe
from runtime_tests import vectors
from runtime_tests.sessions.onnx import OnnxSession
from tests.compiler.conftest import MINISTRAL3, Jobs, packed
from tests.compiler.targets.onnx.packages import make_job

SCHEME = Scheme(4, 128)
# 48 MiB as the kernels pack them: what the head's copy takes stands out of a process's memory
WIDE = {**MINISTRAL3, "hidden_size": 1024, "intermediate_size": 3072, "vocab_size": 32768, "num_hidden_layers": 4}


def ministral(**changes: Any) -> Model:
    sizes = {"hidden_size": 128, "intermediate_size": 256, "head_dim": 32, "num_attention_heads": 4}
    return read_model({**MINISTRAL3, **sizes, **changes}, None, 64)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest]:
    folder = tmp_path_factory.mktemp("small")
    job = make_job(ministral(), folder / "weights", SCHEME, prepacked="host")
    return folder / "onnx", packed(job, "onnx", folder / "onnx")


def calls(session: OnnxSession) -> list[Any]:
    """A prompt and five tokens."""
    found = []
    for ids, past in ((np.arange(7), 0), *((np.array([at]), 7 + at) for at in range(5))):
        positions = np.arange(past, past + len(ids))[None].astype(np.int64)
        entry = "decode" if past else "prefill"
        found.append(session.call("decoder", entry, input_ids=ids[None].astype(np.int64), positions=positions))
    return found


def test_copies_lie_behind_the_originals_where_kernels_can_read_them(small: tuple[Path, Manifest]) -> None:
    folder, manifest = small
    runtime = formats.OnnxRuntime.model_validate(manifest.runtime)
    (graph,) = runtime.graphs
    assert graph.prepacked == "model.prepacked.onnx"
    assert runtime.packing is not None
    assert (runtime.packing.wanted, runtime.packing.onnxruntime) == ("host", onnxruntime.__version__)
    assert runtime.payload is not None and {graph.file, graph.prepacked} <= {*runtime.payload["android"]}
    plain, other = (onnx.load(folder / name, load_external_data=False) for name in (graph.file, graph.prepacked))
    originals = max(int(e.value) for t in plain.graph.initializer for e in t.external_data if e.key == "offset")
    records = [
        part.split(";")
        for tensor in other.graph.initializer
        for entry in tensor.external_data
        if entry.key.startswith("prepacked")
        for part in entry.value.split("|")[1:]
    ]
    assert len(records) == 2 * 4 + 1  # projections of two layers in four matrices, and the tied head, once
    assert all(int(offset) % 64 == 0 and int(offset) > originals for offset, _, _ in records)
    for tensor in other.graph.initializer:  # but for the records the graphs are the same
        kept = [entry for entry in tensor.external_data if not entry.key.startswith("prepacked")]
        del tensor.external_data[:]
        tensor.external_data.extend(kept)
    assert other.SerializeToString(deterministic=True) == plain.SerializeToString(deterministic=True)


def test_answers_are_the_same_bit_for_bit(small: tuple[Path, Manifest]) -> None:
    session = OnnxSession(*small)
    session.load()
    first = calls(session)
    assert session.repeated() == 0
    (check,) = _judged(small)
    assert (check.name, check.value, check.verdict) == ("prepacked_differences", 0, "passed")
    for one, other in zip(first, calls(_plain(small)), strict=True):
        np.testing.assert_array_equal(one["logits"], other["logits"])


def _plain(small: tuple[Path, Manifest]) -> OnnxSession:
    session = OnnxSession(*small)
    session.load(plain=True)
    return session


def _judged(package: tuple[Path, Manifest]) -> list[Any]:
    session = OnnxSession(*package)
    session.load()
    calls(session)
    return vectors.repeated(session)


def test_other_answers_are_found(small: tuple[Path, Manifest], tmp_path: Path) -> None:
    """A byte of the packed head changed, its hash left as it is."""
    folder, manifest = small
    session = OnnxSession(folder, manifest)
    changed = tmp_path / "changed"
    changed.mkdir()
    data = bytearray((folder / "model.onnx.data").read_bytes())
    model = onnx.load(folder / "model.prepacked.onnx", load_external_data=False)
    (head,) = (t for t in model.graph.initializer if t.name == "model.embed_tokens.q4")
    record = next(entry.value for entry in head.external_data if entry.key.startswith("prepacked"))
    at = int(record.split("|")[1].split(";")[0])
    data[at : at + 64] = bytes(byte ^ 0x77 for byte in data[at : at + 64])
    (changed / "model.onnx.data").write_bytes(data)
    (changed / "model.onnx").write_bytes((folder / "model.prepacked.onnx").read_bytes())
    session._packed["model.onnx"] = changed / "model.onnx"
    session.load()
    calls(session)
    assert session.repeated() == 6


def test_on_another_processor_the_plain_graphs_are_run(
    small: tuple[Path, Manifest], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, machine = calls(_plain(small)), platform.machine()
    assert "a phone holds as little memory only with copies for its own processor, " in OnnxSession(*small).warnings[0]
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    session = OnnxSession(*small)
    assert not session.packed and f"the packed weights are for {machine} and onnxruntime " in session.warnings[0]
    session.load()
    np.testing.assert_array_equal(calls(session)[-1]["logits"], expected[-1]["logits"])
    assert session.repeated() is None and _judged(small) == []


_HELD = """
import sys, json
from pathlib import Path
from runtime_tests.child import run_load
from runtime_tests.jobs import Job
from artifacts import read_manifest
job = Job(kind="load", artifact=Path(sys.argv[1]), plain=sys.argv[2] == "plain")
run_load(job, read_manifest(job.artifact), lambda event: print(json.dumps(event)))
"""


def test_weights_stay_in_the_file_and_sizes_are_as_planned(tmp_path: Path) -> None:
    model = read_model(WIDE, None, 64)
    job = make_job(model, tmp_path / "weights", SCHEME, prepacked="host")
    plain = replace(job, options=OnnxOptions())
    packed(job, "onnx", tmp_path / "packed")
    packed(plain, "onnx", tmp_path / "plain")
    ((estimate,), (without,)) = (load_target("onnx").estimate(one) for one in (job, plain))
    sizes = [(tmp_path / name / "model.onnx.data").stat().st_size for name in ("packed", "plain")]
    assert sizes[0] <= 2.1 * sizes[1]
    assert sizes[0] - sizes[1] == pytest.approx(without.packed_bytes, rel=0.01)
    assert estimate.file_bytes - without.file_bytes == without.packed_bytes == without.copied_bytes
    assert (estimate.copied_bytes, estimate.weight_bytes) == (0, without.weight_bytes)
    held = [
        json.loads(
            subprocess.run(
                [sys.executable, "-c", _HELD, str(tmp_path / "packed"), form],
                capture_output=True,
                text=True,
                check=True,
            ).stdout
        )["result"]
        for form in ("packed", "plain")
    ]
    assert held[1] > without.copied_bytes
    # what is freed while loading is not all given back at once
    assert held[1] - held[0] > 0.8 * without.copied_bytes


def test_an_app_is_told_how_to_write_them_only_where_it_can(small: tuple[Path, Manifest]) -> None:
    """ONNX Runtime writes copies of less than a megabyte where its kernels read them shifted."""
    page = (small[0] / "README.md").read_text()
    assert "| `model.prepacked.onnx` | `model.onnx` |" in page and "first start" not in page
    large = "\n".join(prepack.section([], None, 2 << 20))
    assert "session.save_external_prepacked_constant_initializers" in large and "with copies" not in large
    assert prepack.section([], None, None) == []


def test_how_onnxruntime_saves_small_copies_itself_is_why_it_is_not_asked_to(
    small: tuple[Path, Manifest], tmp_path: Path
) -> None:
    """When this fails, every package can tell an app how to write them."""
    folder, _ = small
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "model.onnx")
    options.add_session_config_entry("session.save_external_prepacked_constant_initializers", "1")
    options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "model.onnx.data")
    onnxruntime.InferenceSession(str(folder / "model.onnx"), options)
    model = onnx.load(tmp_path / "model.onnx", load_external_data=False)
    records = [e.value for t in model.graph.initializer for e in t.external_data if e.key.startswith("prepacked")]
    assert any(int(record.split("|")[1].split(";")[0]) % 64 for record in records)


def test_where_it_cannot_be_had_it_is_refused(
    ministral: Path, tmp_path: Path, jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    (refused,) = load_target("onnx").refusals(jobs(ministral, OnnxOptions(prepacked="host"), HALF))
    assert refused == "onnx: prepacked is for matrices of 4 or 8 bits, which this model has not; leave it out"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    job = jobs(ministral, OnnxOptions(prepacked="dotprod"), Scheme(4, 32))
    (refused,) = load_target("onnx").refusals(job)
    assert refused == (
        "onnx: prepacked: dotprod cannot be made here (not installed: edgewright farm setup); take prepacked: host, or "
        "leave it out"
    )


@pytest.mark.nightly
def test_copies_for_a_phones_processor_are_mapped_there(ministral: Path, tmp_path: Path) -> None:
    """By the ARM64 build of the runtime on an emulated processor: it loads the packed graph and answers the same."""
    (tmp_path / "recipe.yaml").write_text(
        f"name: small\ncheckpoint: {{path: {ministral}}}\n"
        "quantize:\n  rules:\n    - {match: '*', bits: 4, group: 32}\n"
        "context: {max_tokens: 64}\ntargets: {onnx: {prepacked: dotprod}}\n"
    )
    arm64_tier.install()
    report = api.run(tmp_path / "recipe.yaml", out=tmp_path / "out", validate=False)
    packing = read_manifest(Path(report.folder) / "onnx").runtime["packing"]
    assert (packing["wanted"], packing["machine"]) == ("dotprod", "aarch64") and "asimddp" in packing["instructions"]
    judged = api.validate(Path(report.folder) / "onnx", profiles=["android-6gb"], arm64=True)
    checks = {check.name: check for check in judged.checks}
    assert checks["arm64_dotprod_prepacked_differences"].value == 0
    assert checks["arm64_dotprod_prepacked_differences"].verdict == "passed"


def test_a_run_reports_memory_with_and_without_and_a_plan_both_sizes(ministral: Path, tmp_path: Path) -> None:
    """The recipe as users write it, through the real validation."""
    (tmp_path / "recipe.yaml").write_text(
        f"name: small\ncheckpoint: {{path: {ministral}}}\n"
        "quantize:\n  rules:\n    - {match: '*', bits: 4, group: 32}\n"
        "context: {max_tokens: 64}\ntargets: {onnx: {prepacked: host}}\n"
    )
    report = api.run(tmp_path / "recipe.yaml", out=tmp_path / "out")
    (target,) = report.targets
    assert target.verdict == "passed", target.checks
    (check,) = (check for check in target.checks if check.name == "prepacked_differences")
    assert (check.value, check.verdict) == (0, "passed")
    line = text.packed(target)
    assert line is not None and line.startswith("anonymous memory after the load, states included: ")
    assert line in (tmp_path / "out/small/report.md").read_text()
    (item,) = plan(api.load_recipe(tmp_path / "recipe.yaml"), MINISTRAL3)
    (other,) = plan(_without(api.load_recipe(tmp_path / "recipe.yaml")), MINISTRAL3)
    assert item.file_bytes > 2 * other.file_bytes and item.held_bytes < other.held_bytes
    sizes = f"{text.size(other.file_bytes)} plain, {text.size(item.file_bytes)}"
    needs = f"{text.size(item.held_bytes)} of least need instead of {text.size(other.held_bytes)}"
    for words, (said,) in (("as the recipe says", text.packable(item)), ("with prepacked: host", text.packable(other))):
        assert said.startswith(f"{sizes} {words}") and said.endswith(needs)


def _without(recipe: Recipe) -> Recipe:
    return recipe.model_copy(update={"targets": {"onnx": OnnxOptions()}})


def test_matrices_with_a_scale_per_row_and_components_of_their_own(toy: Path, jobs: Jobs, tmp_path: Path) -> None:
    """DynamicQuantizeMatMul's weights in a component without states, MatMulNBits' in the one with."""
    job = jobs(toy, OnnxOptions(prepacked="host"), Scheme(8, 0))
    manifest = packed(job, "onnx", tmp_path / "package")
    graphs = formats.OnnxRuntime.model_validate(manifest.runtime).graphs
    kinds = set()
    for graph in graphs:
        assert graph.prepacked is not None, graph.file
        model = onnx.load(tmp_path / "package" / graph.prepacked, load_external_data=False)
        known = {t.name for t in model.graph.initializer if any(e.key == "prepacked_0" for e in t.external_data)}
        kinds |= {node.op_type for node in model.graph.node if known & {*node.input}}
    assert kinds == {"MatMulNBits", "DynamicQuantizeMatMul"}
    session = OnnxSession(tmp_path / "package", manifest)
    session.load()
    random = np.random.default_rng(0)
    for _ in range(3):
        image = random.standard_normal((1, 3, 16, 16), np.float32)
        features = next(iter(session.call("cell", "step", image=image).values()))
        session.call("head", "render", features=features)
    assert session.repeated() == 0
