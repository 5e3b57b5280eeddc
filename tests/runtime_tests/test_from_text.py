"""From text to text: the tokens that a runtime makes of it itself, and how it goes on."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from artifacts import Check, read_manifest
from runtime_tests.from_text import Prompt, read_prompt, text_check, tokens_checks
from runtime_tests.golden import read_golden
from runtime_tests.validate import validate
from tests.edgewright.conftest import write_tokenizer
from tests.runtime_tests.conftest import VOCAB, compile_package, sign_again


def named(checks: Any) -> dict[str, Check]:
    return {check.name: check for check in checks}


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ONNX package whose Hugging Face tokenizer puts a token before every text."""
    out = tmp_path_factory.mktemp("package")
    return compile_package(out, {}, prepare=lambda folder: write_tokenizer(folder, VOCAB))


@pytest.fixture(scope="module")
def checks(package: Path) -> dict[str, Check]:
    return named(validate(package).checks)


def test_genai_leaves_out_the_first_token_by_default_and_a_check_says_so(checks: dict[str, Check]) -> None:
    """No file of a package can change that: genai 0.18 sets add_special_tokens to false when it makes a tokenizer."""
    by_default = checks["genai_tokens_equal_by_default"]
    assert (by_default.value, by_default.verdict, by_default.obtained) == (0.0, None, "measured")
    assert "of the text where Hugging Face's tokenizer makes [1, " in by_default.reason
    assert "tokenizer.update_options(add_special_tokens='true')" in by_default.reason


def test_asked_as_the_artifact_says_genai_makes_the_same_tokens_and_text(
    package: Path, checks: dict[str, Check]
) -> None:
    assert read_manifest(package).runtime["genai_tokenizer_options"] == {"add_special_tokens": "true"}
    assert checks["genai_tokens_equal"].verdict == checks["genai_greedy_equal"].verdict == "passed"


def test_an_artifact_that_does_not_say_it_fails(package: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(package, tmp_path / "onnx"))
    runtime = read_manifest(copy).runtime
    sign_again(copy, runtime={k: v for k, v in runtime.items() if k != "genai_tokenizer_options"})
    found = validate(copy)
    tokens = named(found.checks)["genai_tokens_equal"]
    assert (tokens.value, tokens.verdict, found.verdict) == (0.0, "failed", "failed")


def test_a_tokenizer_that_genai_cannot_read_is_not_assessed(package: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(package, tmp_path / "onnx"))
    (copy / "tokenizer_config.json").unlink()
    runtime = read_manifest(copy).runtime
    sign_again(copy, runtime={**runtime, "payload": None})
    found = validate(copy)
    tokens = named(found.checks)["genai_tokens_equal"]
    assert (tokens.value, tokens.verdict, found.verdict) == (None, "not assessed", "failed")
    assert "genai cannot read the package's tokenizer" in tokens.reason and "tokenizer_config.json" in tokens.reason
    assert validate(copy, allow_unassessed=True).passed


def test_without_a_tokenizer_a_warning_says_that_nothing_began_with_text(tmp_path: Path) -> None:
    found = validate(compile_package(tmp_path, {}))
    assert not [name for name in named(found.checks) if "tokens_equal" in name]
    assert "the package has no tokenizer.json: nothing was tested from text" in found.warnings


@pytest.mark.parametrize("room", [1, 2, 5, 100])
def test_a_prompt_is_the_tokens_of_its_text_and_fits(package: Path, tmp_path: Path, room: int) -> None:
    from tokenizers import Tokenizer

    golden = read_golden(package / "golden.safetensors")
    found = read_prompt(package, golden, room)
    assert 0 < len(found.ids) <= room
    assert (
        found.text is not None
        and Tokenizer.from_file(str(package / "tokenizer.json")).encode(found.text).ids == found.ids
    )
    assert read_prompt(tmp_path, golden, room) == Prompt(None, golden.tokens[0, : min(room, 56)].tolist())


@pytest.mark.parametrize(
    ("by_default", "as_asked", "names", "passed"),
    [
        ([1, 5, 6], [1, 5, 6], ["genai_tokens_equal"], True),
        ([5, 6], [1, 5, 6], ["genai_tokens_equal_by_default", "genai_tokens_equal"], True),
        ([5, 6], [5, 6], ["genai_tokens_equal"], False),
        ([5, 6], [1, 5, 7], ["genai_tokens_equal_by_default", "genai_tokens_equal"], False),
        ([], [], ["genai_tokens_equal"], False),
    ],
)
def test_tokens_count_as_an_app_would_get_them(
    by_default: list[int], as_asked: list[int], names: list[str], passed: bool
) -> None:
    found = tokens_checks("genai", [1, 5, 6], by_default, as_asked, "so")
    assert [check.name for check in found] == names
    assert found[-1].verdict == ("passed" if passed else "failed")
    assert all(check.verdict is None for check in found[:-1])


def test_a_difference_is_shown_from_where_it_begins() -> None:
    found = tokens_checks("genai", [1, 2, 3, 4, 5, 6, 7], [1, 2, 9, 4, 5, 6, 7], [1, 2, 9, 4, 5, 6, 7], "")
    assert found[0].reason == (
        "genai makes […, 9, 4, 5, 6, …] of the text where Hugging Face's tokenizer makes […, 3, 4, 5, 6, …]."
    )


@pytest.mark.parametrize(
    ("said", "plain", "eos", "same"),
    [
        ([5, 6, 7], [5, 6, 7], [2], True),
        ([5, 2], [5, 2, 7], [2], True),
        ([5, 2], [5, 2, 7], 2, True),
        ([5, 6], [5, 6, 7], [2], False),
        ([5, 6], [5, 6, 7], None, False),
        ([5, 8, 7], [5, 6, 7], [2], False),
        ([], [5], [2], False),
    ],
)
def test_a_text_may_end_early_only_at_its_end(said: list[int], plain: list[int], eos: object, same: bool) -> None:
    assert text_check("genai", said, plain, eos).verdict == ("passed" if same else "failed")
