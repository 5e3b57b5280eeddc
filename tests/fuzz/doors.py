"""A public door, watched: what it answers to a hostile document, how long it takes, and where it writes.

What lives here: running one case and judging it. What must not: making cases.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

_LONGEST_MESSAGE = 20_000
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# audit events that change a name: places of (path, descriptor of the folder it is relative to) among their arguments
_CHANGES = {
    "os.mkdir": ((0, 2),),
    "os.remove": ((0, 1),),
    "os.rmdir": ((0, 1),),
    "os.rename": ((0, 2), (1, 3)),
    "os.link": ((0, 2), (1, 3)),
    "os.symlink": ((1, 2),),
    "os.chmod": ((0, 2),),
    "os.truncate": ((0, None),),
}


class TooLong(BaseException):
    """Raised in the door by the alarm; no handler of errors catches it."""


@dataclass
class Watch:
    """Paths that Python code was about to change while it is on."""

    on: bool = False
    changed: set[str] = field(default_factory=set)

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if event == "open" and isinstance(arguments[2], int) and arguments[2] & _WRITING:
            self._note(arguments[0])
        for path, folder in _CHANGES.get(event, ()):
            below = -1 if folder is None else arguments[folder]
            self._note(arguments[path], os.readlink(f"/proc/self/fd/{below}") if below >= 0 else "")

    def _note(self, path: Any, folder: str = "") -> None:
        if isinstance(path, str | bytes | os.PathLike):
            self.changed.add(os.path.abspath(os.path.join(folder, os.fsdecode(path))))


_WATCH = Watch()
_INSTALLED = False


@contextmanager
def watching() -> Iterator[set[str]]:
    """The paths that are written, made, renamed or removed by Python code inside the block."""
    global _INSTALLED
    if not _INSTALLED:  # a hook cannot be taken out again
        sys.addaudithook(_WATCH)
        _INSTALLED = True
    _WATCH.changed = set()
    _WATCH.on = True
    try:
        yield _WATCH.changed
    finally:
        _WATCH.on = False


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Raises TooLong inside the block when it takes longer."""

    def ring(number: int, frame: Any) -> None:
        raise TooLong(f"longer than {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def contents(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of change of everything below a folder, links not followed."""
    found = {}
    for place, folders, files in os.walk(folder):
        for name in folders + files:
            info = os.lstat(os.path.join(place, name))
            found[os.path.join(place, name)] = (info.st_size if name in files else 0, info.st_mtime_ns)
    return found


@dataclass(frozen=True)
class Answer:
    """What a door said. code: the exit code, None for an exception that has none. problem: what must not be."""

    code: int | None
    message: str = ""
    problem: str | None = None
    slow: bool = False


@dataclass(frozen=True)
class Place:
    """A folder of inputs, which no door may change, and one of output, which is emptied after each.

    seconds: after how many a door hangs. It is 10 on a machine on which a sound run takes less than one.
    """

    inputs: Path
    out: Path
    seconds: float = 10.0

    def answer(self, door: Callable[[], Any]) -> Answer:
        """Go through a door and judge what it says and does."""
        before = contents(self.inputs)
        with watching() as changed:
            found = _answer(door, self.seconds)
            if found.slow:  # another process may have had the machine; what hangs does so again
                shutil.rmtree(self.out, ignore_errors=True)
                found = _answer(door, self.seconds)
        outside = sorted(path for path in changed if not path.startswith((str(self.out), os.devnull, "/dev/shm")))
        shutil.rmtree(self.out, ignore_errors=True)
        if found.problem is None and outside:
            return Answer(found.code, found.message, f"written or removed outside of the output: {outside[:5]}")
        if found.problem is None and contents(self.inputs) != before:
            return Answer(found.code, found.message, "its inputs have changed")
        return found

    def timed(self, door: Callable[[], Any]) -> Place:
        """The same place with the patience that this machine needs: ten times what a sound door takes, warm."""
        for _ in range(2):
            started = time.monotonic()
            door()
            seconds = time.monotonic() - started
            shutil.rmtree(self.out, ignore_errors=True)
        return replace(self, seconds=max(10.0, 10 * seconds))


def _answer(door: Callable[[], Any], seconds: float) -> Answer:
    try:
        with at_most(seconds):
            door()
    except TooLong as error:
        return Answer(None, problem=f"{error}\n{traceback.format_exc(limit=-6)}", slow=True)
    except Exception as error:
        code, message = getattr(error, "exit_code", None), str(error)
        if code not in (2, 3):
            return Answer(code, message, traceback.format_exc())
        if not message.strip() or len(message) > _LONGEST_MESSAGE:
            return Answer(code, message, f"a message of {len(message)} characters")
        return Answer(code, message)
    return Answer(0)


def verdict(problems: dict[str, str], codes: Counter[tuple[str, int | None]]) -> str:
    """What to show of a run: the cases that failed, and how often each kind of damage led to each exit code."""
    shown = [f"{case}: {problem[-1500:]}" for case, problem in list(problems.items())[:10]]
    counts = ", ".join(f"{kind} {code}: {count}" for (kind, code), count in sorted(codes.items(), key=str))
    return "\n".join([f"{len(problems)} cases failed", *shown, counts])
