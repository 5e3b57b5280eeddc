"""Progress: bars on a terminal, one line for each finished stage elsewhere, on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.text import Text

from artifacts import Progress as ProgressCallback
from artifacts import silent
from edgewright.render import console
from edgewright.streams import plain


class _Elapsed(ProgressColumn):
    """Seconds that a stage took, or has taken so far."""

    def render(self, task: Task) -> Text:
        elapsed = task.finished_time if task.finished else task.elapsed
        return Text(f"{elapsed or 0:.1f} s", style="dim")


@contextmanager
def progress(*, shown: bool) -> Iterator[ProgressCallback]:
    """A progress callback: bars on a terminal, one line for each finished stage elsewhere, nothing when not `shown`."""
    if not shown:
        yield silent
    elif sys.stderr.isatty():
        yield from _bars()
    else:
        yield from _lines()


def _bars() -> Iterator[ProgressCallback]:
    columns = (
        TextColumn("  {task.description}", markup=False),
        BarColumn(24),
        TextColumn("{task.percentage:>3.0f} %"),
        _Elapsed(),
    )
    with Progress(*columns, console=console(stderr=True)) as bars:
        tasks: dict[str, TaskID] = {}

        def show(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(plain(stage, lines=False))
            bars.update(tasks[stage], completed=done, total=max(total, 1))

        yield show
        for task in bars.tasks:  # the work came to its good end, and so did every part of it
            bars.update(task.id, completed=task.total)


def _lines() -> Iterator[ProgressCallback]:
    started: dict[str, float] = {}

    def show(stage: str, done: int, total: int) -> None:
        begin = started.setdefault(stage, time.monotonic())
        if done >= total and begin >= 0:
            started[stage] = -1.0
            if (took := time.monotonic() - begin) > 0.05:
                print(f"  {plain(stage, lines=False)}: {took:.1f} s", file=sys.stderr, flush=True)

    yield show
