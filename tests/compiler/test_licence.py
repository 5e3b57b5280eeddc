"""The licence of a checkpoint's card: one word of its front matter, or nothing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from compiler.licence import licence_of


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
