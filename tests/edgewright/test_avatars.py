"""The recipes of avatars: what a plan says from their configs alone, and what they keep at 16 bits."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from artifacts import EdgewrightError
from compiler.models.base import Model, read_model
from compiler.quantize.rules import assign
from edgewright import api
from recipes.load import shipped

# MB at the most: of the published geometries in INT8, of the last in float32
SIZES = {"feathertalk": 16.9, "feathertalk-mobileone": 8.1, "audio2expression": 102, "gaussian": 13.2}


def model_of(name: str) -> tuple[Any, Model]:
    recipe = api.load_recipe(f"{name}-int8")
    return recipe, read_model(json.loads(recipe.resolve(recipe.checkpoint.config).read_text()), None, 2)


@pytest.mark.parametrize("name", SIZES)
def test_a_plan_needs_no_checkpoint_and_every_target_takes_it(name: str) -> None:
    plans = {item.target: item for item in api.plan(f"{name}-int8")}
    assert set(plans) == {"onnx", "coreml", "mlx", "tvm"} and not any(item.refused for item in plans.values())
    assert 0.3 * SIZES[name] < plans["onnx"].file_bytes / 1e6 <= SIZES[name]


@pytest.mark.parametrize("name", SIZES)
def test_depthwise_and_edge_layers_stay_at_16_bits_and_the_rest_does_not(name: str) -> None:
    recipe, model = model_of(name)
    schemes = assign(recipe.quantize.rules, model.slots).schemes
    matrices = [slot for slot in model.slots if not slot.is_vector]
    whole = [slot for slot in matrices if schemes[slot.name].bits == 16]
    depthwise = {s.name for s in matrices if s.kind == "convolution" and s.columns == math.prod(s.kernel)}
    edges = {"feathertalk": {"unet.inc.inconv.conv.0", "unet.outc.conv"}, "audio2expression": {"backbone.output_proj"}}
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
