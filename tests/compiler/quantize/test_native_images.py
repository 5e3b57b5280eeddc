"""Calibration with images that a tower sees in one piece: what is looked at, and what it is worth."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from artifacts.media.pixtral import cut
from compiler import dialect
from compiler.drivers import native_image_text
from compiler.models.base import Model
from compiler.quantize.packed import PackedWeights
from compiler.slots import Weights
from edgewright import api
from recipes.schema import Calibration, Vision
from tests.artifacts.media import reference as ref
from tests.compiler.conftest import original
from tests.compiler.pixtral import SMALL, write_pixtral
from tests.compiler.test_processor import pixtral, written

CONTEXT, BOUND, TOKENS = 64, 100, 384
SIZES = [(30, 90), (100, 100), (57, 40), (20, 20), (95, 61)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint in `source`, and questions about pictures."""
    folder = tmp_path_factory.mktemp("native")
    encoder = ref.tokenizer()
    token = encoder.convert_tokens_to_ids("[IMG]")
    write_pixtral(folder / "source", dataclasses.replace(SMALL, image=112, vocab=len(encoder), image_token=token), 3)
    documents = pixtral()
    written(folder / "source", {name: documents[name] for name in documents if name != "config.json"})
    lines = []
    for at in range(40):
        Image.fromarray(ref.picture(*SIZES[at % len(SIZES)])).save(folder / f"{at}.png")
        lines.append(json.dumps({"prompt": "[IMG]What? er", "answer": "What", "image": f"{at}.png"}))
    (folder / "questions.jsonl").write_text("\n".join(lines))
    return folder


def looked_at(place: Path) -> tuple[Model, Weights, Any]:
    model, weights = original(place / "source", CONTEXT, Vision(max_image=BOUND))
    calibration = Calibration(images="questions.jsonl", tokens=TOKENS)
    record = native_image_text.looked_at(calibration, place / "questions.jsonl", model, place / "source")
    return model, weights, record


@given(st.lists(st.integers(1, 9), min_size=1, max_size=12))
def test_images_share_calls_of_one_size(counts: list[int]) -> None:
    images = np.repeat(np.arange(len(counts)), counts)
    calls = native_image_text.packed(images)
    seen = set()
    for cells, of in calls:
        assert len(cells) == len(of) == max(counts)
        for image in range(of[-1] + 1):  # the first cells of one image each, and never two images as one
            some = cells[of == image]
            begin = int(np.flatnonzero(images == images[some[0]])[0])
            assert some.tolist() == list(range(begin, begin + len(some))) and set(images[some]) == {images[some[0]]}
            if len(some) == counts[images[some[0]]]:
                seen.add(int(images[some[0]]))
    assert seen == set(range(len(counts)))


def test_samples_are_what_the_components_get(place: Path) -> None:
    model, weights, record = looked_at(place)
    vision, embed, decoder = native_image_text.samples(model, weights, record)
    assert [part.component.name for part in (vision, embed, decoder)] == ["vision", "embed", "decoder"]
    assert len({tuple(tensor.shape for tensor in sample) for sample in vision.inputs}) == 1
    ids = torch.from_numpy(record["ids"].astype(np.int64))
    marks = (ids == model.constants["image_token_id"]).flatten()
    embeddings = torch.cat([sample[0] for sample in decoder.inputs]).flatten(0, 1)
    with torch.no_grad(), dialect.weights(weights):
        rows = embed.module(ids)[0].flatten(0, 1)
        see, pictures = native_image_text.tower(model), _pictures(record)
        features = torch.cat(see([picture[None] for picture in pictures]))
    assert 0 < marks.sum() <= len(features) == len(record["images"])
    torch.testing.assert_close(embeddings[~marks], rows[~marks])
    torch.testing.assert_close(embeddings[marks], features[: int(marks.sum())], atol=1e-4, rtol=0)


def _pictures(record: Any) -> list[np.ndarray[Any, np.dtype[np.float32]]]:
    """The images that the record's cells are of, normalized, [3, height, width]."""
    found = []
    for at in range(record["images"][-1] + 1):
        cells = record["images"] == at
        values = np.stack([record["values"][c][record["pixels"][cells][:, c]] for c in range(3)], 1)
        rows, columns = (record[name][cells].max() // 2 + 1 for name in ("rows", "columns"))
        edge = values.shape[-1]
        whole = values.reshape(rows, columns, 3, edge, edge).transpose(2, 0, 3, 1, 4)
        found.append(np.ascontiguousarray(whole.reshape(3, rows * edge, columns * edge)))
    return found


RECIPE = """
name: {method}
checkpoint: {{path: source}}
quantize:
  rules:
    - {{match: "*.patch_conv", bits: 16}}
    - {{match: "*", bits: 4, group: 32, method: {method}}}
  calibration: {{images: questions.jsonl, tokens: 384}}
context: {{max_tokens: 64}}
vision: {{max_image: 100}}
targets: {{onnx: {{}}}}
"""


@pytest.mark.nightly
def test_gptq_sees_images_and_is_nearer_than_rounding(place: Path) -> None:
    model, weights, record = looked_at(place)
    vision = model.component("vision")
    found = cut(_pictures(record)[0][:, ::-1].copy(), 14, 2)  # upside down: one that it was not calibrated on
    given = [*map(torch.from_numpy, (found.pixels, found.rows, found.columns)), torch.zeros(len(found.pixels)).long()]

    def features(table: Weights) -> torch.Tensor:
        with torch.no_grad(), dialect.weights(table):
            out: torch.Tensor = vision.module(vision.entry("image"), {})(*given)[0]
        return out

    expected, errors = features(weights), {}
    for method in ("rtn", "gptq"):
        recipe = place / f"{method}.yaml"
        recipe.write_text(RECIPE.format(method=method))
        api.run(recipe, out=place / "out", validate=False)
        errors[method] = float((features(PackedWeights(place / "out" / method / "quantized")) - expected).norm())
    assert errors["gptq"] < errors["rtn"]
