"""Calling a function in a process of its own, which is gone with all its memory when the function has returned.

For what a framework leaves behind (memory that it never gives back, temporary files, patched tables), and for results
that depend on the order of Python's sets: PYTHONHASHSEED is fixed there. The process is a new Python that imports our
packages alone. `multiprocessing` would not do: it imports the caller's `__main__` again, so that a script without a
guard would run twice.

The function, its arguments, its progress and its result travel pickled between the two, over pipes that nobody else
writes to. What must not live here: any function that is called.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from artifacts import EdgewrightError, Progress, scratch_folder

_TAIL = 2000
_NOT_NEEDED = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")


def apart(function: Callable[..., Any], *arguments: Any, progress: Progress) -> Any:
    """`function(*arguments, progress)` in another process.

    function: of one of our modules, by its own name; arguments and result can be pickled. Raises what it raises of
    EdgewrightError, EdgewrightError when the system killed it, RuntimeError with the end of its output when it ends in
    any other way. On an exception here, Ctrl-C included, the process is killed.
    """
    with scratch_folder() as scratch:
        log = scratch / "log"
        with log.open("wb") as errors:
            child = subprocess.Popen(
                [sys.executable, "-m", __name__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=_environment(str(scratch)),
            )
            try:
                kind, value = _exchange(child, (function, arguments), progress)
                code = child.wait()
            finally:
                child.kill()
                child.wait()
                _close(child)
        if kind == "result":
            return value
        if kind == "error":
            raise value
        name = f"{function.__module__}.{function.__qualname__}"
        if code == -signal.SIGKILL:
            raise EdgewrightError(
                f"{name}: the system killed its process, most often because memory ran out; "
                "close other programs or use a machine with more of it"
            )
        raise RuntimeError(f"{name} ended with exit code {code}:\n{log.read_text('utf-8', 'replace')[-_TAIL:]}")


def _close(child: subprocess.Popen[bytes]) -> None:
    assert child.stdin is not None and child.stdout is not None
    with contextlib.suppress(BrokenPipeError):  # what a dead process did not read is of no use to anyone
        child.stdin.close()
    child.stdout.close()


def _environment(scratch: str) -> dict[str, str]:
    """This process's environment for the other: our packages and no working directory in its path, no secrets."""
    inherited = {key: value for key, value in os.environ.items() if key not in _NOT_NEEDED}
    search = [str(Path(__file__).resolve().parents[1]), *filter(None, [inherited.get("PYTHONPATH")])]
    return {
        **inherited,
        "PYTHONPATH": os.pathsep.join(search),
        "PYTHONSAFEPATH": "1",
        "PYTHONHASHSEED": "0",
        "TMPDIR": scratch,
        "TQDM_DISABLE": "1",
    }


def _exchange(child: subprocess.Popen[bytes], call: Any, progress: Progress) -> tuple[str, Any]:
    """Send the call and follow it: ("result", …), ("error", exception) or ("", None) when the process says no more."""
    assert child.stdin is not None and child.stdout is not None
    try:
        child.stdin.write(pickle.dumps(call))
        child.stdin.flush()
        while True:
            kind, value = pickle.load(child.stdout)
            if kind != "progress":
                return kind, value
            progress(*value)
    except (BrokenPipeError, EOFError, pickle.UnpicklingError):  # it died, perhaps in the middle of a word
        return "", None


def _serve() -> None:
    """The other side: one call from stdin; what would be printed to stdout goes to stderr."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def answer(kind: str, value: Any) -> None:
        answers.write(pickle.dumps((kind, value)))
        answers.flush()

    function, arguments = pickle.load(sys.stdin.buffer)
    try:
        answer("result", function(*arguments, lambda *event: answer("progress", event)))
    except EdgewrightError as error:
        answer("error", error)


if __name__ == "__main__":
    _serve()
