"""The built-in text travels with the package: the same under every interpreter, and with its licence."""

from __future__ import annotations

import hashlib
import sysconfig
import tomllib
from pathlib import Path

import pytest

from recipes import corpus

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("split", "files", "sha256"),
    [
        ("train", 496, "ad00cf348169f9bab91419f1db59a75ac287a5c5395cde28b534db25991f193f"),
        ("held-out", 38, "ef84159d3e44ad398e749f6bebfc16ce5db342bbce410399e233316ef68bc40e"),
    ],
)
def test_the_text_is_not_the_running_interpreters(
    split: corpus.Split, files: int, sha256: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    texts = list(corpus.stdlib_texts(split))
    assert len(texts) == files
    assert hashlib.sha256("\0".join(texts).encode()).hexdigest() == sha256


def test_the_splits_share_no_file() -> None:
    assert not set(corpus.stdlib_texts("train")) & set(corpus.stdlib_texts("held-out"))


def test_the_package_carries_text_and_licence() -> None:
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["recipes"]
    carried = {path.name for pattern in patterns for path in (ROOT / "recipes").glob(pattern)}
    names = {corpus.text_path("train").name, corpus.text_path("held-out").name}
    assert names | {"LICENSE.txt", "README.md"} <= carried
    about = (ROOT / "recipes" / "text" / "README.md").read_text()
    assert f"CPython {corpus.STDLIB_VERSION}" in about and "PSF License Agreement" in about
    assert "PYTHON SOFTWARE FOUNDATION LICENSE" in (ROOT / "recipes" / "text" / "LICENSE.txt").read_text()
    assert sum(corpus.text_path(split).stat().st_size for split in ("train", "held-out")) < 2_500_000
