"""The Hub. Checkpoints from there: resolve a commit once, download what a checkpoint needs, check every byte.

What lives here: the order of a checkpoint's download. What must not: anything that reads a weight. `listing.py` asks
what there is, `wire.py` bounds every answer, `receive.py` goes on where one broke off, `cache.py` knows the paths,
`lock.py` the file that remembers. Packages go there with `publish.py` and come back with `pull.py`.

A Hub or mirror is not trusted: of its answers only the listing becomes anything here, digests, sizes and names that
the lock's schema has checked. A file is known by its digest alone, before the first byte of it is asked for.
"""

from __future__ import annotations

from pathlib import Path

from artifacts import EdgewrightError, Progress
from edgewright.hub.cache import Cache
from edgewright.hub.listing import resolve
from edgewright.hub.lock import LOCK, Lock, LockedFile, read_lock, write_lock
from edgewright.hub.receive import Meter, Words, explained, receive
from edgewright.hub.wire import Hub
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
    with explained(repo, revision or (known.revision if known else None), Words()):
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
    meter, before = Meter(progress, "checking the cache", sum(file.size for file in lock.files)), 0
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
    hub, meter, before = Hub(), Meter(progress, "downloading", total), 0
    places = {}
    for file in files:
        with cache.receiving(file) as partial:
            # Another run may have fetched it while this one waited for its turn.
            if (place := cache.find(file, lambda _: None)) is None:
                receive(hub, lock.hub, lock.revision, file, partial, meter.beyond(before))
                place = cache.store(file)
        places[file.path] = place
        before += file.size
    meter.finish()
    return places
