"""The one shape of progress reporting: a callable, so that no room needs to know how progress is drawn."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""``progress(stage, done, total)``: a stage is a short present participle ("hashing"), with a unit of its choice."""


def prefixed(progress: Progress, name: str) -> Progress:
    """The same, each stage said to be of `name`."""
    return lambda stage, done, total: progress(f"{name}: {stage}", done, total)


def silent(stage: str, done: int, total: int) -> None:
    """Report to nobody."""
