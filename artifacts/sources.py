"""Digests of source code: work is done again when the code that did it has changed, and no version has to be raised."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

_CACHES = ("__pycache__", "checkpoints")  # and checkpoints that ship with their training scripts: input, no code


def sources_digest(paths: Iterable[Path], without: Iterable[Path] = ()) -> str:
    """sha256 in hex over names and content of every file below these files and folders, in any order of the disk.

    without: files and folders that have no part in it. Names count from each path, so that it may lie anywhere.
    """
    left_out, found = frozenset(without), hashlib.sha256()
    for path in paths:
        for file in sorted(_files(path, left_out)):
            name = file.relative_to(path.parent).as_posix()
            found.update(f"{name}\0{file.stat().st_size}\0".encode() + file.read_bytes())
    return found.hexdigest()


def _files(path: Path, left_out: frozenset[Path]) -> Iterator[Path]:
    if path in left_out:
        return
    if path.is_file():
        yield path
        return
    for folder, folders, names in os.walk(path):
        here = Path(folder)
        folders[:] = [name for name in folders if name not in _CACHES and here / name not in left_out]
        yield from (here / name for name in names if here / name not in left_out and not name.endswith(".pyc"))
