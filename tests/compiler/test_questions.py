"""Questions of a recipe's file: what is taken, what is refused and in which words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from artifacts import EdgewrightError
from compiler import task
from compiler.checkpoint import Checkpoint
from compiler.drivers import driver_of
from compiler.models.base import read_model
from compiler.task import Asked
from recipes.schema import Task, Vision

ROOT = Path(__file__).parents[2] / "recipes" / "checkpoints"
SEES, READS = ROOT / "tiny-smolvlm2", ROOT / "tiny-ministral3"


def read(
    folder: Path, lines: list[Any], checkpoint: Path = SEES, context: int = 128, vision: Vision | None = None
) -> Asked:
    file = folder / "q.jsonl"
    file.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    found = Checkpoint(checkpoint)
    model = read_model(found.config, found.names(), context, vision)
    reader = driver_of(model).reader(model, checkpoint)
    return task.read(Task(file="q.jsonl"), file, reader, model, checkpoint)


@pytest.fixture
def picture(tmp_path: Path) -> str:
    Image.fromarray(np.full((64, 96, 3), 200, np.uint8)).save(tmp_path / "a.png")
    return "a.png"


def test_a_question_with_its_image(tmp_path: Path, picture: str) -> None:
    """The prompt is the chat template's, the image stands once, however many questions speak of it."""
    found = read(
        tmp_path,
        [
            {"question": "How many?", "answers": ["two", "2"], "image": picture},
            "",
            {"prompt": "<|im_start|>User:<image>And?<end_of_utterance>\nAssistant:", "answer": "no", "image": picture},
        ],
    )
    first, second = found.questions.questions
    assert first.prompt == "<|im_start|>User:<image>How many?<end_of_utterance>\nAssistant:" and first.templated
    assert not second.templated and second.prompt.startswith("<|im_start|>User:<image>And?")
    assert first.right(" 2 ") and first.right("two") and not first.right("Two")
    assert len(found.media) == 1 and found.media[0] == (tmp_path / picture).read_bytes()
    pictures = found.prompts[0].pictures
    assert pictures is not None and [p.shape for p in pictures()] == [(5, 64, 64, 3)]  # 2 × 2 tiles and the whole
    assert (found.prompts[0].ids == 41).sum() == 5 * 4
    assert found.questions.source.startswith("q.jsonl (sha256 ")


@pytest.mark.parametrize(("most", "tiles"), [(5, 5), (4, 1), (1, 1)])
def test_fewer_tiles_where_the_recipe_says_so(tmp_path: Path, picture: str, most: int, tiles: int) -> None:
    """An image that would take more is reduced; package and plan say the same bound."""
    line = {"question": "How many?", "answer": "two", "image": picture}
    found = read(tmp_path, [line], vision=Vision(max_tiles=most))
    assert (found.prompts[0].ids == 41).sum() == tiles * 4
    checkpoint = Checkpoint(SEES)
    model = read_model(checkpoint.config, checkpoint.names(), 128, Vision(max_tiles=most))
    assert model.component("vision").entry("tile").dimensions["tiles"] == (1, most)
    driver_of(model).write_companions(model, SEES, tmp_path)
    assert json.loads((tmp_path / "preprocessing.json").read_text())["images"]["max_tiles"] == most


def test_a_text_model_reads_prompts(tmp_path: Path) -> None:
    """A prompt comes after what the tokenizer begins with; a question's template has that already."""
    found = read(tmp_path, [{"question": "def f(", "answer": "self"}, {"prompt": "import ", "answer": "os"}], READS)
    leading = found.questions.leading
    assert len(leading) == 1 and all(tuple(prompt.ids[:1]) == leading for prompt in found.prompts)
    assert [question.templated for question in found.questions.questions] == [True, False]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"question": "?", "answer": "a", "img": "a.png"}, r"'img' is no key of a question; answer, answers, image"),
        ({"answer": "a"}, r"needs a text under one of question and prompt"),
        ({"question": " ", "answer": "a"}, r"needs a text under one of"),
        ({"question": "a", "prompt": "b", "answer": "c"}, r"needs a text under one of"),
        ({"question": "a"}, r"needs an answer, or several under answers"),
        ({"question": "a", "answers": []}, r"needs an answer"),
        ({"question": "a", "answer": 3}, r"answer must be a text, or answers a list of them"),
        ({"question": "a", "answer": "b", "image": "none.png"}, r"none\.png: .*No such file"),
        ({"question": "a", "answer": "b", "image": "q.jsonl"}, r"q\.jsonl: not an image that can be read"),
        ({"question": "a", "answer": "b", "image": "\0"}, "null|NUL"),
        ({"question": "word " * 200, "answer": "b"}, r"context holds 128: give fewer"),
        ({"prompt": "no marker", "answer": "b", "image": "a.png"}, r"the prompt has no <image> that says where"),
        ({"prompt": "<image>", "answer": "b"}, r"the prompt has 1 × <image>, and no image was given"),
        ("[1]", "object"),
        ('{"question": ', "JSON"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, picture: str, line: Any, message: str) -> None:
    good = {"question": "a", "answer": "b", "image": picture}
    with pytest.raises(EdgewrightError, match=message) as error:
        read(tmp_path, [good, line])
    assert str(error.value).startswith(f"validate.task.file: {tmp_path / 'q.jsonl'}:2: ")


def test_other_refusals(tmp_path: Path, picture: str) -> None:
    with pytest.raises(EdgewrightError, match=r"q\.jsonl:1: speaks of 'a\.png', and the model sees neither"):
        read(tmp_path, [{"question": "a", "answer": "b", "image": picture}], READS)
    with pytest.raises(EdgewrightError, match=r"q\.jsonl holds no question"):
        read(tmp_path, ["", " "])
    with pytest.raises(EdgewrightError, match=r"its prompt has \d+ tokens; context\.max_tokens is 8"):
        read(tmp_path, [{"prompt": "import os\n" * 9, "answer": "b"}], READS, context=8)


def test_an_image_that_many_questions_speak_of_is_read_once(tmp_path: Path, picture: str, monkeypatch: Any) -> None:
    from compiler import questions

    opened: list[Path] = []
    monkeypatch.setattr(questions, "read_bytes", lambda path, limit: (opened.append(path), Path(path).read_bytes())[1])
    found = read(tmp_path, [{"question": f"{n}?", "answer": "b", "image": picture} for n in range(5)])
    assert opened == [tmp_path / "q.jsonl", tmp_path / picture] and len(found.prompts) == 5
