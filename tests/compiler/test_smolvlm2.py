"""SmolVLM: entries are transformers' modules to rounding, slots are the checkpoint, and bad configs are named."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from compiler import dialect
from compiler.checkpoint import Checkpoint
from compiler.models.base import Model, read_model
from compiler.quantize.rules import assign
from compiler.slots import Weights
from compiler.tensors import CheckpointError
from recipes.schema import Rule
from tests.compiler.conftest import original
from tests.compiler.smolvlm import GEOMETRIES, SMALL, Geometry, reference, write_smolvlm

IMAGE_TOKEN = 7


@pytest.fixture(params=GEOMETRIES, scope="module")
def sides(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A geometry, transformers' model of it, and ours with its weights."""
    geometry = GEOMETRIES[request.param]
    theirs = reference(geometry)
    folder = tmp_path_factory.mktemp("smolvlm")
    theirs.save_pretrained(folder)
    model, weights = original(folder, 64)
    return geometry, theirs, model, weights


def call(model: Model, weights: Weights, component: str, entry: str, *given: torch.Tensor) -> torch.Tensor:
    part = model.component(component)
    states = [torch.zeros(state.sized({})) for state in part.states]
    with torch.no_grad(), dialect.weights(weights):
        found: torch.Tensor = part.module(part.entry(entry), {})(*given, *states)[0]
    return found


def images(geometry: Geometry, count: int) -> torch.Tensor:
    return (
        torch.rand((count, 3, geometry.image, geometry.image), generator=torch.Generator().manual_seed(count)) * 2 - 1
    )


@pytest.mark.parametrize("tiles", [1, 3])
def test_features_of_tiles_are_those_of_transformers(sides: Any, tiles: int) -> None:
    geometry, theirs, model, weights = sides
    pixels = images(geometry, tiles)
    mask = torch.ones((1, tiles, geometry.image, geometry.image), dtype=torch.bool)
    with torch.no_grad():
        expected = theirs.model.get_image_features(pixels[None], mask).pooler_output
    found = call(model, weights, "vision", "tile", pixels)
    assert found.shape == (tiles, geometry.tokens, geometry.hidden)
    torch.testing.assert_close(found.flatten(0, 1), torch.cat(list(expected)), atol=1e-5, rtol=0)
    assert found.std() > 0.1


@pytest.mark.parametrize("tiles", [1, 3])
def test_logits_of_a_prompt_with_tiles_are_those_of_transformers(sides: Any, tiles: int) -> None:
    geometry, theirs, model, weights = sides
    if tiles * geometry.tokens > 50:
        tiles = 1
    pixels = images(geometry, tiles)
    text = torch.from_numpy(np.random.default_rng(0).integers(8, 160, 12))
    ids = torch.cat([text[:5], torch.full((tiles * geometry.tokens,), IMAGE_TOKEN), text[5:]])[None]
    with torch.no_grad():
        expected = theirs(input_ids=ids, pixel_values=pixels[None]).logits
    embeddings = call(model, weights, "embed", "embed", ids)
    embeddings[ids == IMAGE_TOKEN] = call(model, weights, "vision", "tile", pixels).flatten(0, 1)
    positions = torch.arange(ids.shape[1])[None]
    found = call(model, weights, "decoder", "score", embeddings, positions)
    torch.testing.assert_close(found, expected, atol=5e-5, rtol=0)
    assert expected.std() > 0.1
    last = call(model, weights, "decoder", "prefill", embeddings, positions)
    torch.testing.assert_close(last, expected[:, -1:], atol=5e-5, rtol=0)


def test_every_tensor_is_read_and_takes_any_bits(tmp_path: Path) -> None:
    for name, geometry in GEOMETRIES.items():
        checkpoint = Checkpoint(write_smolvlm(tmp_path / name, geometry))
        model = read_model(checkpoint.config, checkpoint.names(), 64)
        assert checkpoint.unread(slot.tensor for slot in model.slots) == []
        assert len({slot.name for slot in model.slots}) == len(model.slots)
        for slot in model.slots:
            checkpoint.check(slot.tensor, slot.shape)
        matrices = [slot for slot in model.slots if not slot.is_vector]
        for bits in (4, 8, 16):
            # 14 by 14 patches of three channels fill neither groups nor, in four bits, words
            first = [Rule(match="*.patch_embedding", bits=max(bits, 8), group="channel")]
            found = assign([*first, Rule(match="*", bits=bits, group=32)], model.slots)
            assert found.schemes.keys() == {slot.name for slot in matrices}
            assert {found.schemes[slot.name].bits for slot in matrices if "patch" not in slot.name} == {bits}


def test_a_tied_head_is_a_second_slot_over_the_table(tmp_path: Path) -> None:
    model, _ = original(write_smolvlm(tmp_path / "tied"))
    (head,) = [slot for slot in model.slots if slot.name == "lm_head"]
    (table,) = model.component("embed").slots
    assert (head.tensor, head.kind, table.kind) == (table.tensor, "linear", "embedding")
    assert model.component("decoder").head == "lm_head"
    assert model.config["tie_word_embeddings"] is False


def test_what_an_app_must_know(tmp_path: Path) -> None:
    model, _ = original(write_smolvlm(tmp_path / "small"), 64)
    assert model.constants == {
        "max_tokens": 64,
        "vocab_size": 160,
        "bos": 1,
        "eos": [2],
        "max_positions": 256,
        "original_positions": 256,
        "image_token_id": 7,
        "patches_per_tile": 16,
        "tile_size": 64,
        "tokens_per_tile": 4,
        "max_tiles": 16,
        "scale_factor": 2,
    }
    assert model.at(256).constants["max_tiles"] == 17
    assert model.at(3).constants["max_tiles"] == 1
    vision, embed, decoder = model.components
    assert [(e.name, dict(e.dimensions)) for e in vision.entries] == [("tile", {"tiles": (1, 16)})]
    assert [entry.name for entry in embed.entries] == ["embed"]
    assert [entry.name for entry in decoder.entries] == ["prefill", "decode", "score", "hidden"]
    assert decoder.entry("decode").inputs[0].shape == ("batch", "tokens", 64)


def published() -> dict[str, Any]:
    """What the config of SmolVLM2-256M says: the rest is left to the defaults of transformers."""
    return {
        "model_type": "smolvlm",
        "image_token_id": 49190,
        "scale_factor": 4,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 49279,
        "text_config": {
            "model_type": "llama",
            "vocab_size": 49280,
            "hidden_size": 576,
            "intermediate_size": 1536,
            "num_hidden_layers": 30,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "head_dim": 64,
            "max_position_embeddings": 8192,
            "rms_norm_eps": 1e-5,
            "rope_theta": 100000,
            "rope_scaling": None,
            "eos_token_id": 2,
        },
        "vision_config": {"hidden_size": 768, "image_size": 512, "num_attention_heads": 12, "patch_size": 16},
    }


def test_published_geometries() -> None:
    model = read_model(published(), None, 8192)
    found = {key: model.constants[key] for key in ("tokens_per_tile", "max_tiles", "tile_size", "eos")}
    assert found == {"tokens_per_tile": 64, "max_tiles": 17, "tile_size": 512, "eos": [49279]}
    assert sum(slot.tensor.startswith("model.vision_model.encoder.layers.11.") for slot in model.slots) == 16
    larger = published() | {"scale_factor": 3}
    larger["text_config"] |= {"hidden_size": 2048, "num_attention_heads": None, "num_key_value_heads": 32}
    larger["vision_config"] = {"image_size": 384, "patch_size": 14, "num_hidden_layers": 27, "intermediate_size": 4304}
    model = read_model(larger, None, 8192)
    assert model.constants["tokens_per_tile"] == 81
    assert model.component("decoder").attention is not None
    model.component("vision").module(model.component("vision").entry("tile"), {})


BAD = [
    ("vision_config", None, "config.json: vision_config must be an object, and is missing"),
    ("vision_config", 3, "config.json: vision_config must be an object, not 3"),
    ("text_config", None, "config.json: text_config must be an object, and is missing"),
    ("text_config", [], "config.json: text_config must be an object, not \\[\\]"),
    (
        "scale_factor",
        3,
        r"config.json: scale_factor must divide the 32 patches along an edge \(vision_config.image_size",
    ),
    ("scale_factor", 0, "config.json: scale_factor must be a whole number from 1"),
    ("scale_factor", "4", "config.json: scale_factor must be a whole number"),
    ("image_token_id", None, "config.json: image_token_id must be a whole number .*, and is missing"),
    ("image_token_id", 49280, "config.json: image_token_id must be a whole number from 0 to 49279, not 49280"),
    ("tie_word_embeddings", "no", "config.json: tie_word_embeddings must be true or false"),
    ("eos_token_id", [49280], "eos_token_id must be below vocab_size"),
    ("vision_config.hidden_act", "relu", "config.json: vision_config.hidden_act must be one of gelu_pytorch_tanh"),
    ("vision_config.hidden_act", 1, "config.json: vision_config.hidden_act must be one of gelu_pytorch_tanh"),
    ("vision_config.num_channels", 4, "config.json: vision_config.num_channels must be"),
    ("vision_config.hidden_size", 770, "config.json: vision_config.hidden_size 770 does not divide over num_attention"),
    ("vision_config.hidden_size", 768.0, "config.json: vision_config.hidden_size must be a whole number"),
    ("vision_config.image_size", [512, 512], "config.json: vision_config.image_size must be a whole number"),
    ("vision_config.image_size", 500, "config.json: scale_factor must divide the 31 patches along an edge"),
    ("vision_config.image_size", 8, "config.json: vision_config.patch_size 16 is more than image_size, 8"),
    ("vision_config.patch_size", 1, "config.json: vision_config.image_size 512 has 262144 patches of patch_size 1"),
    ("vision_config.num_hidden_layers", True, "config.json: vision_config.num_hidden_layers must be a whole number"),
    ("vision_config.layer_norm_eps", "1", "config.json: vision_config.layer_norm_eps must be a number"),
    ("text_config.model_type", "qwen2", "config.json: text_config.model_type must be one of llama"),
    ("text_config.hidden_act", "gelu", "config.json: text_config.hidden_act must be one of silu"),
    ("text_config.num_attention_heads", 7, "text_config.*7 attention heads do not divide over 3"),
]


@pytest.mark.parametrize(("key", "value", "message"), BAD)
def test_a_bad_config_is_refused_by_its_key(key: str, value: Any, message: str) -> None:
    config = copy.deepcopy(published())
    *sections, last = key.split(".")
    place = config
    for section in sections:
        place = place[section]
    place[last] = value
    with pytest.raises(CheckpointError, match=message):
        read_model(config, None, 64)


def test_positions_that_transformers_rounds_away_are_refused() -> None:
    config = published() | {"scale_factor": 5}
    config["vision_config"] |= {"image_size": 400}
    model = read_model(config, None, 64)
    vision = model.component("vision")
    with pytest.raises(CheckpointError, match=r"vision_config\.image_size 400 has 25 patches of patch_size 16"):
        vision.module(vision.entry("tile"), {})


def test_a_context_beyond_the_positions_is_refused(tmp_path: Path) -> None:
    config = Checkpoint(write_smolvlm(tmp_path / "small", SMALL)).config
    with pytest.raises(CheckpointError, match=r"context\.max_tokens is 257, the checkpoint knows 256 positions"):
        read_model(config, None, 257)
