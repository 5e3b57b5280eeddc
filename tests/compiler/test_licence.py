"""The licence of a checkpoint's card: one word of its front matter, or nothing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from compiler.licence import licence_of, licence_warning


@pytest.mark.parametrize(
    ("card", "expected"),
    [
        ("---\nlicense: apache-2.0\n---\n# x", "apache-2.0"),
        ('---\r\ntags: [a]\r\nlicense: "llama3.1"  # theirs\r\n---\r\n', "llama3.1"),
        ("# x\nlicense: mit", None),
        ("---\nlicense: [mit, bsd]\n---\n", None),
        ("---\nlicense: mit\x1b[31m\n---\n", None),
        ("---\ndate: 2026-99-99\nx: " + "[" * 5000 + "\nlicense: mit\n---\n", "mit"),
        ("---\nlicense: mit", None),
    ],
)
def test_the_licence_comes_from_the_front_matter(tmp_path: Path, card: str, expected: str | None) -> None:
    (tmp_path / "README.md").write_bytes(card.encode())
    assert licence_of(tmp_path) == expected


def test_a_card_that_cannot_be_read_states_none(tmp_path: Path) -> None:
    assert licence_of(tmp_path) is None
    os.mkfifo(tmp_path / "README.md")
    assert licence_of(tmp_path) is None


def test_without_a_card_it_is_what_adopt_recorded(tmp_path: Path) -> None:
    for config, expected in (
        ('{"license": "cc-by-nc-4.0"}', "cc-by-nc-4.0"),
        ('{"license": null}', None),
        ('{"license": "all rights\\u001b[31m"}', None),
        ("{}", None),
        ("not json", None),
    ):
        (tmp_path / "config.json").write_text(config)
        assert licence_of(tmp_path) == expected
    (tmp_path / "config.json").write_text('{"license": "cc-by-nc-4.0"}')
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n")
    assert licence_of(tmp_path) == "mit"


@pytest.mark.parametrize("licence", ["apache-2.0", "mit", "llama3.1", "cc-by-4.0", "ncsa", "other"])
def test_nothing_is_said_of_a_licence_that_lets_packages_be_sold(licence: str) -> None:
    assert licence_warning(licence) is None


@pytest.mark.parametrize(
    "licence",
    ["cc-by-nc-4.0", "CC-BY-NC-SA-3.0", "fair-noncommercial-research-license", "intel-research", "apple-amlr"],
)
def test_a_licence_that_does_not_is_named(licence: str) -> None:
    assert f"LICENCE: {licence} forbids commercial use" in str(licence_warning(licence))
