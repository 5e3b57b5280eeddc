"""Stages on a Ray cluster: each a task that attends to the same child process as on one machine.

The recipes, their checkpoints and `--out` lie where every node finds them under the same path. Ray admits a task where
its core and declared memory are free. What must not live here: what comes after what (`__init__.py`).
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from artifacts import EdgewrightError, MissingTool, Progress
from edgewright.again import NUMERICS
from edgewright.parallel.local import available_bytes, ended_of, usable_cores
from edgewright.parallel.process import attended, environment
from edgewright.parallel.stages import Ended, Stage

_OBJECTS_BYTES = 80 << 20  # reports are all that goes through Ray; the least that it takes
_PATIENCE_S = 30.0  # for tasks whose children clean up
_KILLED = 128 + signal.SIGKILL


class RayExecutor:
    """On the cluster that RAY_ADDRESS names (`auto`: the one of this machine), else on one that is started here.

    workers: the most tasks at once; None: as many as the cluster takes. Raises MissingTool without Ray,
    EdgewrightError where no cluster answers.
    """

    def __init__(self, workers: int | None, progress: Progress) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            import ray
        except ImportError as error:
            raise MissingTool("--executor ray needs Ray: pip install 'edgewright[cluster]'") from error
        self._ray: Any = ray
        self._workers, self._progress = workers, progress
        self._waiting: list[Stage] = []
        self._running: dict[Any, Stage] = {}
        self._ours = not ray.is_initialized()
        options: dict[str, Any] = {}
        if "RAY_ADDRESS" not in os.environ:
            options = {
                "address": "local",
                "num_cpus": min(workers or usable_cores(), usable_cores()),
                "_memory": available_bytes(),
                "object_store_memory": _OBJECTS_BYTES,
                "include_dashboard": False,
            }
        with _signals_kept():
            if self._ours:
                try:
                    ray.init(**options, log_to_driver=False, logging_level=logging.ERROR)
                except ConnectionError as error:
                    raise EdgewrightError(f"RAY_ADDRESS: {os.environ['RAY_ADDRESS']}: no cluster is there") from error
                except Exception as error:  # Ray's own class for a node that is not up in time is this one
                    said = (str(error).strip() or repr(error)).splitlines()[0]
                    raise EdgewrightError(f"Ray did not start: {said}") from error
        self._task = ray.remote(max_retries=1)(_on_worker)

    def submit(self, stage: Stage) -> None:
        """It is handed to Ray by `wait`."""
        self._waiting.append(stage)

    def wait(self) -> tuple[Stage, Ended]:
        """Hand out what may run, then wait for the next end. A worker that died was tried once more by Ray."""
        while self._waiting and (self._workers is None or len(self._running) < self._workers):
            self._start(self._waiting.pop(0))
        ready: list[Any] = []
        while not ready:
            ready, _ = self._ray.wait(list(self._running), num_returns=1, timeout=1)
        stage = self._running.pop(ready[0])
        try:
            ended = ended_of(self._ray.get(ready[0]))
        except self._ray.exceptions.RayError as error:
            said = str(error).strip().splitlines()[0]
            ended = Ended(None, f"its Ray worker died, and again when it was tried once more: {said}", _KILLED)
        self._progress(stage.name, 1, 1)
        return stage, ended

    def close(self) -> None:
        """Have the tasks end their children, and let the cluster go."""
        for force in (False, True):
            for task in self._running:
                self._ray.cancel(task, force=force)
            if self._running:
                _, left = self._ray.wait(
                    list(self._running), num_returns=len(self._running), timeout=0 if force else _PATIENCE_S
                )
                self._running = {task: self._running[task] for task in left}
        if self._ours:
            self._ray.shutdown()

    def _start(self, stage: Stage) -> None:
        self._progress(stage.name, 0, 1)
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        cores = max(node.get("CPU", 0) for node in nodes)
        if stage.exclusive:  # a whole machine
            nodes = [node for node in nodes if node.get("CPU", 0) == cores]
        room = int(
            max(node.get("memory", 0) for node in nodes)
        )  # what is larger than any machine is tried all the same
        task = self._task.options(
            name=stage.name,
            num_cpus=cores if stage.exclusive else 1,
            memory=min(stage.memory_bytes, room),
            runtime_env={"env_vars": {"PYTHONPATH": environment(os.environ, None)["PYTHONPATH"]}},
        )
        settings = {name: value for name, value in os.environ.items() if NUMERICS.fullmatch(name)}
        order = stage.order.model_dump_json()
        self._running[task.remote(order, settings, os.getcwd(), 1 if stage.builds else None)] = stage


def _on_worker(order: str, settings: Mapping[str, str], folder: str, threads: int | None) -> dict[str, Any]:
    """In a worker of Ray, which sets numbers of threads of its own: those of the command hold instead."""
    own = {name: value for name, value in os.environ.items() if not NUMERICS.fullmatch(name)}
    return attended(order, environment({**own, **settings}, threads), folder)


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Ray takes SIGTERM for itself, which would end us before our children."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}
    yield
    if threading.current_thread() is threading.main_thread():
        for number, handler in before.items():
            signal.signal(number, handler)
