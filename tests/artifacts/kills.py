"""A process that is killed just before its n-th change of a folder, and how many changes there are."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

_CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link"}


def kill_before(change: int, folder: Path, kill: Callable[[], None] | None = None) -> Callable[[], int]:
    """Have this process killed before its n-th change below `folder`, from 1 up; returns how many were counted so far.

    There is no way back: call it in a process that is to die.
    """
    kill, counted, root = kill or (lambda: os.kill(os.getpid(), signal.SIGKILL)), 0, os.fspath(folder)

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal counted
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if (writes or event in _CHANGES) and os.path.abspath(str(arguments[0])).startswith(root):
            counted += 1
            if counted == change:
                kill()

    sys.addaudithook(hook)
    return lambda: counted


def forked(work: Callable[[], object]) -> int:
    """Do it in a child; its exit code, or the negative number of the signal that ended it."""
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
