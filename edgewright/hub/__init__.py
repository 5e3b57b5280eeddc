"""Checkpoints from the Hub: resolve a commit once, download what a checkpoint needs, check every byte.

What lives here: the order of things, and what people read when it fails. What must not: anything that reads a weight,
and publishing. `listing.py` asks what there is, `wire.py` bounds every answer, `cache.py` knows the paths, `lock.py`
the file that remembers.

A Hub or mirror is not trusted: of its answers only the listing becomes anything here, digests, sizes and names that
the lock's schema has checked. A file is known by its digest alone, before the first byte of it is asked for.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote

from artifacts import EdgewrightError, Progress
from edgewright.hub.cache import Cache
from edgewright.hub.listing import resolve
from edgewright.hub.lock import LOCK, Lock, LockedFile, read_lock, write_lock
from edgewright.hub.wire import ATTEMPTS, FRESH_BYTES, Hub, Nonsense, Refusal, Unreachable
from edgewright.text import size

__all__ = ["LOCK", "fetch"]


def fetch(repo: str, revision: str | None, lock_file: Path, progress: Progress) -> tuple[Path, str]:
    """The folder of a Hub checkpoint at one commit, downloaded and checked, and that commit.

    `revision` None takes the commit of `lock_file`, or resolves the newest; a lock is written there once all is
    checked. What is in the client's cache already is checked again but not downloaded, and needs no network.

    Raises:
        EdgewrightError: no such repository or commit, no access, no network, no safetensors in it, a file that differs
            from its digest, an answer that makes no sense, or a cache that leads elsewhere.
    """
    try:
        import huggingface_hub.constants  # noqa: F401  # the environment is read here
    except ValueError as error:
        raise EdgewrightError(
            f"a setting of the Hub's client in the environment (HF_…) cannot be used: {error}"
        ) from error
    known = read_lock(lock_file)
    if known is not None and (known.hub != repo or revision not in (None, known.revision)):
        known = None
    with _explained(repo, revision or (known.revision if known else None)):
        lock = known or resolve(Hub(), repo, revision)
        cache = Cache(repo, lock.revision)
        places = _present(cache, lock, progress)
        missing = [file for file in lock.files if file.path not in places]
        if missing:
            places |= _download(cache, lock, missing, progress)
        for file in lock.files:
            cache.link(file, places[file.path])
    if known is None:
        write_lock(lock, lock_file)
    return cache.snapshot, lock.revision


def _present(cache: Cache, lock: Lock, progress: Progress) -> dict[str, Path]:
    """Where in the cache the files lie that are there already and intact."""
    meter, before = _Meter(progress, "checking the cache", sum(file.size for file in lock.files)), 0
    places = {}
    for file in lock.files:
        if place := cache.find(file, meter.beyond(before)):
            places[file.path] = place
        before += file.size
    if places:
        meter.finish()
    return places


def _download(cache: Cache, lock: Lock, files: list[LockedFile], progress: Progress) -> dict[str, Path]:
    """Fetch the files, one after the other, and where they lie then."""
    total, free = sum(file.size for file in files), cache.free()
    if total > free:
        raise EdgewrightError(
            f"{lock.hub}: {size(total)} are still to be downloaded and the disk of {cache.root} has {size(free)} free; "
            "make room, or let HF_HOME name another disk"
        )
    hub, meter, before = Hub(), _Meter(progress, "downloading", total), 0
    places = {}
    for file in files:
        with cache.receiving(file) as partial:
            # Another run may have fetched it while this one waited for its turn.
            if (place := cache.find(file, lambda _: None)) is None:
                _receive(hub, lock, file, partial, meter.beyond(before))
                place = cache.store(file)
        places[file.path] = place
        before += file.size
    meter.finish()
    return places


def _receive(hub: Hub, lock: Lock, file: LockedFile, partial: BinaryIO, report: Callable[[int], None]) -> None:
    """Go on with `partial` until it holds the whole file, and hold it against its digest.

    An attempt that broke off is followed by another one from there on, up to three times unless it brought much.
    """
    path = f"/{quote(lock.hub)}/resolve/{lock.revision}/{quote(file.path)}"
    digest = file.hasher()
    resumed = _resume(partial, file, digest.update)
    failed, restarted = 0, False
    while partial.tell() < file.size:
        start = partial.tell()
        try:
            with hub.content(path, start, file.size) as (begin, pieces):
                if begin != start:
                    if restarted:
                        raise Nonsense("from its beginning again and again")
                    _empty(partial)
                    digest, resumed, restarted = file.hasher(), False, True
                for piece in pieces:
                    partial.write(piece)
                    digest.update(piece)
                    report(partial.tell())
        except Nonsense as error:
            _empty(partial)
            raise Nonsense(f"{file.path}: {error}") from error
        except (Refusal, Unreachable) as error:
            if isinstance(error, Refusal) and error.status == 416:  # there is no file that goes on from here
                _empty(partial)
            brought_much = partial.tell() - start >= FRESH_BYTES
            failed = 1 if brought_much else failed + 1
            if failed == ATTEMPTS or (error.final and not brought_much):
                raise
            time.sleep(failed / 2)
    partial.flush()
    if digest.hexdigest() != file.digest:
        _empty(partial)
        if resumed:  # by what was there before, perhaps
            return _receive(hub, lock, file, partial, report)
        raise EdgewrightError(
            f"{lock.hub}: {file.path} differs from the digest that the Hub states for it, so the download is damaged; "
            "what was received is thrown away, run again to fetch it anew"
        )


def _resume(partial: BinaryIO, file: LockedFile, update: Callable[[bytes], object]) -> bool:
    """Read what an earlier run left. Whether there was any."""
    while chunk := partial.read(1 << 20):
        update(chunk)
        if partial.tell() > file.size:
            break
    return partial.tell() > 0


def _empty(partial: BinaryIO) -> None:
    partial.seek(0)
    partial.truncate()


class _Meter:
    """One stage's progress in bytes. A call for each megabyte is enough for a bar."""

    def __init__(self, progress: Progress, stage: str, total: int) -> None:
        self._progress, self._stage, self._total, self._shown = progress, stage, total, 0

    def beyond(self, before: int) -> Callable[[int], None]:
        """To be told how far one file is, with `before` bytes of other files behind it."""
        return lambda done: self.at(before + done)

    def at(self, done: int) -> None:
        if abs(done - self._shown) >= 1 << 20:
            self._shown = done
            self._progress(self._stage, min(done, self._total), self._total)

    def finish(self) -> None:
        self._progress(self._stage, self._total, self._total)


@contextmanager
def _explained(repo: str, revision: str | None) -> Iterator[None]:
    at = f"{repo} at {revision}" if revision else repo
    try:
        yield
    except Refusal as error:
        raise EdgewrightError(_refused(repo, at, error)) from error
    except Unreachable as error:
        raise EdgewrightError(
            f"{at}: the Hub cannot be reached ({error}); check the network, or give a local copy with --checkpoint PATH"
        ) from error
    except Nonsense as error:
        raise EdgewrightError(
            f"{at}: the Hub's answer makes no sense and was not used ({error}); check HF_ENDPOINT and the network, or "
            "give a local copy with --checkpoint PATH"
        ) from error
    except OSError as error:
        raise EdgewrightError(f"{at}: the download cannot be kept in the Hub client's cache: {error}") from error


def _refused(repo: str, at: str, error: Refusal) -> str:
    if error.code == "GatedRepo":
        return f"{repo}: access must be asked for on its page on the Hub; then log in with `hf auth login`"
    if error.bad_token:
        return f"{repo}: the Hub does not know the token; check HF_TOKEN, or `hf auth login` again"
    if error.code == "RepoNotFound" or error.status == 401:
        return f"{repo}: no such repository on the Hub, or it is private: check checkpoint.hub, or `hf auth login`"
    if error.code == "RevisionNotFound":
        return f"{at}: the repository has no such commit; check checkpoint.revision"
    return f"{at}: the Hub answered with {error}; run again later"
