"""Progress on stderr: bars on a terminal; elsewhere a line for each finished stage, and now and then one meanwhile.

What lives here: time so far and time left. What must not: what a stage does (`artifacts/progress.py` says what it
reports).
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.text import Text

from artifacts import Progress as ProgressCallback
from artifacts import silent
from edgewright.render import console
from edgewright.streams import COLUMNS, plain

_LONG_S = 10.0  # from here on a stage says how much time is left
_AGAIN_S = 30.0  # between its lines in a log
_NAME = 34  # columns of a stage's name on a terminal, so that everything stays below 80


@dataclass
class _Stage:
    """How far a stage is. What an earlier run had done when it began says nothing of its speed."""

    first: int
    done: int
    total: int
    begun: float = field(default_factory=time.monotonic)
    told: float | None = None
    took: float | None = None

    def at(self, done: int, total: int) -> None:
        self.done, self.total = done, total
        if done >= total and self.took is None:
            self.took = time.monotonic() - self.begun

    def so_far(self) -> float:
        return time.monotonic() - self.begun if self.took is None else self.took

    def left(self) -> float | None:
        """Seconds, if it goes on as it went so far; None where that is not known."""
        if self.took is not None or self.done <= self.first:
            return None
        return self.so_far() * (self.total - self.done) / (self.done - self.first)


@contextmanager
def progress(*, shown: bool) -> Iterator[ProgressCallback]:
    """A progress callback: bars on a terminal, lines elsewhere, nothing when not `shown`."""
    if not shown:
        yield silent
    elif sys.stderr.isatty():
        yield from _bars()
    else:
        yield from _lines()


class _Time(ProgressColumn):
    """Seconds that a stage took, or has taken so far; of a long one how many are left."""

    max_refresh = 0.5

    def render(self, task: Task) -> Text:
        stage: _Stage = task.fields["stage"]
        left = stage.left() if stage.so_far() >= _LONG_S else None
        return Text(f"{stage.so_far():.1f} s" if left is None else f"about {_span(left)} left", style="dim")


def _bars() -> Iterator[ProgressCallback]:
    columns = (
        TextColumn("  {task.description}", markup=False),
        BarColumn(16),
        TextColumn("{task.percentage:>3.0f} %"),
        _Time(),
    )
    with Progress(*columns, console=console(stderr=True)) as bars:
        tasks: dict[str, tuple[TaskID, _Stage]] = {}

        def show(name: str, done: int, total: int) -> None:
            if name not in tasks:
                stage = _Stage(done, done, total)
                tasks[name] = bars.add_task(_within(_NAME, name), stage=stage), stage
            task, stage = tasks[name]
            stage.at(done, total)
            bars.update(task, completed=done, total=max(total, 1))

        yield show
        for task in bars.tasks:  # the work came to its good end, and so did every part of it
            task.fields["stage"].at(1, 1)
            bars.update(task.id, completed=task.total)


def _lines() -> Iterator[ProgressCallback]:
    stages: dict[str, _Stage] = {}
    lock, ended = threading.Lock(), threading.Event()

    def show(name: str, done: int, total: int) -> None:
        with lock:
            stage = stages.setdefault(name, _Stage(done, done, total))
            if stage.took is None:
                stage.at(done, total)
                if stage.took is not None and stage.took > 0.05:
                    _say(name, f"{stage.took:.1f} s")

    def tell() -> None:
        """In a thread of its own: a stage that reports nothing for minutes is still seen to run."""
        while not ended.wait(min(1.0, _LONG_S)):
            with lock:
                for name, stage in stages.items():
                    due = stage.begun + _LONG_S if stage.told is None else stage.told + _AGAIN_S
                    if stage.took is None and time.monotonic() >= due:
                        stage.told, left = time.monotonic(), stage.left()
                        rest = "" if left is None else f", {stage.done / stage.total:.0%}, about {_span(left)} left"
                        _say(name, f"{_span(stage.so_far())} so far{rest}")

    teller = threading.Thread(target=tell, daemon=True)
    teller.start()
    try:
        yield show
    finally:
        ended.set()
        teller.join()


def _say(name: str, words: str) -> None:
    room = COLUMNS - len(f"  : {words}")
    print(f"  {_within(room, name)}: {words}", file=sys.stderr, flush=True)


def _within(columns: int, name: str) -> str:
    name = plain(name, lines=False)
    return name if len(name) <= columns else f"{name[: columns - 1]}…"


def _span(seconds: float) -> str:
    """`35 s`, `12 min`, `2.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
