"""A family of two components with a state, which lives in one file of the tests, through everything that users do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.compiler.conftest import know_plugins, write_toy

ROOT = Path(__file__).parents[2]
TARGETS = ("onnx", "coreml", "mlx", "tvm")
RECIPE = """\
name: toy
checkpoint: {path: toy}
quantize:
  rules:
    - {match: head.middle, bits: 8, group: 32, method: gptq}
    - {match: "*", bits: 4, group: 32, method: gptq}
context: {max_tokens: 2}
targets: {onnx: {}, coreml: {}, mlx: {}, tvm: {triples: [arm64-apple-ios16.0], features: [dotprod]}}
validate:
  profiles: {iphone-12: {peak_memory: 100MB}}
"""


def command(place: Path, *arguments: str) -> Any:
    """What `edgewright` prints as JSON, with the tests' families beside ours."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests" / "plugins")])}
    done = subprocess.run(
        [sys.executable, "-m", "edgewright", *arguments, "--json"],
        cwd=place,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy")
    know_plugins()
    write_toy(folder / "toy")
    (folder / "toy.yaml").write_text(RECIPE)
    return folder


def test_a_plan_speaks_of_each_component(place: Path) -> None:
    found = {item["target"]: item for item in command(place, "plan", "toy.yaml")["targets"]}
    assert found.keys() == set(TARGETS)
    for item in found.values():
        cell, head = item["components"]
        assert (cell["component"], head["component"]) == ("cell", "head")
        assert cell["state_bytes"] > 0 == head["state_bytes"]
        assert item["weight_bytes"] == cell["weight_bytes"] + head["weight_bytes"]


@pytest.mark.parametrize("targets", [("onnx",), pytest.param(TARGETS, marks=pytest.mark.nightly)], ids="+".join)
def test_it_runs_and_is_proven(place: Path, targets: tuple[str, ...]) -> None:
    report = command(place, "run", "toy.yaml", *(word for name in targets for word in ("--target", name)))
    assert report["verdict"] == "passed" and [item["target"] for item in report["targets"]] == [*targets]
    for target in report["targets"]:
        names = {check["label"] for check in target["checks"]}
        kinds = ("exact: max |Δ|", "as shipped: RMS Δ")
        assert names == {f"{entry}, {kind}" for entry in ("cell.step", "head.render") for kind in kinds}
        assert all(check["verdict"] == "passed" and check["value"] < check["limit"] for check in target["checks"])
        (phone,) = target["phones"]
        assert phone["checks"][0]["verdict"] == "fits"
        if target["target"] == "coreml":
            assert phone["checks"][0]["obtained"] == "modelled"
        else:
            assert [phase["phase"] for phase in phone["run"]["phases"]] == ["load", "first", "steady"]
            assert phone["run"]["context_tokens"] is None
        assert sum(group["tensors"] for group in target["quantization"] if group["method"] == "gptq") == 5
        manifest = json.loads((place / target["artifact"] / "edgewright.json").read_text())
        assert [component["name"] for component in manifest["components"]] == ["cell", "head"]
        assert manifest["driver"] == {"name": "plain", "constants": {"image_size": 16}}
