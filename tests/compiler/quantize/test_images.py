"""Calibration with images: what is looked at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from artifacts import EdgewrightError
from compiler import dialect
from compiler.drivers import image_text
from recipes.checkpoints.write_questions import write_questions
from recipes.schema import Calibration
from tests.compiler.conftest import original

TINY = Path(__file__).parents[3] / "recipes" / "checkpoints" / "tiny-smolvlm2"
IMAGE = 41


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_questions(tmp_path_factory.mktemp("scenes"), 30, first=20_000).parent


def looked_at(path: Path, tokens: int, seed: int = 0) -> Any:
    model, _ = original(TINY, 256)
    return image_text.looked_at(Calibration(images="questions.jsonl", tokens=tokens, seed=seed), path, model, TINY)


def test_conversations_and_the_tiles_that_they_speak_of(scenes: Path) -> None:
    record = looked_at(scenes / "questions.jsonl", 1000)
    assert record["ids"].shape == (1, 512) and record["pixels"].shape[1:] == (64, 64, 3)
    assert 0 <= 4 * len(record["pixels"]) - (record["ids"] == IMAGE).sum() < 512
    np.testing.assert_allclose(record["values"][:, [0, 255]], [[-1, 1]] * 3, atol=1e-6)
    again, other = looked_at(scenes / "questions.jsonl", 1000), looked_at(scenes / "questions.jsonl", 1000, seed=1)
    assert record.tobytes() == again.tobytes() != other.tobytes()


def test_a_folder_of_images_is_described(scenes: Path) -> None:
    record = looked_at(scenes, 600)
    assert record["ids"].shape == (1, 512) and (record["ids"] == IMAGE).any()


def test_refusals(scenes: Path, tmp_path: Path) -> None:
    with pytest.raises(EdgewrightError, match=r"images: .*questions\.jsonl has \d+ tokens and \d+ images, 99999"):
        looked_at(scenes / "questions.jsonl", 99999)
    with pytest.raises(EdgewrightError, match=r"calibration\.images: .* holds no image"):
        looked_at(tmp_path, 100)
    model, _ = original(TINY, 256)
    with pytest.raises(EdgewrightError, match=r"^quantize\.calibration\.images: methods that look at calibration data"):
        image_text.looked_at(Calibration(), None, model, TINY)


def test_samples_are_what_the_components_get(scenes: Path) -> None:
    """The decoder's embeddings are those of a whole prompt: the table's rows, features in image tokens' places."""
    model, weights = original(TINY, 256)
    record = looked_at(scenes / "questions.jsonl", 128)
    vision, embed, decoder = image_text.samples(model, weights, record)
    assert [part.component.name for part in (vision, embed, decoder)] == ["vision", "embed", "decoder"]
    ids = torch.from_numpy(record["ids"].astype(np.int64))
    (embeddings, positions) = decoder.inputs[0]
    assert positions.tolist() == [list(range(128))]
    with torch.no_grad(), dialect.weights(weights):
        rows = embed.module(ids)[0]
        features = torch.cat([vision.module(*tile)[0][0] for tile in _every(vision, record)])
    marks = ids[0] == IMAGE
    torch.testing.assert_close(embeddings[0][~marks], rows[0][~marks])
    torch.testing.assert_close(embeddings[0][marks], features[: int(marks.sum())], atol=1e-5, rtol=0)


def _every(vision: Any, record: Any) -> list[tuple[torch.Tensor]]:
    scaled = torch.from_numpy(record["pixels"]).permute(0, 3, 1, 2).float() / 127.5 - 1
    return [(tile[None],) for tile in scaled]
