"""One file of a repository, received and held against its digest; and what people read when a Hub fails them.

What lives here: going on where an attempt broke off, progress in bytes, the messages. What must not: which files are
wanted, and where they end up.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import BinaryIO
from urllib.parse import quote

from artifacts import EdgewrightError, Progress
from edgewright.hub.lock import LockedFile
from edgewright.hub.wire import ATTEMPTS, FRESH_BYTES, Hub, Nonsense, Refusal, Unreachable


def receive(
    hub: Hub, repo: str, commit: str, file: LockedFile, partial: BinaryIO, report: Callable[[int], None]
) -> None:
    """Go on with `partial` until it holds the whole file, and hold it against its digest.

    An attempt that broke off is followed by another one from there on, up to three times unless it brought much.
    """
    path = f"/{quote(repo)}/resolve/{commit}/{quote(file.path)}"
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
            return receive(hub, repo, commit, file, partial, report)
        raise EdgewrightError(
            f"{repo}: {file.path} differs from the digest that the Hub states for it, so the download is damaged; "
            "what was received is thrown away, run again to fetch it anew"
        )


def content(hub: Hub, repo: str, commit: str, file: LockedFile) -> bytes:
    """A small file whole, held against its digest. Raises what `receive` raises."""
    held = BytesIO()
    receive(hub, repo, commit, file, held, lambda _: None)
    return held.getvalue()


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


class Meter:
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


@dataclass(frozen=True)
class Words:
    """What messages call the places where a user named repository and commit, and what else can be done."""

    repo: str = "check checkpoint.hub"
    commit: str = "checkpoint.revision"
    instead: str = ", or give a local copy with --checkpoint PATH"
    place: str = "the Hub client's cache"


@contextmanager
def explained(repo: str, revision: str | None, words: Words) -> Iterator[None]:
    """Turn what a Hub or the disk did into one message. Raises EdgewrightError."""
    at = f"{repo} at {revision}" if revision else repo
    try:
        yield
    except Refusal as error:
        raise EdgewrightError(_refused(repo, at, error, words)) from error
    except Unreachable as error:
        raise EdgewrightError(f"{at}: the Hub cannot be reached ({error}); check the network{words.instead}") from error
    except Nonsense as error:
        raise EdgewrightError(
            f"{at}: the Hub's answer makes no sense and was not used ({error}); check HF_ENDPOINT and the network"
            f"{words.instead}"
        ) from error
    except OSError as error:
        raise EdgewrightError(f"{at}: the download cannot be kept in {words.place}: {error}") from error


def _refused(repo: str, at: str, error: Refusal, words: Words) -> str:
    if error.code == "GatedRepo":
        return f"{repo}: access must be asked for on its page on the Hub; then log in with `hf auth login`"
    if error.bad_token:
        return f"{repo}: the Hub does not know the token; check HF_TOKEN, or `hf auth login` again"
    if error.code == "RepoNotFound" or error.status == 401:
        return f"{repo}: no such repository on the Hub, or it is private: {words.repo}, or `hf auth login`"
    if error.code == "RevisionNotFound":
        return f"{at}: the repository has no such commit; check {words.commit}"
    return f"{at}: the Hub answered with {error}; run again later"
