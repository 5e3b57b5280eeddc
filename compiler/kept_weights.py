"""Quantized weights in the store: put there as they are made, and taken from there where they were made before.

What must not live here: how weights are quantized, and which key is theirs (`keys.py`).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from artifacts import Manifest, read_manifest, staged, verify
from artifacts.stages import Found, Store


@contextmanager
def staged_weights(store: Store, out: Path, needed_bytes: int, words: Mapping[str, str]) -> Iterator[Path]:
    """A folder for quantized weights, which is entered in the store before it is put in place."""
    keeping: Callable[[Path], None] | None = None

    def keep(old: Path) -> None:
        assert keeping is not None  # the block below came to its end
        keeping(old)

    with staged(out, needed_bytes=needed_bytes, replaced=keep) as folder:
        yield folder
        key = str(read_manifest(folder).runtime["key"])
        store.put("weights", key, folder, out, words)
        keeping = store.keeping(out, key)


def take_weights(store: Store, key: str, earlier: Manifest | None, out: Path, words: Mapping[str, str]) -> bool:
    """Whether earlier weights are in `out` now: those there, if they are whole, or others that the store has."""
    found = store.find("weights", key, out)
    if found is None and earlier is not None and earlier.runtime.get("key") == key and verify(out) == []:
        store.put("weights", key, out, out, words)  # of a version that had no store
        return True
    if found is None or found.folder == store.out / store.place(out):
        return found is not None
    return store.take(found, out) if found.kept else _copied(store, found, out, words)


def _copied(store: Store, found: Found, out: Path, words: Mapping[str, str]) -> bool:
    """Copy the weights that another recipe has; False where a run of that replaced them meanwhile."""
    try:
        with staged_weights(store, out, found.entry.bytes, words) as folder:
            shutil.copytree(found.folder, folder, dirs_exist_ok=True)
            if verify(folder) or read_manifest(folder).runtime.get("key") != found.entry.key:
                raise FileNotFoundError
    except (FileNotFoundError, shutil.Error):
        return False
    return True
