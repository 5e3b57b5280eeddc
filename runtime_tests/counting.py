"""How many instructions each call of an artifact's entries executes, where an emulator counts them.

What lives here: marking the calls, in the child, and what the marks say, in the parent. What must not: the emulator
(`device_farm/arm64_counts.py`), and time: instructions differ in theirs.

The driver uses the loaded artifact once, unmarked, so that nothing which happens at a first call counts: then it does
so again, and every call has a mark before and one behind it. Start, load and what the driver itself does lie outside of
them. Within are the runtime's work and the little Python of the session.
"""

from __future__ import annotations

import gc
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

from numpy.typing import NDArray

from artifacts import EdgewrightError, Manifest
from device_farm import arm64_counts
from runtime_tests.drivers import driver_of
from runtime_tests.jobs import Job
from runtime_tests.sessions import Arrays, Session, call_sizes, make_session

_PROMPT, _STEPS, _TILES = 64, 1, 1


class Count(NamedTuple):
    """Instructions of a call, of the mean of several at the same sizes. sizes: by the names of dimensions."""

    component: str
    entry: str
    sizes: dict[str, int]
    calls: int
    instructions: float


def counted(job: Job) -> Job:
    """What is counted: a prompt of tokens and one after it, an image of one tile, or one step of another driver."""
    changes = {"kind": "count", "threads": 1, "prompt_tokens": _PROMPT, "steps": _STEPS, "tiles": _TILES, "film": None}
    return job.model_copy(update=changes)


def mark_calls(job: Job, manifest: Manifest) -> list[tuple[str, str, dict[str, int]]]:
    """In the child: use the artifact as it ships, twice, the second time with marks; what was called, in order."""
    session, driver = make_session(job.artifact, manifest), driver_of(job.artifact, manifest)
    session.load(threads=job.threads)
    driver.run(session, manifest, job, lambda *_, **__: None)
    session.reset()
    marked = _Marked(session, manifest)
    gc.collect()
    gc.disable()  # when it runs depends on what else was allocated
    driver.run(cast(Session, marked), manifest, job, lambda *_, **__: None)
    return marked.called


class _Marked:
    """A session whose calls are between marks."""

    def __init__(self, session: Session, manifest: Manifest) -> None:
        self._session, self._components = session, {part.name: part for part in manifest.components}
        self.called: list[tuple[str, str, dict[str, int]]] = []

    def call(self, component: str, entry: str, **arrays: NDArray[Any]) -> Arrays:
        """See `Session`."""
        known = self._components[component].entry(entry)
        self.called.append((component, entry, call_sizes(f"{component}.{entry}", known, arrays)))
        arm64_counts.mark()
        found = self._session.call(component, entry, **arrays)
        arm64_counts.mark()
        return found

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)


def counts(called: Sequence[tuple[str, str, dict[str, int]]], marks: Sequence[int]) -> list[Count]:
    """What was executed between the marks of calls, those of an entry at the same sizes together.

    Raises EdgewrightError where the marks are not theirs.
    """
    if len(marks) != 2 * len(called) or list(marks) != sorted(marks):
        raise EdgewrightError(f"{len(called)} calls left {len(marks)} marks of the emulator; it counted wrong")
    found: dict[str, Count] = {}
    for (component, entry, sizes), before, behind in zip(called, marks[::2], marks[1::2], strict=True):
        key = f"{component}.{entry} {sorted(sizes.items())}"
        old = found.get(key, Count(component, entry, sizes, 0, 0.0))
        mean = (old.instructions * old.calls + behind - before) / (old.calls + 1)
        found[key] = Count(component, entry, sizes, old.calls + 1, mean)
    return list(found.values())
