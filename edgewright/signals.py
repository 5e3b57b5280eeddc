"""Signals that end a command: raised as an exception, so that what was begun is cleaned up. Standard library only."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_PATIENCE_S = 0.05  # after which a signal that came during an import is looked at again


class Ended(KeyboardInterrupt):
    """A signal that asks the process to end; everything that cleans up after Ctrl-C cleans up after it.

    Ctrl-C raises it too: Python remembers a KeyboardInterrupt itself that passed through `exec`, and would end by the
    signal although it was caught.
    """

    def __init__(self, number: int) -> None:
        self.number = number


@contextmanager
def raised() -> Iterator[None]:
    """SIGINT, SIGTERM and SIGHUP raise Ended; of the last two only the first does, so that cleaning up can end."""
    quiet = (signal.SIGTERM, signal.SIGHUP)

    def end(number: int, frame: FrameType | None) -> None:
        if _importing(frame):
            again = threading.Timer(_PATIENCE_S, os.kill, (os.getpid(), number))
            again.daemon = True
            again.start()
            return
        if number in quiet:
            for each in quiet:
                signal.signal(each, _unheard)
        raise Ended(number)

    # One that is ignored stays so, as nohup wants it; handlers can be set by the main thread alone.
    main_thread = threading.current_thread() is threading.main_thread()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, *quiet) if main_thread}
    ours = [number for number, old in before.items() if old in (signal.SIG_DFL, signal.default_int_handler)]
    for number in ours:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, before[number])


def _unheard(number: int, frame: object) -> None:
    """A signal that came while the first one is obeyed. (Ignored by the system, Python would complain of a race.)"""


def _importing(frame: FrameType | None) -> bool:
    """Whether a module is being imported: an exception there aborts the process in the native parts of some."""
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False
