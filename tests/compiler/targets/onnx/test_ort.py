"""Small components in the ORT format: what is written, that it answers as the graphs do, and where it cannot be had."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from artifacts import read_manifest
from compiler.models.base import read_model
from compiler.slots import HALF, Scheme
from compiler.targets import load_target
from compiler.targets.base import Job
from compiler.targets.onnx.options import OnnxOptions
from compiler.targets.onnx.ort import MOST_BYTES
from edgewright import api
from recipes.schema import Recipe
from tests.compiler.conftest import Jobs, packed
from tests.compiler.targets.test_liveportrait import adopted

OPERATORS = "ort/required_operators_and_types.config"


def shipped() -> Recipe:
    return api.load_recipe("liveportrait-int8")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The shipped recipe over the narrow geometry, for ONNX Runtime alone, with its runtime test."""
    folder = tmp_path_factory.mktemp("ort")
    checkpoint = adopted(folder)
    rules = "\n".join(
        f"    - {{match: '{rule.match}', bits: {rule.bits}, group: channel}}" for rule in shipped().quantize.rules
    )
    (folder / "recipe.yaml").write_text(
        f"name: narrow\ncheckpoint: {{path: {checkpoint}}}\nquantize:\n  rules:\n{rules}\ncontext: {{max_tokens: 2}}\n"
        "targets: {onnx: {ort: true}}\n"
    )
    return api.run(folder / "recipe.yaml", out=folder)


def artifact(report: Any) -> Path:
    return Path(report.targets[0].artifact)


def test_validation_holds_every_file_to_the_graph_beside_it(run: Any) -> None:
    """Loaded in real sessions, bit for bit; and that no phone shows it in real time is said where the verdict is."""
    (target,) = run.targets
    same = {check.name: check for check in target.checks if check.name.endswith("_ort_differences")}
    names = ["appearance_extract", "motion_estimate", "warping_warp", "generator_generate"]
    names += [f"retargeting_{entry}" for entry in ("stitch", "eyes", "lips")]
    assert set(same) == {f"{name}_ort_differences" for name in names}
    assert all(check.verdict == "passed" for check in target.checks), target.checks


def test_files_answer_as_the_graphs_and_hold_their_weights(run: Any) -> None:
    folder = artifact(run)
    graphs = {graph["file"]: graph for graph in read_manifest(folder).runtime["graphs"]}  # type: ignore[index, union-attr]
    graph = graphs["warping.warp.onnx"]
    alone = folder.parent / "alone.ort"
    alone.write_bytes((folder / graph["ort"]).read_bytes())  # with nothing beside it
    sessions = [
        onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        for path in (folder / graph["file"], alone)
    ]
    random = np.random.default_rng(0)
    given = {i.name: random.standard_normal(i.shape, np.float32) for i in sessions[0].get_inputs()}
    first, second = (session.run(["warped"], given)[0] for session in sessions)
    np.testing.assert_allclose(second, first, atol=1e-5 * np.abs(first).max())
    # weights stay in 8 bits
    assert alone.stat().st_size < 1.2 * (folder / "warping.onnx.data").stat().st_size + 200_000


def test_operators_are_listed_without_paths_and_an_app_is_told(run: Any) -> None:
    folder = artifact(run)
    lines = (folder / OPERATORS).read_text().splitlines()
    assert lines[0] == "# Generated from model/s:" and "# - warping.warp.ort" in lines
    operators = re.findall(r"[;,]([A-Z]\w+)", "\n".join(line for line in lines if line.startswith("ai.onnx;")))
    assert {"Conv", "GridSample", "DequantizeLinear", "DepthToSpace"} <= set(operators)
    assert str(folder) not in (folder / OPERATORS).read_text()
    readme = (folder / "README.md").read_text()
    assert "| `ort/warping.warp.ort` | `warping.warp.onnx` |" in readme and OPERATORS in readme
    runtime = read_manifest(folder).runtime
    assert not any(file.startswith("ort/") for file in runtime["payload"]["android"])  # type: ignore[index, union-attr, call-overload]


def test_another_answer_is_found(run: Any, tmp_path: Path) -> None:
    """One weight of the ORT form changed, the digests of the folder with it."""
    from artifacts.formats import vectors
    from runtime_tests.sessions import make_session
    from runtime_tests.vectors import _formed

    folder = artifact(run)
    session = make_session(folder, read_manifest(folder))
    session.load()
    file = next(path for path in session._ort.values() if path.name == "retargeting.lips.ort")  # type: ignore[attr-defined]
    changed = tmp_path / "changed.ort"
    content = bytearray(file.read_bytes())
    at = bytes(content).index(_last_bias(folder))
    content[at : at + 4] = np.float32(9).tobytes()
    changed.write_bytes(content)
    session._ort["retargeting.lips.onnx"] = changed  # type: ignore[attr-defined]
    manifest = read_manifest(folder)
    expected = vectors.read(folder / vectors.VECTORS, manifest.components)
    found = {check.name: check for check in _formed(session, expected, manifest.components)}
    assert found["retargeting_lips_ort_differences"].verdict == "failed"
    assert found["retargeting_eyes_ort_differences"].verdict == "passed"


def _last_bias(folder: Path) -> bytes:
    from compiler.quantize.packed import PackedWeights

    weights = PackedWeights(folder.parent / "quantized")
    return bytes(weights.rows("stitching_retargeting_module.retarget_mouth.mlp.4.bias").astype(np.float32).tobytes())


def test_large_components_stay_as_they_are() -> None:
    recipe = shipped()
    model = read_model(json.loads(recipe.resolve(str(recipe.checkpoint.config)).read_text()), None, 2)
    schemes = {slot.name: Scheme(8, 0) for slot in model.slots if not slot.is_vector}
    sides = [
        load_target("onnx").estimate(Job("one", model, schemes, OnnxOptions(ort=wanted))) for wanted in (False, True)
    ]
    for without, beside in zip(*sides, strict=True):
        doubled = without.weight_bytes <= MOST_BYTES
        assert doubled == (without.component not in ("warping", "generator"))
        assert beside.file_bytes == without.file_bytes + doubled * without.weight_bytes
        assert beside.app_bytes == without.app_bytes and beside.weight_bytes == without.weight_bytes


def test_where_it_cannot_be_had_it_is_refused(ministral: Path, jobs: Jobs, toy: Path, tmp_path: Path) -> None:
    with_states = jobs(ministral, OnnxOptions(ort=True), HALF)
    assert load_target("onnx").refusals(with_states) == [
        "onnx: ort: true is not for a model that is driven as 'text'; leave it out"
    ]
    of_toy = jobs(toy, OnnxOptions(ort=True), HALF)
    packed(of_toy, "onnx", tmp_path / "package")
    assert [path.name for path in sorted((tmp_path / "package" / "ort").iterdir())] == [
        "head.render.ort",
        "required_operators_and_types.config",
    ]
    cell = dataclasses.replace(of_toy.model, components=of_toy.model.components[:1])
    (refused,) = load_target("onnx").refusals(dataclasses.replace(of_toy, model=cell))
    assert refused.startswith("onnx: ort: true is for components without states of at most 32 MiB, which this model")
