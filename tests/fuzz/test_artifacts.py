"""Tampered artifacts: a message, never a defect; nothing is executed that differs from its manifest, nothing outside
is touched, and nothing takes long.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from artifacts import scratch
from edgewright import api, cli
from runtime_tests import validate as validation
from tests.edgewright.conftest import RECIPE, write_checkpoint

from .tampering import MANIFEST, mutate

COMMANDS = ("inspect", "verify", "validate", "quantize-report")
SAMPLE = 16
TARGETS = ("onnx", "coreml", "mlx", "tvm")
EACH = 125
# Where a runtime was started the machine's load counts too; where none was, only what was done to the artifact.
SECONDS, SECONDS_WITH_RUNTIME = 10, 100

Snapshot = dict[str, tuple[int, int, str]]


@pytest.fixture(scope="session")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Builds a target's artifact once and gives its folder."""
    folder = tmp_path_factory.mktemp("originals")
    write_checkpoint(folder / "weights")
    (folder / "small.yaml").write_text(RECIPE)

    def original(target: str) -> Path:
        place = folder / "out" / "small" / target
        if not place.exists():
            api.run(folder / "small.yaml", out=folder / "out", targets=[target], validate=False)
        return place

    return original


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A place with something precious outside of the artifact, a home, a working directory and a TMPDIR of its own."""
    for name in ("outside", "home", "cwd", "tmp", "place"):
        (tmp_path / name).mkdir()
    (tmp_path / "outside" / "precious.txt").write_text("years of work\n" * 100)
    (tmp_path / "outside" / "evil.onnx").write_bytes(b"\x08\x08evil")
    monkeypatch.chdir(tmp_path / "cwd")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    scratch._clean_once.cache_clear()
    yield tmp_path
    scratch._clean_once.cache_clear()


def snapshot(folder: Path, without: str = "") -> Snapshot:
    """Every entry below a folder: mode, time of its last change, and content (of a link: where it leads)."""
    found: Snapshot = {}
    waiting = [str(folder)]
    while waiting:
        place = waiting.pop()
        try:
            entries = [(entry, entry.stat(follow_symlinks=False)) for entry in os.scandir(place)]
        except OSError:  # deeper than a path can be
            continue
        for entry, info in entries:
            if entry.name == without:
                continue
            if entry.is_symlink():
                content = os.readlink(entry.path)
            elif entry.is_file(follow_symlinks=False) and info.st_size < 1 << 24:
                content = hashlib.sha256(Path(entry.path).read_bytes()).hexdigest()
            else:
                content = str(info.st_size) if not entry.is_dir(follow_symlinks=False) else ""
            found[entry.path] = (info.st_mode, 0 if entry.is_dir(follow_symlinks=False) else info.st_mtime_ns, content)
            if entry.is_dir(follow_symlinks=False):
                waiting.append(entry.path)
    return found


def differs(artifact: Path) -> str | None:
    """How a folder differs from its manifest, by no code of ours; None when it does not."""
    listed = {entry["path"]: entry for entry in json.loads((artifact / MANIFEST).read_bytes())["files"]}
    found = set()
    for place, folders, names in os.walk(artifact):
        for name in (*names, *(name for name in folders if os.path.islink(os.path.join(place, name)))):
            path = Path(place, name)
            relative = path.relative_to(artifact).as_posix()
            if relative == MANIFEST:
                continue
            found.add(relative)
            if relative not in listed or path.is_symlink() or not path.is_file():
                return relative
            if hashlib.sha256(path.read_bytes()).hexdigest() != listed[relative]["sha256"]:
                return relative
    return next(iter(listed.keys() - found), None)


@pytest.fixture
def executed(monkeypatch: pytest.MonkeyPatch) -> list[str | None]:
    """For every child in which an artifact was run: how the artifact differed from its manifest at that moment."""
    seen: list[str | None] = []
    real = validation.run_child

    def run_child(job: Any, on_event: Any) -> Any:
        seen.append(differs(job.artifact))
        return real(job, on_event)

    monkeypatch.setattr(validation, "run_child", run_child)
    return seen


def check(
    original: Path, world: Path, seed: int, executed: list[str | None], capsys: pytest.CaptureFixture[str]
) -> None:
    """Tamper with a copy, give it to every command, and look at all that was promised."""
    place, outside = world / "place", world / "outside"
    artifact = place / "artifact"
    shutil.copytree(original, artifact)
    what = f"seed {seed}, {mutate(artifact, outside, seed)}"
    for command in COMMANDS:
        executed.clear()
        before, payload = snapshot(world, "place"), snapshot(place, MANIFEST)
        signal.alarm(SECONDS_WITH_RUNTIME)
        started = time.monotonic()
        try:
            with pytest.raises(SystemExit) as ended:
                cli.main([command, str(artifact)])
        finally:
            signal.alarm(0)
        seconds = time.monotonic() - started
        printed = capsys.readouterr()
        said = f"{what}: {command}: {ended.value.code}\n{printed.out[-3000:]}\n{printed.err[-3000:]}"
        assert ended.value.code in (None, 0, 1, 2), said
        assert "Traceback" not in printed.out + printed.err, said
        assert not set(printed.out + printed.err) & {"\x1b", "\x9b", "\x07", "\u202e", "\0"}, said
        assert executed in ([], [None] * len(executed)), said
        assert executed == [] or command == "validate", said
        assert seconds < (SECONDS_WITH_RUNTIME if executed else SECONDS), f"{seconds:.0f} s, {said}"
        assert snapshot(world, "place") == before, said
        assert snapshot(place, MANIFEST) == payload, said
    for path in sorted(place.iterdir()):
        path.unlink() if path.is_symlink() else shutil.rmtree(path)
    for path in outside.glob("moved-*"):
        shutil.rmtree(path)


def test_a_sample_of_tampered_artifacts(originals, world, executed, capsys):
    for seed in range(SAMPLE):
        check(originals("onnx"), world, seed, executed, capsys)


@pytest.mark.nightly
@pytest.mark.parametrize("target", TARGETS)
def test_all_tampered_artifacts(originals, world, executed, capsys, target):
    for seed in range(EACH):
        check(originals(target), world, 1000 * (1 + TARGETS.index(target)) + seed, executed, capsys)


def test_the_check_itself_sees_what_was_changed(originals, world):
    """Every mutation changes something, the same seed does the same, and the independent comparison finds it."""
    artifact = world / "place" / "artifact"
    found = set()
    for seed in range(60):
        shutil.copytree(originals("onnx"), artifact)
        assert differs(artifact) is None
        found.add(mutate(artifact, world / "outside", seed).split(":")[0])
        for path in sorted((world / "place").iterdir()):
            path.unlink() if path.is_symlink() else shutil.rmtree(path)
    assert found == {"field", "text", "listing", "payload", "signed", "replaced", "added", "moved"}
