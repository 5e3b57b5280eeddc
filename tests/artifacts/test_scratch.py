"""Temporary folders: gone when the step ends, and those of killed processes when the next one begins."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from artifacts import EdgewrightError, scratch, scratch_folder

ROOT = Path(__file__).parents[2]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """TMPDIR for this test, in which nothing was cleaned yet."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    scratch._clean_once.cache_clear()
    yield tmp_path
    scratch._clean_once.cache_clear()


def names(place: Path) -> list[str]:
    return sorted(path.name for path in place.iterdir())


def killed(place: Path) -> str:
    """The name of the folder that a process leaves when it is killed while it uses one."""
    code = (
        "import time\nfrom artifacts import scratch_folder\n"
        "with scratch_folder() as folder:\n"
        "    (folder / 'order.json').write_text('{}')\n    print(folder.name, flush=True)\n    time.sleep(600)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert child.stdout is not None
    name = child.stdout.readline().strip()
    child.kill()
    child.wait()
    child.stdout.close()
    return name


def test_it_is_private_and_gone_afterwards(place: Path) -> None:
    with pytest.raises(ValueError, match="mine"), scratch_folder() as folder:
        assert folder.parent == place and folder.stat().st_mode & 0o777 == 0o700
        (folder / "deep").mkdir()
        (folder / "deep" / "file").write_text("x")
        raise ValueError("mine")
    assert names(place) == []


def test_what_a_killed_process_left_is_removed_by_the_next(place: Path) -> None:
    left = killed(place)
    assert names(place) == [left]
    with scratch_folder() as folder:
        assert names(place) == [folder.name] != [left]


def test_one_that_is_in_use_is_left_alone(place: Path) -> None:
    with scratch_folder() as mine:
        scratch._clean_once.cache_clear()
        with scratch_folder() as other:
            assert names(place) == sorted([mine.name, other.name])
        assert names(place) == [mine.name]


def test_nothing_of_anybody_else_is_touched(place: Path) -> None:
    """Folders with nearly the name, files, and links to folders with a user's own work in them."""
    for name in (
        "edgewright-notes",
        "edgewright-scratch-",
        "edgewright-scratch-toolongname",
        "edgewright-scratch-ABCDEFGH",
    ):
        (place / name).mkdir()
    (place / "edgewright-scratch-aaaaaaaa").write_text("a file")
    (place / "thesis").mkdir()
    (place / "thesis" / "chapter1.tex").write_text("years of work")
    (place / "edgewright-scratch-bbbbbbbb").symlink_to(place / "thesis")
    before = names(place)
    with scratch_folder():
        pass
    assert names(place) == before
    assert (place / "thesis" / "chapter1.tex").read_text() == "years of work"


def test_a_place_that_cannot_be_used_is_one_message(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(place / "nowhere"))
    with (
        pytest.raises(EdgewrightError, match=r"nowhere: no temporary folder can be made .*set TMPDIR"),
        scratch_folder(),
    ):
        raise AssertionError("never reached")
    monkeypatch.setattr(tempfile, "tempdir", None)
    with pytest.raises(EdgewrightError, match=r"no room for temporary files .*set TMPDIR"), scratch_folder() as folder:
        raise OSError(28, "No space left on device", str(folder / "order.json"))
    with pytest.raises(OSError, match="elsewhere"), scratch_folder():
        raise OSError(28, "elsewhere", "/dev/full")
    assert names(place) == []
