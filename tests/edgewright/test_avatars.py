"""The recipes of avatars: what a plan says from their configs alone, and what they keep at 16 bits."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from artifacts import EdgewrightError, read_manifest, silent
from compiler.adopt import adopt
from compiler.models.base import Model, read_model
from compiler.quantize.rules import assign, rounded_slots
from compiler.slots import Scheme
from edgewright import api, cli
from recipes.load import shipped
from tests.compiler.avatars import flame

# MB at the most: of the published geometries in INT8, of gaussian in float32; of liveportrait with small parts twice
SIZES = {
    "feathertalk": 16.9,
    "feathertalk-mobileone": 8.1,
    "audio2expression": 102,
    "gaussian": 13.2,
    "liveportrait": 174,
}


def model_of(name: str, bits: str = "int8") -> tuple[Any, Model]:
    recipe = api.load_recipe(f"{name}-{bits}")
    return recipe, read_model(json.loads(recipe.resolve(recipe.checkpoint.config).read_text()), None, 2)


@pytest.mark.parametrize("name", SIZES)
def test_a_plan_needs_no_checkpoint_and_every_target_takes_it(name: str) -> None:
    plans = {item.target: item for item in api.plan(f"{name}-int8")}
    assert set(plans) == {"onnx", "coreml", "mlx", "tvm"} and not any(item.refused for item in plans.values())
    assert 0.3 * SIZES[name] < plans["onnx"].file_bytes / 1e6 <= SIZES[name]


def test_the_two_large_parts_of_liveportrait_are_115_mb() -> None:
    for item in api.plan("liveportrait-int8"):
        large = [part.file_bytes for part in item.components if part.component in ("warping", "generator")]
        assert 100e6 < sum(large) <= 115e6


def test_every_convolution_of_feathertalk_multiplies_8_bit_activations_where_there_are_kernels() -> None:
    for name, components in (("feathertalk", (3.7, 13.2)), ("feathertalk-mobileone", (3.7, 4.4))):
        recipe, model = model_of(name)
        assigned = assign(recipe.quantize.rules, model.slots)
        matrices = [slot for slot in model.slots if not slot.is_vector]
        assert {assigned.schemes[slot.name] for slot in matrices} == {Scheme(8, 0)}
        assert sum(map(len, rounded_slots(model, assigned).values())) == len(matrices) - 1
        for item in api.plan(f"{name}-int8"):
            assert [part.weight_bytes / 1e6 < limit for part, limit in zip(item.components, components, strict=True)]
            alone = [note for note in item.notes if "the weights alone have 8 bits" in note]
            assert len(alone) == (0 if item.target == "onnx" else 2) and len(item.notes) == 2
            if item.target == "onnx":
                count = sum(slot.kind == "convolution" for slot in model.component("renderer").slots)
                assert item.notes[1].startswith(f"renderer: {count} of {count} convolutions multiply 8-bit activations")


def test_the_int4_recipe_keeps_depthwise_and_edge_layers_and_is_small() -> None:
    recipe, model = model_of("feathertalk", "int4")
    schemes = assign(recipe.quantize.rules, model.slots).schemes
    matrices = [slot for slot in model.slots if not slot.is_vector]
    kept = {slot.name for slot in matrices if schemes[slot.name].bits == 8}
    depthwise = {slot.name for slot in matrices if slot.columns == math.prod(slot.kernel)}
    assert depthwise | {"unet.inc.inconv.conv.0", "unet.up4.conv.double_conv.1.conv.6", "unet.outc.conv"} <= kept
    assert sum(s.rows * s.columns for s in matrices if s.name in kept) < 0.1 * sum(s.rows * s.columns for s in matrices)
    half = {part.name: 2 * sum(slot.rows * slot.columns for slot in part.slots) for part in model.components}
    plans = {item.target: item for item in api.plan("feathertalk-int4")}
    assert set(plans) == {"onnx", "coreml", "mlx", "tvm"} and not any(item.refused for item in plans.values())
    for item in plans.values():
        assert item.weight_bytes <= 0.3 * sum(half.values())
        assert item.components[1].weight_bytes <= 0.3 * half["renderer"]


@pytest.mark.parametrize("name", ["audio2expression", "gaussian", "liveportrait"])
def test_edge_layers_stay_at_16_bits_and_the_rest_does_not(name: str) -> None:
    recipe, model = model_of(name)
    schemes = assign(recipe.quantize.rules, model.slots).schemes
    matrices = [slot for slot in model.slots if not slot.is_vector]
    whole = [slot for slot in matrices if schemes[slot.name].bits == 16]
    depthwise = {s.name for s in matrices if s.kind == "convolution" and s.columns == math.prod(s.kernel)}
    edges = {"audio2expression": {"backbone.output_proj"}}
    assert depthwise | edges.get(name, set()) <= {slot.name for slot in whole}
    assert {schemes[slot.name].bits for slot in matrices} == {8, 16}
    share = sum(slot.rows * slot.columns for slot in whole) / sum(slot.rows * slot.columns for slot in matrices)
    assert share < 0.05, "the rest is in 8 bits"


def test_a_run_without_the_checkpoint_says_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(EdgewrightError, match=r"checkpoint\.path: .*feathertalk: no such folder; --checkpoint FOLDER"):
        api.run("feathertalk-int8", out=tmp_path / "build")
    assert not (tmp_path / "build" / "feathertalk-int8").exists()


def test_a_checkpoint_that_is_there_is_planned_by_its_own_config(tmp_path: Path) -> None:
    for file in shipped()["gaussian-int8"].parent.glob("gaussian*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    committed = api.plan(tmp_path / "gaussian-int8.yaml")[0].file_bytes
    (tmp_path / "gaussian").mkdir()
    (tmp_path / "gaussian" / "config.json").write_text(json.dumps({"model_type": "gaussian", "points": 64}))
    assert api.plan(tmp_path / "gaussian-int8.yaml")[0].file_bytes < committed / 10


def test_a_plan_warns_of_a_licence_that_is_missing_or_non_commercial(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["plan", "gaussian-int8"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "warning: LICENCE: cc-by-nc-4.0 forbids commercial use of the checkpoint, and of every package" in shown
    (missing,) = api.plan_warnings("feathertalk-int8")
    assert missing.startswith("LICENCE: the checkpoint states none, and without one nobody may ship")
    assert api.plan_warnings("audio2expression-int8") == api.plan_warnings("smolvlm2-256m-int8") == []


@pytest.mark.parametrize(("licence", "said"), [("cc-by-nc-4.0", "forbids commercial use"), (None, "states none")])
def test_report_manifest_and_card_warn_of_what_adopt_recorded(
    tmp_path: Path, licence: str | None, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(flame(70), tmp_path / "avatar.pth")
    adopt([tmp_path / "avatar.pth"], "gaussian", tmp_path / "adopted", licence, silent)
    if licence:
        (tmp_path / "adopted" / "README.md").unlink()  # config.json says it too
    report = api.run("gaussian-int8", out=tmp_path, targets=["onnx"], checkpoint=tmp_path / "adopted", validate=False)
    (warning,) = report.warnings
    assert warning.startswith("LICENCE: ") and said in warning
    assert api.plan_warnings("gaussian-int8", checkpoint=tmp_path / "adopted") == [warning]
    folder = tmp_path / "gaussian-int8"
    assert warning in (folder / "report.md").read_text()
    assert f"**{warning}.**" in (folder / "onnx" / "README.md").read_text()
    assert read_manifest(folder / "onnx").checkpoint.license == licence
    with pytest.raises(SystemExit):
        cli.main(["inspect", str(folder / "onnx")])
    assert (licence or "not stated by the checkpoint") in capsys.readouterr().out
