"""Stages on this machine: child processes, admitted while cores and declared memory hold them.

What must not live here: what comes after what (`__init__.py`).
"""

from __future__ import annotations

import os
import queue
import subprocess
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from artifacts import Progress, prefixed
from edgewright.parallel.process import attended, end, environment
from edgewright.parallel.stages import Done, Ended, Stage


class LocalExecutor:
    """At the most `workers` child processes at once."""

    def __init__(self, workers: int, progress: Progress, *, cores: int = 0, memory_bytes: int = 0) -> None:
        """cores, memory_bytes: of this machine, where they are not given."""
        self._cores = cores or usable_cores()
        self._workers = min(workers, self._cores)
        self._memory = memory_bytes or available_bytes()
        self._progress = progress
        self._waiting: list[Stage] = []
        self._running: dict[str, tuple[Stage, int]] = {}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._ended: queue.SimpleQueue[tuple[Stage, Ended]] = queue.SimpleQueue()
        self._closed = threading.Event()
        self._threads: list[threading.Thread] = []

    def submit(self, stage: Stage) -> None:
        """It is admitted by `wait`."""
        self._waiting.append(stage)

    def wait(self) -> tuple[Stage, Ended]:
        """Admit what fits, then wait for the next end."""
        self._admit()
        stage, ended = self._ended.get()
        del self._running[stage.name]
        self._processes.pop(stage.name, None)
        return stage, ended

    def close(self) -> None:
        """Ask all children to end, and wait until they have."""
        self._closed.set()
        for process in list(self._processes.values()):
            process.terminate()
        for process in list(self._processes.values()):
            end(process)
        for thread in self._threads:
            thread.join()

    def _admit(self) -> None:
        for stage in list(self._waiting):
            if self._fits(stage):
                self._waiting.remove(stage)
                self._start(stage)

    def _fits(self, stage: Stage) -> bool:
        running = [item for item, _ in self._running.values()]
        if not running:  # what is larger than the machine is tried alone
            return True
        held = sum(item.memory_bytes for item in running)
        return (
            not stage.exclusive
            and not any(item.exclusive for item in running)
            and len(running) < self._workers
            and sum(cores for _, cores in self._running.values()) < self._cores
            and held + stage.memory_bytes <= self._memory
        )

    def _start(self, stage: Stage) -> None:
        """With its share of the cores that nobody uses: all of them where nothing else could begin."""
        free = self._cores - sum(cores for _, cores in self._running.values())
        others = sum(not item.exclusive for item in self._waiting)
        places = min(self._workers - len(self._running), 1 + others)
        cores = self._cores if stage.exclusive else max(1, free // max(1, places))
        self._running[stage.name] = stage, cores
        variables = environment(os.environ, cores if stage.builds else None)
        thread = threading.Thread(target=self._attend, args=(stage, variables))
        self._threads.append(thread)
        thread.start()

    def _attend(self, stage: Stage, variables: Mapping[str, str]) -> None:
        def started(process: subprocess.Popen[bytes]) -> None:
            self._processes[stage.name] = process
            if self._closed.is_set():
                process.terminate()

        try:
            order = stage.order.model_dump_json()
            self._ended.put(
                (
                    stage,
                    ended_of(attended(order, variables, os.getcwd(), prefixed(self._progress, stage.name), started)),
                )
            )
        except BaseException as error:  # of a thread, which nobody else would hear of
            self._ended.put((stage, Ended(None, f"its process could not be run: {error!r}", 70)))
            raise


def ended_of(said: Mapping[str, object]) -> Ended:
    """How a stage ended, by what `attended` gives."""
    if "done" in said:
        return Ended(Done.model_validate_json(str(said["done"])))
    code = said["exit_code"]
    assert isinstance(code, int)
    return Ended(None, str(said["error"]), code)


def usable_cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def available_bytes(proc: Path = Path("/proc"), group: Path = Path("/sys/fs/cgroup")) -> int:
    """Memory that processes could have now, also within a container's limit; where the system does not say, three
    quarters of what is built in. Source: proc(5), ``meminfo``; kernel documentation, control group v2."""
    try:
        lines = (proc / "meminfo").read_text().splitlines()
    except OSError:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") * 3 // 4
    found = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    with suppress(OSError, ValueError):  # the outermost group has no such files; no limit is the word "max"
        held = int((group / "memory.current").read_text())
        found = min(found, max(int((group / "memory.max").read_text()) - held, 0))
    return found
