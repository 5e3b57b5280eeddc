"""A recipe that asks for ARM64: what it needs is said, and a baseline holds the instructions that it executes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from artifacts import MissingTool
from device_farm import arm64_tier
from edgewright import api

from .conftest import RECIPE, Workplace

ARM64 = RECIPE.replace("validate:\n", "validate:\n  arm64: true\n")


@pytest.fixture
def recipe(workplace: Workplace, tmp_path: Path) -> Path:
    (tmp_path / "weights").symlink_to(workplace.folder / "weights")
    (tmp_path / "small.yaml").write_text(ARM64)
    return tmp_path / "small.yaml"


def test_without_the_tier_a_recipe_that_asks_for_it_says_how_to_get_it_before_it_starts(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(MissingTool, match="ARM64 tier cannot run"):
        api.run(recipe, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.nightly
def test_targets_without_a_build_for_arm64_linux_need_no_tier(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    recipe.write_text(ARM64.replace("onnx: {}", "coreml: {}"))
    assert api.run(recipe, out=tmp_path / "other").verdict == "passed"


@pytest.mark.nightly
def test_a_baseline_fails_where_more_instructions_are_executed(recipe: Path, tmp_path: Path, edgewright) -> None:
    arm64_tier.install()
    report = api.run(recipe, out=tmp_path / "out")
    (target,) = report.targets
    counted = [check for check in target.checks if check.unit == "instructions"]
    assert {check.group for check in counted} == {"ARM64 neon", "ARM64 dotprod"} and len(counted) == 4
    where = str(tmp_path / "out" / "small"), "--file", str(tmp_path / "baseline.json")
    assert edgewright("baseline", "update", *where)[0] == 0
    again = api.run(recipe, out=tmp_path / "out", fresh=True)
    assert again.targets[0].reused == () and edgewright("baseline", "check", *where)[0] == 0
    content = json.loads((tmp_path / "baseline.json").read_text())
    figures = content["targets"]["onnx"]["figures"]
    assert figures["ARM64 neon/arm64_neon_exact_max_abs_logit"]["kind"] == "parity"
    figures["ARM64 dotprod/arm64_dotprod_decoder_decode_instructions"]["value"] /= 1.05
    (tmp_path / "baseline.json").write_text(json.dumps(content))
    code, out, _ = edgewright("baseline", "check", *where)
    said = " ".join(out.split())
    assert code == 1 and "✗ onnx ARM64 dotprod: decoder.decode: instructions: " in said and said.count("✗") == 1
