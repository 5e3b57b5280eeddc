"""The quickstarts of avatars, on the trained checkpoints that ship: judged on speech that nothing was trained on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import av
import pytest

from artifacts.media.clips import CLIPS
from edgewright import api


def ran(name: str, out: Path) -> Any:
    """Built and judged by the recipe's own limits, without phones."""
    recipe = api.load_recipe(name)
    validation = recipe.validation.model_copy(update={"profiles": {}})
    return api.run(recipe.model_copy(update={"validation": validation}), out=out, targets=["onnx"])


def found(report: Any) -> dict[str, Any]:
    (target,) = report.targets
    return {check.name: check for check in target.checks} | {f"{figure.name}.": figure for figure in target.figures}


@pytest.fixture(scope="module")
def face(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return ran("quickstart-avatar", tmp_path_factory.mktemp("face"))


@pytest.mark.nightly
def test_int4_draws_as_near_to_the_truth_as_float32(face: Any) -> None:
    assert face.verdict == "passed"
    said = found(face)
    assert (said["psnr_drop"].verdict, said["psnr_drop"].limit, said["psnr_drop"].unit) == ("passed", 0.1, "dB")
    assert said["psnr_drop"].obtained == "measured"
    assert said["lip_closure"].verdict == "passed" and said["lip_closure"].value >= 0.9
    assert said["psnr."].value > 28 and said["psnr_to_original."].value > 35
    bits = {group.bits: group.parameters for group in face.targets[0].quantization}
    assert bits[4] > bits.get(8, 0) and bits[4] > bits[16]
    assert said["host_first_frame."].value > 0


@pytest.mark.nightly
def test_int8_activations_draw_as_near_to_the_truth_with_the_measured_tail(tmp_path: Path) -> None:
    report = ran("quickstart-avatar-int8", tmp_path)
    assert report.verdict == "passed"
    said = found(report)
    assert said["psnr_drop"].value <= 0.1 == said["psnr_drop"].limit
    assert said["lip_closure"].verdict == "passed" and said["lip_closure"].value >= 0.9
    costs = json.loads((Path(report.folder) / "onnx" / "quantization.json").read_text())["activations"]
    (drawn,) = (cost for cost in costs if cost["component"] == "renderer")
    assert drawn["snr_db"] >= 46 > drawn["all_snr_db"], "without the tail it would be worse"
    assert 0 < len(drawn["kept"]) < drawn["of"] // 2 and "unet.outc.conv" in drawn["kept"]


@pytest.mark.nightly
def test_the_report_names_a_film_of_original_quantized_and_compiled(face: Any) -> None:
    folder = Path(face.folder)
    (target,) = face.targets
    assert target.film == "onnx.mp4" and f"[{target.film}]({target.film})" in (folder / "report.md").read_text()
    assert json.loads((folder / "report.json").read_text())["targets"][0]["film"] == "onnx.mp4"
    with av.open(str(folder / "onnx.mp4")) as file:
        assert sum(1 for _ in file.decode(video=0)) == 60


@pytest.mark.nightly
def test_a_package_proves_itself_without_its_recipe(face: Any) -> None:
    report = api.validate(Path(face.folder) / "onnx")
    assert report.verdict == "passed" and report.film is None
    assert {check.name: check.verdict for check in report.checks}["psnr_drop"] is None, "limits are a recipe's"
    assert not any(CLIPS in files for files in _payload(Path(face.folder) / "onnx").values()), "no app ships them"


def _payload(folder: Path) -> dict[str, list[str]]:
    loaded: dict[str, list[str]] = json.loads((folder / "edgewright.json").read_text())["runtime"]["payload"]
    return loaded


def test_int8_blendshapes_stay_where_they_were(tmp_path: Path) -> None:
    report = ran("quickstart-expression", tmp_path)
    assert report.verdict == "passed" and report.targets[0].film is None
    said = found(report)
    assert said["blendshape_change"].value <= 0.005 == said["blendshape_change"].limit
    assert said["lip_closure"].value >= 0.95
    assert said["blendshape_error."].value == pytest.approx(said["blendshape_error_original."].value, rel=0.1)
