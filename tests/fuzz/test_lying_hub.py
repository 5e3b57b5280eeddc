"""A Hub that lies, through the command line: it ends soon, in a message, and touches nothing but the output and the
cache. A sample runs by default, all of them with `-m nightly`."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.edgewright.hub_server import HubServer
from tests.fuzz.lies import FILES, MODES, TOKEN, Scene

ROOT = Path(__file__).parents[2]
_SAMPLE = [
    "etag is a file of the user",
    "etag is out of the cache",
    "missing files at a commit that is a path",
    "newest commit: a path",
    "tree is null",
    "tree is deep",
    "entry: sha256 is an integer",
    "entry: size 1000000000000000000",
    "entry: path with escapes",
    "pages without end",
    "next page at another host",
    "file redirects to another host",
    "file redirects to a name that is none",
    "file without an end",
    "file at three bytes a second",
    "info is a slow header",
    "an error that repeats the token",
    "asks to come back next week for the files",
    "in the cache: an entry that links to a file of the user",
]
_RECIPE = """\
name: lied-to
checkpoint: {hub: acme/tiny, revision: null}
quantize: {rules: [{match: "*", bits: 4}]}
context: {max_tokens: 64}
targets: {onnx: {}}
"""
_SECONDS = 10  # on a machine that starts the program within one


@pytest.fixture(scope="module")
def patience() -> float:
    """After how many seconds a run hangs, here and now."""
    start = time.monotonic()
    subprocess.run([sys.executable, "-c", "import edgewright.api, huggingface_hub"], cwd=ROOT, check=True)
    return max(_SECONDS, _SECONDS * (time.monotonic() - start))


@pytest.fixture
def scene(tmp_path: Path):
    with HubServer() as hub, HubServer() as other:
        other.commit(FILES)
        scene = Scene(hub, other, tmp_path, hub.commit(FILES))
        scene.mine.mkdir()
        (scene.mine / "precious").write_text("my own")
        neighbour = scene.cache / "models--acme--other" / "blobs"
        neighbour.mkdir(parents=True)
        (neighbour / ("0" * 40)).write_text("another repository's")
        for folder in ("work", "user", "tmp"):
            (tmp_path / folder).mkdir()
        (tmp_path / "work" / "lied-to.yaml").write_text(_RECIPE)
        yield scene


def outside(scene: Scene) -> dict[str, bytes | None]:
    """Everything below the root but the output and the cache's part of this repository."""
    allowed = [scene.root / "out", scene.repository, scene.cache / ".locks" / "models--acme--tiny"]
    made = [scene.cache / "CACHEDIR.TAG", scene.cache / ".locks", *allowed]
    paths = [p for p in scene.root.rglob("*") if p not in made and not any(p.is_relative_to(a) for a in allowed)]
    return {str(p.relative_to(scene.root)): p.read_bytes() if p.is_file() else None for p in paths}


def run(scene: Scene) -> subprocess.CompletedProcess[str]:
    # A patience of two seconds, so that several waits in a row, and starting Python, still end in time.
    env = {
        **{k: v for k, v in os.environ.items() if not k.startswith("HF_")},
        "PYTHONPATH": str(ROOT),
        "HOME": str(scene.root / "user"),
        "TMPDIR": str(scene.root / "tmp"),
        "HF_HOME": str(scene.cache.parent),
        "HF_ENDPOINT": scene.hub.url,
        "HF_TOKEN": TOKEN,
        "HF_HUB_DOWNLOAD_TIMEOUT": "2",
    }
    command = [
        sys.executable,
        "-m",
        "edgewright.cli",
        "run",
        "lied-to.yaml",
        "--out",
        str(scene.root / "out"),
        "--json",
    ]
    return subprocess.run(
        command, cwd=scene.root / "work", env=env, capture_output=True, text=True, errors="replace", timeout=300
    )


def check(scene: Scene, name: str, patience: float) -> None:
    MODES[name](scene)
    before = outside(scene)
    start = time.monotonic()
    done = run(scene)
    seconds = time.monotonic() - start

    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert seconds < patience
    message = json.loads(done.stdout)["error"]["message"]
    assert message.isprintable() and len(message) < 1000, message
    assert f"error: {message}\n" == done.stderr
    assert outside(scene) == before

    kept = [p for p in (scene.root / "out").rglob("*") if p.is_file()]
    assert TOKEN not in done.stdout + done.stderr
    assert not any(TOKEN in path.read_text() for path in kept)
    assert {asked.get("authorization") for asked in scene.other.asked} <= {None}

    announced = {hashlib.sha256(c).hexdigest() for c in FILES.values()}
    announced |= {hashlib.sha1(b"blob %d\0" % len(c) + c).hexdigest() for c in FILES.values()}
    if not (scene.repository / "blobs").is_symlink() and not scene.repository.is_symlink():
        for blob in (scene.repository / "blobs").glob("*"):
            assert blob.suffix == ".incomplete" or blob.name in announced
    sizes = [p.stat().st_size for p in scene.repository.rglob("*") if p.is_file() and not p.is_symlink()]
    assert sum(sizes) < 20_000
    lock = scene.root / "out" / "lied-to" / "recipe.lock.json"
    for file in json.loads(lock.read_text())["files"] if lock.exists() else []:
        assert (scene.repository / "snapshots" / scene.commit / file["path"]).read_bytes() == FILES[file["path"]]


@pytest.mark.parametrize("name", _SAMPLE)
def test_a_lie_ends_in_a_message(scene: Scene, name: str, patience: float) -> None:
    check(scene, name, patience)


@pytest.mark.nightly
@pytest.mark.parametrize("name", sorted(MODES))
def test_every_lie_ends_in_a_message(scene: Scene, name: str, patience: float) -> None:
    check(scene, name, patience)


def test_there_are_enough_of_them() -> None:
    assert len(MODES) >= 60
