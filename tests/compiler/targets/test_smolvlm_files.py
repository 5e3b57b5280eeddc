"""What loaders of SmolVLM read beside weights, from checkpoints in the forms in which they are published."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from compiler.drivers import driver_of
from compiler.slots import HALF
from compiler.targets.base import BuildJob
from compiler.targets.smolvlm import explicit_config, write_processor
from tests.compiler.conftest import quantized_job

TINY = Path(__file__).parents[3] / "recipes" / "checkpoints" / "tiny-smolvlm2"
VISION, TEXT = ("num_attention_heads", "layer_norm_eps"), ("rms_norm_eps", "num_key_value_heads")


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> BuildJob:
    return quantized_job(tmp_path_factory.mktemp("files") / "packed", TINY, None, HALF)


def older(folder: Path) -> Path:
    """The checkpoint as transformers 4 saved it: a flat preprocessor_config.json and a template in JSON."""
    shutil.copytree(TINY, folder)
    composite = json.loads((folder / "processor_config.json").read_text())
    kept = {key: composite[key] for key in ("image_seq_len", "processor_class")}
    (folder / "processor_config.json").write_text(json.dumps(kept))
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").unlink()
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    return folder


def written(job: BuildJob, source: Path, folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    folder.mkdir()
    driver_of(job.model).write_companions(job.model, source, folder)
    write_processor(BuildJob(job.name, job.model, job.schemes, None, job.weights, source), folder)
    composite, flat = (
        json.loads((folder / f"{name}_config.json").read_text()) for name in ("processor", "preprocessor")
    )
    return composite, flat


def test_both_forms_give_the_same_files(job: BuildJob, tmp_path: Path) -> None:
    new = written(job, TINY, tmp_path / "new")
    old = written(job, older(tmp_path / "older"), tmp_path / "old")
    for composite, flat in (new, old):
        assert composite["image_seq_len"] == flat["image_seq_len"] == 4
        for key in ("size", "max_image_size", "resample", "image_mean", "do_image_splitting", "image_processor_type"):
            assert composite["image_processor"][key] == flat[key] == new[1][key]
        assert flat["video_sampling"]["max_frames"] == 8
    assert "video_processor" in new[0]
    template = (tmp_path / "old" / "chat_template.jinja").read_text()
    assert template == (TINY / "chat_template.jinja").read_text() and "message" in template


def test_a_class_of_one_backend_alone_is_written_by_the_name_that_all_know(job: BuildJob, tmp_path: Path) -> None:
    """transformers.js strips Fast from the name, not Pil."""
    source = tmp_path / "source"
    shutil.copytree(TINY, source)
    for name in ("processor_config.json", "preprocessor_config.json"):
        text = (source / name).read_text()
        (source / name).write_text(text.replace("SmolVLMImageProcessor", "SmolVLMImageProcessorPil"))
    composite, flat = written(job, source, tmp_path / "made")
    assert composite["image_processor"]["image_processor_type"] == flat["image_processor_type"]
    assert flat["image_processor_type"] == "SmolVLMImageProcessor"


def test_a_config_leaves_nothing_to_a_default(job: BuildJob, tmp_path: Path) -> None:
    """transformers 4 saved what differs from a default alone."""
    source = tmp_path / "source"
    shutil.copytree(TINY, source)
    config = json.loads((source / "config.json").read_text())
    whole = json.loads((source / "config.json").read_text())
    for key in TEXT:
        del config["text_config"][key]
    for key in VISION:
        del config["vision_config"][key]
    (source / "config.json").write_text(json.dumps(config))
    found = explicit_config(BuildJob(job.name, job.model, job.schemes, None, job.weights, source))
    assert {k: found["text_config"][k] for k in TEXT} == {k: whole["text_config"][k] for k in TEXT}
    assert {k: found["vision_config"][k] for k in VISION} == {k: whole["vision_config"][k] for k in VISION}
    assert found["text_config"]["rope_theta"] == 10000.0
