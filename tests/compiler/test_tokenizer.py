"""tokenizer.json: opened without cutting or padding, and refused by name when it cannot be this model's."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from artifacts import EdgewrightError
from compiler.config import read_config
from compiler.models.base import read_model
from compiler.text import Document, encoder
from compiler.tokenizer import FILE, Encoder, check_tokenizer
from tests.edgewright.conftest import write_checkpoint

Change = Callable[[dict[str, Any]], object]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "weights")


def changed(folder: Path, change: Change) -> Path:
    tree = json.loads((folder / FILE).read_text())
    change(tree)
    (folder / FILE).write_text(json.dumps(tree))
    return folder


def test_a_sound_tokenizer_a_linked_one_and_none_pass(folder: Path) -> None:
    check_tokenizer(folder, 320)
    (folder / FILE).rename(folder / "blob")
    (folder / FILE).symlink_to("blob")
    check_tokenizer(folder, 320)
    (folder / FILE).unlink()
    check_tokenizer(folder, 320)


def test_texts_are_neither_cut_nor_padded(folder: Path) -> None:
    text = "def f(self, value):\n    return self.value + value\n" * 3
    expected = Encoder(folder / FILE).encode(text).ids
    padding = {"strategy": {"Fixed": 4096}, "direction": "Right", "pad_to_multiple_of": None}
    padding |= {"pad_id": 0, "pad_type_id": 0, "pad_token": "<unk>"}
    cut = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    changed(folder, lambda tree: tree.update(padding=padding, truncation=cut))
    assert Encoder(folder / FILE).encode(text).ids == expected
    check_tokenizer(folder, 320)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.update(model={"type": "BPE", "vocab": {}, "merges": []}, added_tokens=[]), "gives 0 tokens"),
        (lambda t: t.update(model={"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "?"}), "cannot encode text"),
        (lambda t: t["model"]["vocab"].update(a=320), "'a' has id 320, and the model knows 320 tokens"),
        (lambda t: t["model"]["vocab"].update(a=2**32 - 1), "'a' has id 4294967295"),
        (lambda t: t.update(model=None), "is not a tokenizer that can be read"),
        (lambda t: t.clear(), "is not a tokenizer that can be read"),
        (
            lambda t: t.update(
                post_processor={
                    "type": "TemplateProcessing",
                    "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
                    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
                    "special_tokens": {"<s>": {"id": "<s>", "ids": [99_999], "tokens": ["<s>"]}},
                }
            ),
            "post_processor adds tokens",
        ),
    ],
)
def test_a_tokenizer_that_is_not_the_models_is_refused(folder: Path, change: Change, message: str) -> None:
    with pytest.raises(EdgewrightError, match=rf"tokenizer\.json: .*{message}"):
        check_tokenizer(changed(folder, change), 320)


def test_a_token_that_was_added_beyond_the_embedding_is_named(folder: Path) -> None:
    vocab = Encoder(folder / FILE).largest()[1] + 1
    check_tokenizer(folder, vocab)
    changed(folder, lambda t: t["added_tokens"].append({**t["added_tokens"][0], "id": vocab, "content": "[PAD]"}))
    with pytest.raises(EdgewrightError, match=rf"'\[PAD\]' has id {vocab}, and the model knows {vocab} tokens.*resize"):
        check_tokenizer(folder, vocab)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: p.write_bytes(b""), "is not a tokenizer that can be read"),
        (lambda p: p.write_bytes(b"{" * 100_000), "is not a tokenizer that can be read"),
        (lambda p: p.write_bytes(b"\xff\xfe"), "is not a tokenizer that can be read"),
        (Path.mkdir, "a folder, not a regular file"),
        (os.mkfifo, "a pipe, not a regular file"),
        (lambda p: p.symlink_to("/dev/zero"), "a device, not a regular file"),
        (lambda p: p.symlink_to("nowhere"), "No such file"),
        (lambda p: p.symlink_to(p.name), "Too many levels of symbolic links"),
    ],
)
def test_a_file_that_is_none_is_refused(folder: Path, make: Callable[[Path], object], message: str) -> None:
    (folder / FILE).unlink()
    make(folder / FILE)
    with pytest.raises(EdgewrightError, match=rf"tokenizer\.json: .*{message}"):
        check_tokenizer(folder, 320)


@pytest.mark.parametrize("name", ["tokenizer_config.json", "special_tokens_map.json"])
def test_the_documents_beside_it_must_be_json(folder: Path, name: str) -> None:
    (folder / name).write_text("{")
    with pytest.raises(EdgewrightError, match=rf"{name}: not valid JSON"):
        check_tokenizer(folder, 320)


def test_texts_begin_as_the_tokenizer_begins_them_whatever_the_config_names(folder: Path) -> None:
    assert Encoder(folder / FILE).leading() == [1]
    changed(folder, lambda tree: tree.update(post_processor=None))
    tokenizer = Encoder(folder / FILE)
    assert tokenizer.leading() == []
    model = read_model(read_config(folder), None, 64)
    assert model.constants["bos"] is not None
    text = "def f(self): return value"
    assert encoder(folder, model)(Document(text)) == tokenizer.encode(text, add_special_tokens=True).ids
