"""What an earlier lie, or another program, left in the cache."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

from tests.fuzz.lies.scene import FILES, MODES, SHARD, Mode, Scene


def planted(name: str) -> Callable[[Mode], Mode]:
    def add(mode: Mode) -> Mode:
        MODES[f"in the cache: {name}"] = mode
        return mode

    return add


def _link(scene: Scene, path: Path, to: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(to)


@planted("an entry that links to a file of the user")
def _entry_link(scene: Scene) -> None:
    _link(scene, scene.repository / "snapshots" / scene.commit / "config.json", scene.mine / "precious")


@planted("an entry that links to nothing elsewhere")
def _entry_dangles(scene: Scene) -> None:
    _link(scene, scene.repository / "snapshots" / scene.commit / "config.json", scene.mine / "new")


@planted("an entry that links to itself")
def _entry_loop(scene: Scene) -> None:
    entry = scene.repository / "snapshots" / scene.commit / "config.json"
    _link(scene, entry, entry)


@planted("a snapshot that is a folder of the user")
def _snapshot_link(scene: Scene) -> None:
    _link(scene, scene.repository / "snapshots" / scene.commit, scene.mine)


@planted("blobs that are a folder of the user")
def _blobs_link(scene: Scene) -> None:
    _link(scene, scene.repository / "blobs", scene.mine)


@planted("a repository that is a folder of the user")
def _repository_link(scene: Scene) -> None:
    _link(scene, scene.repository, scene.mine)


@planted("locks that are a folder of the user")
def _locks_link(scene: Scene) -> None:
    _link(scene, scene.cache / ".locks", scene.mine)


@planted("a blob that is a pipe")
def _pipe(scene: Scene) -> None:
    blob = scene.repository / "blobs" / hashlib.sha256(FILES[SHARD]).hexdigest()
    blob.parent.mkdir(parents=True)
    os.mkfifo(blob)


@planted("a beginning that is a link")
def _partial_link(scene: Scene) -> None:
    digest = hashlib.sha256(FILES[SHARD]).hexdigest()
    _link(scene, scene.repository / "blobs" / f"{digest}.incomplete", scene.mine / "precious")


@planted("a beginning that is longer than the file")
def _partial_long(scene: Scene) -> None:
    blobs = scene.repository / "blobs"
    blobs.mkdir(parents=True)
    (blobs / f"{hashlib.sha256(FILES[SHARD]).hexdigest()}.incomplete").write_bytes(b"x" * 9000)


@planted("an entry that is a folder")
def _entry_folder(scene: Scene) -> None:
    (scene.repository / "snapshots" / scene.commit / "config.json").mkdir(parents=True)
