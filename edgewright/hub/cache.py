"""The cache of the Hub's client, one repository at one commit: what of it may be read and written, and how.

What lives here: every path, each checked before it is opened or replaced, and the comparison of digests. What must
not: anything that a server said; files are known by the digests of the lock alone. Nothing is ever deleted here but
what this module wrote itself.

The layout is the client's own: `blobs/<digest>`, and `snapshots/<commit>/<path>` which links there, so that files are
shared with everything else that uses the Hub.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from artifacts import EdgewrightError
from edgewright.hub.lock import LockedFile

_CHUNK = 1 << 20


class Cache:
    """One repository's part of the cache, below HF_HUB_CACHE."""

    def __init__(self, repo: str, commit: str) -> None:
        from huggingface_hub import constants

        self.root = Path(os.path.realpath(os.path.expanduser(constants.HF_HUB_CACHE)))
        name = f"models--{repo.replace('/', '--')}"
        self._blobs = self.root / name / "blobs"
        self.snapshot = self.root / name / "snapshots" / commit
        self._locks = self.root / ".locks" / name
        # Where the client keeps what several repositories hold; their blobs are links to it then.
        self._shared = self.root / "blobs"

    def find(self, file: LockedFile, report: Callable[[int], None]) -> Path | None:
        """Where the file's bytes lie, hashed and found right; None if they are not there, or damaged.

        `report` gets the number of bytes hashed so far. Raises EdgewrightError if a link leads elsewhere.
        """
        places = (self._regular(self._blobs / file.digest), self._regular(self.snapshot / file.path))
        return next((p for p in dict.fromkeys(places) if p is not None and _intact(p, file, report)), None)

    @contextmanager
    def receiving(self, file: LockedFile) -> Iterator[BinaryIO]:
        """The file's beginning as far as it was received, to go on at its end; at most one process has it at a time.

        What is in it stays there for the next try until `store` puts it in its place.
        """
        from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]  # not in its __all__

        partial, lock = self._partial(file), self._locks / f"{file.digest}.lock"
        for path in (partial, lock):
            self._regular(path)
            path.parent.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(lock):
            descriptor = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
            with open(descriptor, "r+b") as stream:
                yield stream

    def store(self, file: LockedFile) -> Path:
        """Put what was received, and found right, in its place."""
        blob = self._blobs / file.digest
        self._partial(file).replace(blob)
        return blob

    def link(self, file: LockedFile, place: Path) -> None:
        """Let the snapshot's path of the file lead to `place`, which `find` or `store` gave."""
        path = self.snapshot / file.path
        if os.path.realpath(path) == str(place):
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(f".{file.digest}.{os.getpid()}")
        aside.unlink(missing_ok=True)
        try:
            aside.symlink_to(os.path.relpath(place, path.parent))
        except OSError:  # a file system without links
            shutil.copyfile(place, aside)
        aside.replace(path)

    def free(self) -> int:
        """Bytes that the disk of the cache has left."""
        existing = next(p for p in (self.root, *self.root.parents) if p.exists())
        return shutil.disk_usage(existing).free

    def _partial(self, file: LockedFile) -> Path:
        return self._blobs / f"{file.digest}.incomplete"

    def _regular(self, path: Path) -> Path | None:
        """The regular file that `path` is or leads to, None if there is none."""
        place = Path(os.path.realpath(path))
        if not any(place.is_relative_to(folder) for folder in (self._blobs, self.snapshot, self._shared, self._locks)):
            raise EdgewrightError(
                f"{path}: leads to {place}, outside of the repository's part of the cache, so nothing was read or "
                "removed; delete this link if you did not make it, or give a local copy with --checkpoint PATH"
            )
        try:
            status = place.lstat()
        except FileNotFoundError:
            return None
        if not stat.S_ISREG(status.st_mode):
            raise EdgewrightError(f"{path}: is no regular file, which the cache of the Hub's client never holds there")
        return place


def _intact(place: Path, file: LockedFile, report: Callable[[int], None]) -> bool:
    if place.stat().st_size != file.size:
        return False
    digest = file.hasher()
    with place.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
            report(stream.tell())
    return digest.hexdigest() == file.digest
