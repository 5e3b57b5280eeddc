"""Validations in a process beside this one, which goes on building: what a sweep's variants wait for.

A package's tests run in the runtime and its making runs in PyTorch, so that two cores have something to do. While a
test is timed, making waits at its next step. What must not live here: what is built and in which order (`sweep.py`).
"""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Self, TypeVar

from artifacts import Progress
from edgewright.parallel.local import ended_of
from edgewright.parallel.process import attended, end, environment
from edgewright.parallel.stages import Ended, Order

T = TypeVar("T")
_TIMED = "measuring speed"  # the stage of a validation whose figures another's work would change


class Beside:
    """Hands work to one thread of its own, whose orders run in child processes, one after another. On leaving, what
    has begun is ended and what has not begun never does."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1)
        self._untimed = threading.Event()
        self._untimed.set()
        self._closed = threading.Event()
        self._child: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        self._thread.shutdown(wait=False, cancel_futures=True)
        if (child := self._child) is not None:
            end(child)
        self._thread.shutdown()

    def submit(self, work: Callable[[], T]) -> Future[T]:
        """Have `work` done when everything before it is; it may call `ended`."""
        return self._thread.submit(work)

    def ended(self, order: Order, progress: Progress) -> Ended:
        """Run an order to its end, from work that was submitted."""

        def told(stage: str, done: int, total: int) -> None:
            if stage.endswith(_TIMED) and done < total:
                self._untimed.clear()
            else:
                self._untimed.set()
            progress(stage, done, total)

        try:
            said = attended(order.model_dump_json(), environment(os.environ, None), os.getcwd(), told, self._started)
            return ended_of(said)
        finally:
            self._child = None
            self._untimed.set()

    def building(self, progress: Progress) -> Progress:
        """The progress of work in this thread, which waits at its next step while something is timed."""

        def told(stage: str, done: int, total: int) -> None:
            self._untimed.wait()
            progress(stage, done, total)

        return told

    def _started(self, process: subprocess.Popen[bytes]) -> None:
        self._child = process
        if self._closed.is_set():
            process.terminate()
