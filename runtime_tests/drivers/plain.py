"""Components one after another, each entry's outputs offered to what comes after it under their names and shapes.

For models that need no more than that: no tokens, no samples of sound. Inputs that nothing gave come from the
generator of `artifacts/formats/vectors.py`. The unit of use is a round: every entry once, at its largest dimensions.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from artifacts import EdgewrightError, Figure, Manifest, Progress, ran_here
from artifacts.formats import vectors
from artifacts.formats.frames import pace
from artifacts.formats.interface import Component
from runtime_tests.drivers import Asker, Judged, Phase
from runtime_tests.sessions import Session

if TYPE_CHECKING:
    from runtime_tests.jobs import Job
    from runtime_tests.process import Ended, Failure


def step(session: Session, components: tuple[Component, ...], turn: int) -> dict[str, NDArray[Any]]:
    """Call every entry once at its largest dimensions; all values by port name, the last call's winning."""
    values: dict[str, NDArray[Any]] = {}
    for component in components:
        for entry in component.entries:
            sizes = {name: bound.high for name, bound in entry.dimensions.items()}
            call = vectors.Call(component=component.name, entry=entry.name, sizes=sizes)
            plan = vectors.Calls(seed=turn, calls=(call,), exact=1.0, shipped=1.0)
            _, generated = next(iter(vectors.inputs(plan, components)))
            # of another size it is no input of this entry: many embeddings where a decoder takes one
            shapes = {port.name: port.sized(sizes) for port in entry.inputs}
            given = generated | {name: v for name, v in values.items() if shapes.get(name) == v.shape}
            values |= session.call(component.name, entry.name, **given)
    return {name: np.asarray(value) for name, value in values.items()}


def load(artifact: Path, manifest: Manifest, tiles: int | None = None) -> str:
    """See `Driver`."""
    return "rounds of all entries"


def judge(session: Session, manifest: Manifest, job: Job, progress: Progress) -> Judged:
    """See `Driver`: entry vectors say it all, but for how long a frame takes on any phone."""
    return Judged(warnings=list(filter(None, [pace(manifest.driver.constants)])) if manifest.driver else [])


def run(session: Session, manifest: Manifest, job: Job, phase: Phase) -> None:
    """The phases "first" (one round) and "steady" (the job's `steps` more)."""
    begin = time.perf_counter()
    step(session, manifest.components, 0)
    phase("first", seconds=time.perf_counter() - begin)
    seconds = []
    for turn in range(job.steps):
        begin = time.perf_counter()
        step(session, manifest.components, 1 + turn)
        seconds.append(time.perf_counter() - begin)
    phase("steady", seconds=sum(seconds), median_seconds=statistics.median(seconds))


def asker(session: Session, artifact: Path, manifest: Manifest) -> Asker:
    """See `Driver`."""
    raise EdgewrightError(f"{artifact}: carries questions, and its driver answers none; build the artifact again")


def speed(events: Mapping[str, Mapping[str, Any]]) -> Sequence[Figure]:
    """Seconds of the first round, and rounds a second after it."""
    stand_in = events["load"]["stand_in"]
    return [
        ran_here("host_first_round", events["first"]["seconds"], "s", stand_in),
        ran_here("host_rounds", 1.0 / events["steady"]["median_seconds"], "rounds/s", stand_in),
    ]


def conclude(manifest: Manifest, judged: Judged, ask: Callable[..., Ended]) -> Sequence[Failure]:
    """See `Driver`: nothing else runs such a model."""
    return ()
