"""Calibration text: the same for the same seed, through the chat template, and refused with a reason."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from artifacts import EdgewrightError
from compiler.drivers.text import looked_at
from compiler.models.base import read_model
from compiler.text import calibration_file
from recipes.schema import Calibration

from .conftest import CONFIG

MODEL = read_model(CONFIG, None, 64)


def tokens(
    folder: Path, file: Path | None = None, count: int = 512, seed: int = 0
) -> np.ndarray[tuple[int, ...], np.dtype[np.int32]]:
    text = "stdlib-python" if file is None else str(file)
    return looked_at(Calibration(text=text, tokens=count, seed=seed), file, MODEL, folder)


def test_the_seed_decides(small: Path) -> None:
    assert np.array_equal(tokens(small), tokens(small))
    assert not np.array_equal(tokens(small), tokens(small, seed=1))
    assert tokens(small).shape == (2, 256)  # the checkpoint has 256 positions
    assert tokens(small)[0, 0] == CONFIG["bos_token_id"]


def test_a_text_file(small: Path, tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_text("def f(x):\n    return x\n" * 200)
    ids = tokens(small, file, 256)
    text = Tokenizer.from_file(str(small / "tokenizer.json")).decode(ids[0, 1:].tolist())
    assert text.startswith("def f(x):\n    return x\n")


def test_messages_go_through_the_chat_template(small: Path, tmp_path: Path) -> None:
    file = tmp_path / "chat.jsonl"
    turns = [{"role": "user", "content": "sort a list"}, {"role": "assistant", "content": "sorted(x)"}]
    file.write_text("\n".join(json.dumps({"messages": turns}) for _ in range(40)) + "\n")
    tokenizer = Tokenizer.from_file(str(small / "tokenizer.json"))
    expected = tokenizer.encode("<s>[INST]sort a list[/INST]sorted(x)</s>", add_special_tokens=False).ids
    assert tokens(small, file, 256).ravel()[: 2 * len(expected)].tolist() == expected * 2


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", "holds no text"),
        ("a.txt", b" \n\t ", "holds no text"),
        ("a.txt", b"too short", r"has \d+ tokens, 512 are asked for"),
        ("a.txt", b"good \xff\xfe bad", "not UTF-8 text at byte 5"),
        ("a.jsonl", b"\n", "holds no text"),
        ("a.jsonl", b'{"text": "a"}\nnot json\n', r"a\.jsonl:2: not valid JSON"),
        ("a.jsonl", b'{"prompt": "a"}\n', r"a\.jsonl:1: expected"),
        ("a.jsonl", b'{"messages": [5]}\n', "chat template refuses"),
    ],
)
def test_what_is_refused(small: Path, tmp_path: Path, name: str, content: bytes, message: str) -> None:
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(EdgewrightError, match=message):
        tokens(small, file)


def test_a_missing_file_and_a_foreign_tokenizer(small: Path, tmp_path: Path) -> None:
    with pytest.raises(EdgewrightError, match="no such file"):
        calibration_file(Calibration(text="missing.txt"), lambda _: tmp_path / "missing.txt")
    assert calibration_file(Calibration(), lambda _: tmp_path) is None
    tiny = read_model({**CONFIG, "vocab_size": 32}, None, 64)
    with pytest.raises(EdgewrightError, match="the model knows 32 tokens"):
        looked_at(Calibration(tokens=64), None, tiny, small)
