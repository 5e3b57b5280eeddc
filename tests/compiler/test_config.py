"""config.json and what lies beside it: special tokens from elsewhere, LoRA adapters, and keys of the wrong type."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from artifacts import EdgewrightError
from compiler.checkpoint import Checkpoint, read_config
from compiler.config import Keys, adapter_beside
from compiler.tensors import CheckpointError
from tests.compiler.conftest import MINISTRAL3, random_tensors, save


def test_a_key_that_is_wrong_is_named_with_its_place_and_what_it_must_be() -> None:
    keys = Keys({"a": "x", "list": [1, 2], "none": None, "yes": True, "section": {"deep": 10**30}})
    wrong: list[tuple[Any, str]] = [
        (lambda: keys.integer("a", 1, 9), r"^config\.json: a must be a whole number from 1 to 9, not 'x'$"),
        (lambda: keys.integer("yes", 0, 9), "not True"),
        (lambda: keys.integer("none", 1, 9), "a whole number from 1 to 9, and is missing"),
        (lambda: keys.number("list", 0, 1), r"list must be a number from 0 to 1, not \[1, 2\]"),
        (lambda: keys.flag("a", True), "a must be true or false, not 'x'"),
        (lambda: keys.word("a", ("b", "c")), "a must be one of b, c, not 'x'"),
        (lambda: keys.tokens("a"), "a must be a token id or a list of token ids"),
        (lambda: keys.section("a"), "a must be an object, not 'x'"),
        (lambda: keys.section("section").integer("deep", 1, 9), r"^config\.json: section\.deep must be .*, not 1000"),
    ]
    for read, message in wrong:
        with pytest.raises(CheckpointError, match=message):
            read()


def test_a_key_that_is_missing_takes_its_default() -> None:
    keys = Keys({"none": None})
    assert (keys.integer("none", 1, 9, 3), keys.number("x", 0, 1, 0.5), keys.flag("x", True)) == (3, 0.5, True)
    assert (keys.word("x", ("b",), "b"), keys.tokens("none"), dict(keys.section("none").values)) == ("b", (), {})


def test_a_long_value_is_cut_in_the_message() -> None:
    with pytest.raises(CheckpointError) as raised:
        Keys({"a": ["x" * 10_000] * 10_000}).integer("a", 1, 9)
    assert len(str(raised.value)) < 300


def test_special_tokens_come_from_the_generation_config_and_are_read_as_strictly(ministral: Path) -> None:
    config = {k: v for k, v in MINISTRAL3.items() if k != "eos_token_id"}
    (ministral / "config.json").write_text(json.dumps(config))
    (ministral / "generation_config.json").write_text('{"eos_token_id": [2, 5], "bos_token_id": 9}')
    assert (read_config(ministral)["eos_token_id"], read_config(ministral)["bos_token_id"]) == ([2, 5], 1)
    (ministral / "generation_config.json").write_text('{"eos_token_id": "</s>"}')
    with pytest.raises(CheckpointError, match=r"^generation_config\.json: eos_token_id must be a token id"):
        read_config(ministral)


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "model.safetensors.index.json"])
def test_a_pipe_in_the_place_of_a_document_is_refused_and_not_waited_for(ministral: Path, name: str) -> None:
    (ministral / name).unlink(missing_ok=True)
    os.mkfifo(ministral / name)
    with pytest.raises(EdgewrightError, match=rf"{name}: cannot be read: it is a pipe"):
        Checkpoint(ministral)


def test_weights_that_are_no_file_are_refused(ministral: Path) -> None:
    (ministral / "model.safetensors").unlink()
    (ministral / "model.safetensors").symlink_to("/dev/zero")
    with pytest.raises(EdgewrightError, match=r"model\.safetensors: cannot be read: it is a device"):
        Checkpoint(ministral)


@pytest.mark.parametrize("path", ["a\0b", "x" * 300, "x/" * 5000])
def test_a_folder_that_cannot_exist_is_no_checkpoint_folder(tmp_path: Path, path: str) -> None:
    with pytest.raises(CheckpointError, match="no such checkpoint folder"):
        read_config(tmp_path / path)


@pytest.mark.parametrize(
    ("config", "shown"),
    [
        ('{"base_model_name_or_path": "acme/base"}', "for 'acme/base'"),
        ("{", ""),
        ('{"base_model_name_or_path": 3}', ""),
    ],
)
@pytest.mark.parametrize("with_config", [False, True])
def test_an_adapter_alone_is_called_one_and_told_what_to_do(
    tmp_path: Path, config: str, shown: str, with_config: bool
) -> None:
    (tmp_path / "adapter_config.json").write_text(config)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    if with_config:
        (tmp_path / "config.json").write_text(json.dumps(MINISTRAL3))
    message = (
        rf"holds a LoRA adapter ?{shown}, not a whole checkpoint.*Merge it into its base model first.*save the tok"
    )
    with pytest.raises(CheckpointError, match=message):
        Checkpoint(tmp_path)


def test_an_adapter_beside_the_weights_is_known(tmp_path: Path) -> None:
    folder = save(tmp_path / "m", MINISTRAL3, random_tensors(MINISTRAL3))
    assert adapter_beside(folder) is None
    (folder / "adapter_model.safetensors").write_bytes(b"")
    assert "(adapter_model.safetensors) and is not applied" in str(adapter_beside(folder))
