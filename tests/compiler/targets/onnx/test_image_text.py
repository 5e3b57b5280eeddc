"""ONNX packages of SmolVLM in the layout of transformers.js: names, files and what its graphs compute when they are
called as it calls them. `test_transformers_js.py` runs the real thing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from artifacts import Manifest
from compiler.slots import HALF, Scheme
from compiler.targets import load_target
from compiler.targets.base import BuildJob, Job
from compiler.targets.onnx.options import OnnxOptions
from compiler.targets.onnx.packaging import image_text
from runtime_tests.drivers.image_text import Asked
from runtime_tests.sessions import make_session
from tests.compiler.conftest import packed
from tests.compiler.smolvlm import Question, questions, tiny_job

FILES = ("vision_encoder", "embed_tokens", "decoder_model_merged")
SIZE, HIDDEN, IMAGE, EOS, MOST = 64, 256, 41, 42, 64
Package = tuple[Path, BuildJob, Manifest]


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Package:
    """Of the checkpoint that ships. Shared: read it, never change it."""
    folder = tmp_path_factory.mktemp("transformers.js")
    job = tiny_job(folder / "packed", "onnx", Scheme(4, 32))
    return folder / "onnx", job, packed(job, "onnx", folder / "onnx", companions=True)


def graphs(package: Package) -> dict[str, ort.InferenceSession]:
    return {name: ort.InferenceSession(package[0] / "onnx" / f"{name}_q4.onnx") for name in FILES}


def test_inputs_and_outputs_have_the_names_of_the_public_exports(package: Package) -> None:
    found = graphs(package)
    named = {
        name: ({i.name: (i.type, i.shape) for i in g.get_inputs()}, [o.name for o in g.get_outputs()])
        for name, g in found.items()
    }
    inputs, outputs = named["vision_encoder"]
    assert inputs == {
        "pixel_values": ("tensor(float)", ["batch_size", "num_images", 3, SIZE, SIZE]),
        "pixel_attention_mask": ("tensor(bool)", ["batch_size", "num_images", SIZE, SIZE]),
    }
    assert outputs == ["image_features"]
    inputs, outputs = named["embed_tokens"]
    assert list(inputs) == ["input_ids"] and inputs["input_ids"][0] == "tensor(int64)"
    assert outputs == ["inputs_embeds"]
    inputs, outputs = named["decoder_model_merged"]
    caches = [f"{layer}.{kind}" for layer in range(4) for kind in ("key", "value")]
    assert list(inputs) == ["inputs_embeds", "attention_mask", *(f"past_key_values.{c}" for c in caches)]
    assert outputs == ["logits", *(f"present.{c}" for c in caches)]
    # what transformers.js makes an empty cache of: batch_size by its name, every other name as 0
    assert inputs["past_key_values.0.key"] == ("tensor(float)", ["batch_size", 2, "past", 64])


def test_config_says_which_files_have_external_data(package: Package) -> None:
    config = json.loads((package[0] / "config.json").read_text())
    own = config["transformers.js_config"]
    assert own == {"dtype": "q4", "use_external_data_format": {f"{name}_q4.onnx": 1 for name in FILES}}
    for name in own["use_external_data_format"]:
        assert (package[0] / "onnx" / f"{name}_data").stat().st_size > 1000
    assert (config["model_type"], config["image_token_id"]) == ("smolvlm", IMAGE)
    assert config["text_config"]["num_hidden_layers"] == 4 and config["text_config"]["num_key_value_heads"] == 2
    assert json.loads((package[0] / "tokenizer_config.json").read_text())["chat_template"]


def said(found: dict[str, ort.InferenceSession], question: Question) -> list[int]:
    """Greedy tokens by the calls that transformers.js makes, caches growing from nothing."""
    count, edges = len(question.tiles), question.tiles.shape[2:]
    shown = {"pixel_values": question.tiles[None], "pixel_attention_mask": np.ones((1, count, *edges), np.bool_)}
    features = found["vision_encoder"].run(None, shown)[0].reshape(-1, HIDDEN)
    ids = np.array([question.ids], np.int64)
    decoder = found["decoder_model_merged"]
    past = {i.name: np.zeros((1, 2, 0, 64), np.float32) for i in decoder.get_inputs()[2:]}
    tokens: list[int] = []
    length = 0
    while len(tokens) < MOST and EOS not in tokens:
        (embeds,) = found["embed_tokens"].run(None, {"input_ids": ids})
        if not tokens:
            embeds[ids == IMAGE] = features
        length += ids.shape[1]
        given = {"inputs_embeds": embeds, "attention_mask": np.ones((1, length), np.int64), **past}
        logits, *present = decoder.run(None, given)
        past = dict(zip(past, present, strict=True))
        tokens.append(int(logits[0, -1].argmax()))
        ids = np.array([tokens[-1:]], np.int64)
    return tokens


def test_plain_onnxruntime_answers_as_our_session(package: Package) -> None:
    from tokenizers import Tokenizer

    folder, _, manifest = package
    session = make_session(folder, manifest)
    session.load()
    ours, found = Asked(session, folder, manifest), graphs(package)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    right = 0
    for question in questions(5):
        answer = tokenizer.decode(said(found, question), skip_special_tokens=True).strip()
        assert answer == ours.answer(question.prompt, [question.image], most=MOST)
        right += answer == question.example.answer.strip()
    assert right >= 2  # no model that guesses


def test_tiles_that_fill_up_a_batch_give_no_features(package: Package) -> None:
    vision = graphs(package)["vision_encoder"]
    tiles = np.random.default_rng(0).uniform(-1, 1, (2, 3, 3, SIZE, SIZE)).astype(np.float32)
    tiles[0, 2] = 0
    mask = np.ones((2, 3, SIZE, SIZE), np.bool_)
    (whole,) = vision.run(None, {"pixel_values": tiles, "pixel_attention_mask": mask})
    mask[0, 2] = False
    (found,) = vision.run(None, {"pixel_values": tiles, "pixel_attention_mask": mask})
    assert whole.shape == (6, 4, HIDDEN) and found.shape == (5, 4, HIDDEN)
    np.testing.assert_allclose(found, whole[[0, 1, 3, 4, 5]], atol=1e-5)


@pytest.mark.parametrize(("scheme", "dtype"), [(Scheme(4, 32), "q4"), (Scheme(8, 32), "int8"), (HALF, "fp32")])
def test_files_are_called_after_what_most_weights_are(package: Package, scheme: Scheme, dtype: str) -> None:
    """By the names under which transformers.js looks for them."""
    _, job, _ = package
    schemes = {slot.name: scheme for slot in job.model.slots if not slot.is_vector}
    plans = image_text.plans(Job(job.name, job.model, schemes, OnnxOptions()), None)
    suffix = {"q4": "_q4", "int8": "_int8", "fp32": ""}[dtype]
    assert [plan.file for plan in plans] == [f"onnx/{name}{suffix}.onnx" for name in FILES]
    assert [plan.data for plan in plans] == [f"onnx/{name}{suffix}.onnx_data" for name in FILES]


def test_int8_caches_are_refused(package: Package) -> None:
    _, job, _ = package
    (reason,) = load_target("onnx").refusals(Job(job.name, job.model, job.schemes, OnnxOptions(kv_bits=8)))
    assert "kv_bits" in reason


def test_a_manifest_that_shows_another_port_is_refused(package: Package) -> None:
    from artifacts import EdgewrightError

    folder, _, manifest = package
    runtime: Any = json.loads(json.dumps(manifest.runtime))
    runtime["graphs"][0]["images"]["port"] = "pictures"
    with pytest.raises(EdgewrightError, match="is not of the components"):
        make_session(folder, manifest.model_copy(update={"runtime": runtime}))
