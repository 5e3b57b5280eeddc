"""Paths that users give."""

from __future__ import annotations

from pathlib import Path

import pytest

from artifacts import EdgewrightError, user_path


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("", "--out: is empty"),
        ("a\0b", r"--out: 'a\\x00b' holds a NUL character"),
        ("\udcff", r"--out: '\\udcff' is not UTF-8 text"),
        ("x" * 256, r"--out: 'x+… \(256 characters\) is too long: .* each name 255"),
        ("/".join(["x" * 200] * 30), r"is too long: absolute, it may have 4095 bytes"),
        ("é" * 128, "is too long"),  # 256 bytes, as the system counts
        ("~nosuchuser/x", "this user has no home folder"),
    ],
)
def test_a_path_that_no_system_takes_is_one_message(given, message):
    with pytest.raises(EdgewrightError, match=message) as caught:
        user_path(given, "--out")
    assert caught.value.exit_code == 2 and len(str(caught.value)) < 300


def test_a_tilde_that_no_shell_expanded_is_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert user_path("~/out", "--out") == tmp_path / "out"
    assert user_path("./~", "--out") == Path("~") and user_path(Path("a b"), "--out") == Path("a b")


def test_room_below_a_path_is_kept():
    with pytest.raises(EdgewrightError, match="it may have 95 bytes"):
        user_path("/" + "x" * 95, "--out", room=4000)


def test_a_working_directory_that_is_gone_is_said(monkeypatch, tmp_path):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(EdgewrightError, match="--out: 'build': the working directory is gone"):
        user_path("build", "--out")
