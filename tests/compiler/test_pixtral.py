"""Ministral 3 with its tower: entries are transformers' modules to rounding, slots the checkpoint, bad input named."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from artifacts import EdgewrightError
from compiler.checkpoint import Checkpoint
from compiler.models.base import read_model
from compiler.quantize.rules import assign
from compiler.tensors import CheckpointError
from recipes.schema import Rule, Vision
from tests.compiler.conftest import MINISTRAL3, original
from tests.compiler.pixtral import GEOMETRIES, IMAGE_TOKEN, SMALL, Geometry, cells_of, image, reference, write_pixtral
from tests.compiler.smolvlm import write_smolvlm
from tests.compiler.test_smolvlm2 import call

CONFIG = Path(__file__).parents[2] / "recipes" / "mistral" / "ministral-3-3b.config.json"
SIZES = [[(1, 2)], [(5, 3)], [(2, 7)], [(3, 1), (1, 1), (2, 3)]]


def largest(geometry: Geometry) -> Vision:
    return Vision(max_image=geometry.image)


@pytest.fixture(params=GEOMETRIES, scope="module")
def sides(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A geometry, transformers' model of it, and ours with its weights."""
    geometry = GEOMETRIES[request.param]
    theirs = reference(geometry)
    folder = tmp_path_factory.mktemp("pixtral")
    theirs.save_pretrained(folder)
    model, weights = original(folder, 96, largest(geometry))
    return geometry, theirs, model, weights


def pictures(geometry: Geometry, sizes: list[tuple[int, int]]) -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
    """Images of so many rows and columns of cells: as ours takes each, and as transformers takes all."""
    found = [torch.from_numpy(image(geometry, *size)) for size in sizes]
    height, width = (max(picture.shape[axis] for picture in found) for axis in (1, 2))
    pixels = torch.zeros((len(found), 3, height, width))
    for at, picture in enumerate(found):
        pixels[at, :, : picture.shape[1], : picture.shape[2]] = picture
    return found, {"pixel_values": pixels, "image_sizes": torch.tensor([picture.shape[1:] for picture in found])}


def features(sides: Any, picture: torch.Tensor) -> torch.Tensor:
    geometry, _, model, weights = sides
    cells = cells_of(picture.numpy(), geometry.patch, geometry.merge)
    return call(model, weights, "vision", "image", *map(torch.from_numpy, cells.values()))


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_features_of_images_are_those_of_transformers(sides: Any, sizes: list[tuple[int, int]]) -> None:
    geometry, theirs, _, _ = sides
    alone, together = pictures(geometry, sizes)
    with torch.no_grad():
        expected = theirs.model.get_image_features(**together, vision_feature_layer=-1).pooler_output
    for picture, wanted, (rows, columns) in zip(alone, expected, sizes, strict=True):
        found = features(sides, picture)
        assert found.shape == (rows * columns, geometry.hidden)
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)
        assert wanted.std() > 0.1


def test_images_in_one_call_do_not_see_each_other(sides: Any) -> None:
    geometry, _, model, weights = sides
    alone, _ = pictures(geometry, [(3, 2), (1, 4)])
    cells = [cells_of(picture.numpy(), geometry.patch, geometry.merge) for picture in alone]
    cells[1]["images"] += 1
    both = [torch.from_numpy(np.concatenate([part[port] for part in cells])) for port in cells[0]]
    found = call(model, weights, "vision", "image", *both)
    expected = torch.cat([features(sides, picture) for picture in alone])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    both[-1] = torch.zeros_like(both[-1])
    assert (call(model, weights, "vision", "image", *both) - expected).abs().max() > 0.01


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_logits_of_a_prompt_with_images_are_those_of_transformers(sides: Any, sizes: list[tuple[int, int]]) -> None:
    geometry, theirs, model, weights = sides
    alone, together = pictures(geometry, sizes)
    words = torch.from_numpy(np.random.default_rng(0).integers(8, 160, 12))
    parts = [words[:5]]
    for at, (rows, columns) in enumerate(sizes):
        parts += [torch.full((rows * columns,), IMAGE_TOKEN), words[5 + at : 6 + at]]
    ids = torch.cat([*parts, words[8:]])[None]
    with torch.no_grad():
        expected = theirs(input_ids=ids, **together).logits
    embeddings = call(model, weights, "embed", "embed", ids)
    embeddings[ids == IMAGE_TOKEN] = torch.cat([features(sides, picture) for picture in alone])
    positions = torch.arange(ids.shape[1])[None]
    found = call(model, weights, "decoder", "score", embeddings, positions)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    assert expected.std() > 0.1
    last = call(model, weights, "decoder", "prefill", embeddings, positions)
    torch.testing.assert_close(last, expected[:, -1:], atol=1e-4, rtol=0)


def test_every_tensor_is_read_and_takes_any_bits(tmp_path: Path) -> None:
    for name, geometry in GEOMETRIES.items():
        checkpoint = Checkpoint(write_pixtral(tmp_path / name, geometry))
        model = read_model(checkpoint.config, checkpoint.names(), 64, largest(geometry))
        assert checkpoint.unread(slot.tensor for slot in model.slots) == []
        assert len({slot.name for slot in model.slots}) == len(model.slots)
        for slot in model.slots:
            checkpoint.check(slot.tensor, slot.shape)
        for bits in (4, 8, 16):
            first = Rule(match="*.patch_conv", bits=max(bits, 8), group="channel")
            found = assign([first, Rule(match="*", bits=bits, group=32)], model.slots)
            assert found.schemes.keys() == {slot.name for slot in model.slots if not slot.is_vector}


RENAMED = {
    "model.language_model.": "language_model.model.",
    "model.vision_tower.": "vision_tower.",
    "model.multi_modal_projector.": "multi_modal_projector.",
    "lm_head.": "language_model.lm_head.",
}


@pytest.mark.parametrize("name", ["tied", "untied, biases, gelu"])
def test_older_and_newer_names_of_tensors_are_read(tmp_path: Path, name: str) -> None:
    """transformers has saved both; names of slots, which rules match, are the newer ones either way."""
    folder = write_pixtral(tmp_path / "as saved", GEOMETRIES[name])
    tensors = load_file(folder / "model.safetensors")
    back = {old: new for new, old in RENAMED.items()}
    tables: list[dict[str, torch.Tensor]] = []
    for renaming in (RENAMED, back):
        begins = {key: next((p for p in renaming if key.startswith(p)), "") for key in tensors}
        tables.append({renaming.get(p, "") + key.removeprefix(p): tensors[key] for key, p in begins.items()})
    models = []
    for at, table in enumerate(tables):
        other = tmp_path / str(at)
        other.mkdir()
        (other / "config.json").write_text((folder / "config.json").read_text())
        save_file(table, other / "model.safetensors")
        checkpoint = Checkpoint(other)
        models.append(read_model(checkpoint.config, checkpoint.names(), 64, Vision(max_image=112)))
        assert checkpoint.unread(slot.tensor for slot in models[-1].slots) == []
        for slot in models[-1].slots:
            checkpoint.check(slot.tensor, slot.shape)
    assert {key.split(".")[0] for key in tables[0]} != {key.split(".")[0] for key in tables[1]}
    assert [slot.name for slot in models[0].slots] == [slot.name for slot in models[1].slots]
    assert models[0].geometry["text"] == models[1].geometry["text"]


def test_what_an_app_must_know_follows_from_the_bound(tmp_path: Path) -> None:
    folder = write_pixtral(tmp_path / "small")
    model, _ = original(folder, 64, Vision(max_image=150))
    found = {key: model.constants[key] for key in ("image_token_id", "max_image", "max_cells", "patch_size", "merge")}
    # 150 pixels are five cells and ten more: six along each edge
    assert found == {"image_token_id": 7, "max_image": 150, "max_cells": 36, "patch_size": 14, "merge": 2}
    vision, embed, decoder = model.components
    (entry,) = vision.entries
    assert (entry.name, dict(entry.dimensions)) == ("image", {"cells": (1, 36)})
    assert [(p.name, p.shape, p.below) for p in entry.inputs] == [
        ("pixels", ("cells", 3, 28, 28), None),
        ("rows", ("cells", 4), 12),
        ("columns", ("cells", 4), 12),
        ("images", ("cells",), 2),
    ]
    assert [e.name for e in (*embed.entries, *decoder.entries)] == ["embed", "prefill", "decode", "score", "hidden"]
    assert model.at(20).constants["max_cells"] == 20  # what the context holds
    assert vision.live(entry, {"cells": 36}) > 2 * vision.live(entry, {"cells": 9})
    assert model.config["tie_word_embeddings"] is model.config["text_config"]["tie_word_embeddings"] is False


def test_without_the_section_it_is_the_text_side_alone(tmp_path: Path) -> None:
    folder = write_pixtral(tmp_path / "small", GEOMETRIES["untied, biases, gelu"])
    model, _ = original(folder, 64)
    assert [component.name for component in model.components] == ["decoder"]
    assert model.driver == "text" and model.config["model_type"] == "ministral3"


def published() -> dict[str, Any]:
    config: dict[str, Any] = json.loads(CONFIG.read_text(encoding="utf-8"))
    return config


def test_the_published_geometry() -> None:
    model = read_model(published(), None, 4096, Vision(max_image=1540))
    vision = model.component("vision")
    assert model.constants["max_cells"] == 55**2
    assert sum(slot.rows * slot.columns for slot in vision.slots) == pytest.approx(0.42e9, rel=0.02)
    assert {slot.name for slot in vision.slots if "layers" not in slot.name} == {
        "model.vision_tower.patch_conv",
        "model.vision_tower.ln_pre",
        *(
            f"model.multi_modal_projector.{name}"
            for name in ("norm", "patch_merger.merging_layer", "linear_1", "linear_2")
        ),
    }


BAD = [
    ("vision_config", None, "config.json: vision_config must be an object, and is missing"),
    ("vision_config", 3, "config.json: vision_config must be an object, not 3"),
    ("text_config", None, "config.json: text_config must be an object, and is missing"),
    ("spatial_merge_size", 0, "config.json: spatial_merge_size must be a whole number from 1"),
    ("vision_feature_layer", -2, "config.json: vision_feature_layer must be .*-1"),
    ("vision_feature_layer", [-1, -2], "config.json: vision_feature_layer must be"),
    ("projector_hidden_act", "relu", "config.json: projector_hidden_act must be one of gelu"),
    ("multimodal_projector_bias", 1, "config.json: multimodal_projector_bias must be true or false"),
    ("image_token_index", 131072, "config.json: image_token_index must be a whole number from 0 to 131071"),
    ("image_token_id", "10", "config.json: image_token_id must be a whole number"),
    ("tie_word_embeddings", "no", "config.json: tie_word_embeddings must be true or false"),
    ("vision_config.model_type", "siglip", "config.json: vision_config.model_type must be one of pixtral"),
    ("vision_config.hidden_act", "relu", "config.json: vision_config.hidden_act must be one of silu, gelu"),
    ("vision_config.num_channels", 4, "config.json: vision_config.num_channels must be"),
    ("vision_config.hidden_size", 1025, "config.json: vision_config.hidden_size 1025 does not make num_attention_hea"),
    ("vision_config.head_dim", 32, "config.json: vision_config.head_dim must be .*64"),
    ("vision_config.image_size", [1540, 1540], "config.json: vision_config.image_size must be a whole number"),
    ("vision_config.patch_size", 0, "config.json: vision_config.patch_size must be a whole number"),
    ("vision_config.image_size", 500, r"vision\.max_image is 560; the checkpoint takes images from 28 .* to 500"),
    ("vision_config.patch_size", 300, r"vision\.max_image is 560; the checkpoint takes images from 600 pixels"),
    ("vision_config.rope_parameters.rope_type", "yarn", "rope_parameters.rope_type must be one of axial, default"),
    ("vision_config.rope_parameters.rope_theta", 0, "rope_parameters.rope_theta must be a number"),
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
        read_model(config, None, 64, Vision(max_image=560))


def test_a_section_that_a_model_has_no_use_for_is_refused(tmp_path: Path) -> None:
    bound = Vision(max_image=112)
    with pytest.raises(
        EdgewrightError, match=r"vision: is for models of type mistral3, smolvlm, not for ministral3; leave it"
    ):
        read_model(MINISTRAL3, None, 64, bound)
    with pytest.raises(
        EdgewrightError, match=r"vision: a model that sees tiles is bounded by max_tiles, not by max_im"
    ):
        read_model(Checkpoint(write_smolvlm(tmp_path / "smolvlm")).config, None, 64, bound)
    with pytest.raises(EdgewrightError, match=r"config.json: model_type 'unknown' is not supported"):
        read_model({"model_type": "unknown"}, None, 64, bound)
    blind = Checkpoint(write_pixtral(tmp_path / "small", SMALL))
    names = [name for name in blind.names() if "vision_tower" not in name]
    with pytest.raises(CheckpointError, match=r"no tensor named model\.vision_tower\.patch_conv\.weight: it holds no"):
        read_model(blind.config, names, 64, bound)
