"""MLX packages of SmolVLM in mlx-vlm: loaded without arguments, and answering as our own session does.

The session runs traced functions over the same tensors; mlx-vlm has a processor, a prompt and a model class of its own.
Both compute in float32 here, where a CPU is fast; one answer is asked of the package as it is loaded.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_vlm
import numpy as np
import pytest
from mlx_vlm.models.smolvlm import VisionConfig
from mlx_vlm.prompt_utils import apply_chat_template
from mlx_vlm.utils import process_inputs

from artifacts import Manifest
from compiler.slots import Scheme
from compiler.targets import load_target
from compiler.targets.base import BuildJob
from compiler.targets.mlx.packaging import image_text
from runtime_tests.drivers.image_text import Asked
from runtime_tests.sessions import make_session
from runtime_tests.sessions.mlx import restore_zero_points
from tests.compiler.conftest import packed
from tests.compiler.smolvlm import Question, questions, tiny_job

SCENES, MOST = 8, 64
Package = tuple[Path, BuildJob, Manifest]


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Package:
    """Of the checkpoint that ships. Shared: read it, never change it."""
    folder = tmp_path_factory.mktemp("mlx-vlm")
    job = tiny_job(folder / "packed", "mlx", Scheme(4, 32))
    return folder / "mlx", job, packed(job, "mlx", folder / "mlx", companions=True)


def asked(package: Package, *, exact: bool) -> Asked:
    folder, _, manifest = package
    session = make_session(folder, manifest)
    session.load(exact=exact)
    return Asked(session, folder, manifest)


def said(model: Any, processor: Any, question: Question) -> str:
    """mlx-vlm's greedy answer, to a prompt of its own."""
    prompt = apply_chat_template(processor, model.config, question.example.question, num_images=1)
    assert prompt == question.prompt
    image = [question.example.image.convert("RGB")]
    answer = mlx_vlm.generate(model, processor, prompt, image, max_tokens=MOST, temperature=0.0, verbose=False)
    found: str = answer.text.strip()
    return found


@pytest.mark.nightly
def test_the_same_answers_as_our_session(package: Package) -> None:
    model, processor = mlx_vlm.load(str(package[0]))
    model.set_dtype(mx.float32)
    restore_zero_points(model)
    ours = asked(package, exact=True)
    right = 0
    for question in questions(SCENES):
        answer = said(model, processor, question)
        assert answer == ours.answer(question.prompt, [question.image], most=MOST)
        right += answer == question.example.answer.strip()
    assert right >= 3  # no model that guesses


@pytest.mark.nightly
def test_an_answer_as_it_is_loaded(package: Package) -> None:
    """In float16, which takes a CPU many times as long."""
    question = min(questions(SCENES), key=lambda q: len(q.example.answer))
    answer = said(*mlx_vlm.load(str(package[0])), question)
    assert answer == asked(package, exact=False).answer(question.prompt, [question.image], most=MOST) != ""


def test_its_processor_writes_our_prompt_and_cuts_our_tiles(package: Package) -> None:
    _, processor = mlx_vlm.load(str(package[0]), lazy=True)
    for question in questions(SCENES):
        theirs = process_inputs(processor, [question.prompt], [question.example.image.convert("RGB")])
        assert np.array(theirs["input_ids"])[0].tolist() == question.ids
        np.testing.assert_allclose(np.array(theirs["pixel_values"])[0], question.tiles, atol=1e-6)


def test_the_same_features_from_the_same_tensors(package: Package) -> None:
    """Two towers over one file; mlx-vlm's last norm has an epsilon of its own."""
    folder, _, manifest = package
    model, _ = mlx_vlm.load(str(folder))
    model.set_dtype(mx.float32)
    restore_zero_points(model)
    session = make_session(folder, manifest)
    session.load(exact=True)
    given = np.random.default_rng(0).uniform(-1, 1, (1, 3, 64, 64)).astype(np.float32)
    (ours,) = session.call("vision", "tile", pixels=given).values()
    states, *_ = model.vision_model(mx.array(given.transpose(0, 2, 3, 1)), mx.ones((1, 8, 8), mx.bool_))
    theirs = np.array(model.connector(states))
    np.testing.assert_allclose(theirs, ours, atol=1e-4 * np.abs(ours).max(), rtol=0)
    assert ours.std() > 0.05 * np.abs(ours).max()


def test_what_mlx_swift_reads_is_written(package: Package) -> None:
    """Every key that its structures decode and have no default for, or a wrong one."""
    folder = package[0]
    config, images = (json.loads((folder / n).read_text()) for n in ("config.json", "preprocessor_config.json"))
    text = ["model_type", "hidden_size", "num_hidden_layers", "intermediate_size", "num_attention_heads"]
    text += ["rms_norm_eps", "vocab_size", "num_key_value_heads", "rope_theta"]
    vision = ["model_type", "num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads"]
    vision += ["patch_size", "image_size", "num_channels", "layer_norm_eps"]
    assert set(text) <= set(config["text_config"]) and set(vision) <= set(config["vision_config"])
    assert config["text_config"]["tie_word_embeddings"] is False
    assert (config["model_type"], config["scale_factor"], config["image_token_id"]) == ("smolvlm", 4, 41)
    assert (images["processor_class"], images["image_seq_len"]) == ("SmolVLMProcessor", 4)
    assert images["size"] == {"longest_edge": 128} and images["max_image_size"] == {"longest_edge": 64}
    assert images["video_sampling"]["fps"] == 1 and isinstance(images["video_sampling"]["fps"], int)
    assert images["video_sampling"]["max_frames"] == 8
    weights = mx.load(str(folder / "model.safetensors"))
    assert isinstance(weights, dict)
    assert weights["vision_model.embeddings.patch_embedding.weight"].shape == (128, 8, 8, 3)
    modules = {name.removesuffix(".scales") for name in weights if name.endswith(".scales")}
    default = {"group_size": 32, "bits": 4, "mode": "affine"}
    named = {name: value for name, value in config["quantization"].items() if name not in default}
    assert set(named) < modules and {value["bits"] for value in named.values()} == {8}
    assert {name: config["quantization"][name] for name in default} == default


def test_a_convolution_below_16_bits_is_refused_by_name(package: Package) -> None:
    _, job, _ = package
    name = "model.vision_model.embeddings.patch_embedding"
    other = BuildJob(job.name, job.model, {**job.schemes, name: Scheme(8, 32)}, job.options, job.weights, job.source)
    (reason,) = load_target("mlx").refusals(other)
    assert name in reason and "keep it at bits: 16" in reason


@pytest.mark.parametrize(("side", "moved"), [(8, 0), (32, 0), (27, 10)])
def test_patches_that_mlx_vlm_places_by_their_neighbour(side: int, moved: int) -> None:
    """At 32 patches along an edge, as the 256M and 500M have them, none; at the 27 of the 2.2B ten."""
    from mlx_vlm.models.idefics3.vision import VisionEmbeddings

    assert image_text.misplaced(side) == moved
    found = VisionEmbeddings(VisionConfig(hidden_size=1, num_attention_heads=1, patch_size=1, image_size=side))
    found.patch_embedding.weight = mx.zeros((1, 1, 1, 3))
    found.patch_embedding.bias = mx.zeros((1,))
    found.position_embedding.weight = mx.arange(side**2, dtype=mx.float32)[:, None]
    places = np.array(found(mx.zeros((1, side, side, 3)), mx.ones((1, side, side), mx.bool_)))
    rows = places.reshape(side, side)[:, 0] // side
    assert (rows != np.arange(side)).sum() == moved
