"""A talking head's own clips: what is calibrated on, what is judged, and what a recipe may not ask for."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from artifacts import EdgewrightError
from artifacts.media.clips import CLIPS, read_clips
from compiler import talking
from compiler.checkpoint import Checkpoint
from compiler.drivers import talking_head
from compiler.models.base import Model, read_model
from compiler.quantize.runner import OriginalWeights
from edgewright import api
from recipes.checkpoints.avatar_clips import HELD_OUT
from recipes.checkpoints.avatar_training import OUT
from recipes.errors import RecipeError
from recipes.schema import Calibration, Recipe

EXPRESSION, FACE = OUT / "audio2expression", OUT / "feathertalk"


def model_of(folder: Path) -> tuple[Model, OriginalWeights]:
    checkpoint = Checkpoint(folder)
    model = read_model(checkpoint.config, checkpoint.names(), 2)
    return model, OriginalWeights(checkpoint, model.slots)


def recipe(folder: Path, **quality: Any) -> Recipe:
    shipped = {EXPRESSION: "quickstart-expression", FACE: "quickstart-avatar"}[folder]
    found = api.load_recipe(shipped)
    wanted = found.validation.quality
    assert wanted is not None
    return found.model_copy(
        update={"validation": found.validation.model_copy(update={"quality": wanted.model_copy(update=quality)})}
    )


def test_calibration_hears_the_clips_and_draws_the_faces_that_lie_beside_the_checkpoint() -> None:
    model, table = model_of(FACE)
    looked_at = talking_head.looked_at(Calibration(), None, model, FACE)
    heard, drawn = talking_head.samples(model, table, looked_at)
    clips = read_clips(FACE / CLIPS, talking.constants_of(model)).clips
    windows = [window for clip in clips for window in talking.windows(clip, talking.constants_of(model))]
    assert all(any(np.array_equal(given[0], window) for window in windows) for (given,) in heard.inputs)
    assert (heard.component.name, drawn.component.name) == ("audio", "renderer")
    assert len(heard.inputs) >= 16 and len(drawn.inputs) >= 16
    image, features = drawn.inputs[-1]
    picture = clips[-1].video[-1, 2:98, 2:98].transpose(2, 0, 1)  # type: ignore[index]
    np.testing.assert_allclose(image[0, :3], picture / 255, atol=1e-6)
    assert not image[0, 3:, 3:90, 3:93].any() and features[0, :8].std() > 0.1


def test_without_clips_calibration_goes_on_with_generated_calls(tmp_path: Path) -> None:
    shutil.copytree(EXPRESSION, tmp_path / "c")
    (tmp_path / "c" / CLIPS).unlink()
    model, table = model_of(tmp_path / "c")
    looked_at = talking_head.looked_at(Calibration(), None, model, tmp_path / "c")
    assert looked_at.dtype == np.int64
    (found,) = talking_head.samples(model, table, looked_at)
    assert found.inputs[0][0].shape == (1, 34133)


def test_the_frames_of_a_clip_are_near_the_truth() -> None:
    model, table = model_of(EXPRESSION)
    clips = read_clips(HELD_OUT / "audio2expression.safetensors", talking.constants_of(model)).clips
    found = talking.frames(model, {}, table, clips[1])
    assert found.shape == clips[1].truth.shape
    assert np.sqrt(((found - clips[1].truth) ** 2).mean()) < 0.03


def test_clips_that_were_calibrated_on_judge_nothing(tmp_path: Path) -> None:
    model, _ = model_of(EXPRESSION)
    shutil.copyfile(EXPRESSION / CLIPS, tmp_path / "same.safetensors")
    with pytest.raises(
        EdgewrightError, match=r"validate\.quality\.clips: .*same\.safetensors is what .* calibrated on"
    ):
        talking_head.held_out(recipe(EXPRESSION, clips=str(tmp_path / "same.safetensors")), None, model, EXPRESSION)
    with pytest.raises(EdgewrightError, match=r"validate\.quality\.clips: .*feathertalk.*: holds pictures"):
        other = str(HELD_OUT / "feathertalk.safetensors")
        talking_head.held_out(recipe(EXPRESSION, clips=other), None, model, EXPRESSION)


@pytest.mark.parametrize(
    ("folder", "quality", "message"),
    [
        (FACE, {"max_blendshape_change": 0.1}, "max_blendshape_change: the frames of this model are pictures"),
        (EXPRESSION, {"max_psnr_drop": 0.1}, "max_psnr_drop: the frames of this model are blendshapes"),
        (EXPRESSION, {"max_mean_kl": 0.1}, "max_mean_kl: measures text, which this model does not write"),
        (EXPRESSION, {"clips": None}, "validate.quality: measures text, which this model does not write"),
    ],
)
def test_limits_that_say_nothing_of_these_frames_are_refused(folder: Path, quality: Any, message: str) -> None:
    model, _ = model_of(folder)
    with pytest.raises(EdgewrightError, match=message):
        talking_head.check(recipe(folder, **quality), model, folder)


def test_a_file_of_clips_that_is_missing_is_named_by_a_plan(tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    shipped = Path(api.load_recipe("quickstart-expression").origin or "").read_text()
    file.write_text(shipped.replace("../checkpoints", str(OUT.parent)))
    with pytest.raises(EdgewrightError, match=r"validate\.quality\.clips: .*no such file"):
        api.plan(file)


def test_limits_of_clips_need_clips(tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    shipped = Path(api.load_recipe("quickstart-expression").origin or "").read_text()
    file.write_text(shipped.replace("clips: clips/audio2expression.safetensors, ", ""))
    with pytest.raises(RecipeError, match="is judged on clips: name a file of them"):
        api.load_recipe(file)


def test_a_model_of_text_refuses_clips() -> None:
    found = api.load_recipe("quickstart")
    wanted = found.validation.quality
    assert wanted is not None
    changed = found.validation.model_copy(update={"quality": wanted.model_copy(update={"clips": "c.safetensors"})})
    checkpoint = Checkpoint(found.resolve(str(found.checkpoint.path)))
    model = read_model(checkpoint.config, checkpoint.names(), 64)
    from compiler.drivers import driver_of

    with pytest.raises(EdgewrightError, match=r"validate\.quality\.clips: is for a talking head"):
        driver_of(model).check(found.model_copy(update={"validation": changed}), model, checkpoint.path)


def test_configs_state_the_licence() -> None:
    for folder in (EXPRESSION, FACE, OUT / "gaussian"):
        assert json.loads((folder / "config.json").read_text())["license"] == "apache-2.0"
