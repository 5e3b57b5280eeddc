"""Drivers: one file for each way in which an app uses a model's components. They speak to a `Session` only.

An artifact's manifest names its driver and holds the driver's constants, so that an app can do the same. What lives
here: the protocol and the look-up. What must not: a runtime, a target.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from artifacts import MANIFEST, Check, EdgewrightError, Figure, Manifest, Progress
from artifacts.media.images import Pixels
from artifacts.media.video import Clip

if TYPE_CHECKING:
    from runtime_tests.jobs import Job
    from runtime_tests.process import Ended, Failure
    from runtime_tests.sessions import Session

Phase = Callable[..., None]
"""phase(name, **payload): announce the end of a phase of a run, and wait until its memory was read."""


@dataclass
class Judged:
    """What was found about answers. more: of the driver's own, for `conclude`. film: whether the job's was written."""

    figures: list[Figure] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    held_out_text: str = ""
    more: dict[str, Any] = field(default_factory=dict)
    film: bool = False


class Asker(Protocol):
    """The whole job of an app, by what lies in the artifact: a prompt in, with its images and clips, the answer out."""

    def answer(
        self,
        prompt: str,
        images: Sequence[Pixels] = (),
        clips: Sequence[Clip] = (),
        *,
        leading: Sequence[int] = (),
        most: int = 64,
    ) -> str:
        """What the model says after `leading` and the prompt's tokens, in at most `most` tokens or to the context's
        end; special tokens are left out. The prompt has a marker for every image and clip.

        images: uint8 [height, width, 3] each, as `media.images.read_image` gives them. Raises EdgewrightError where the
        prompt is not one, or does not fit the context.
        """


class Driver(Protocol):
    """A module of `runtime_tests/drivers/`."""

    def load(self, artifact: Path, manifest: Manifest, tiles: int | None = None) -> str:
        """The heaviest use that the artifact promises, in a few words: what its memory is measured at.

        tiles: of an image, where an app makes fewer.
        """

    def judge(self, session: Session, manifest: Manifest, job: Job, progress: Progress) -> Judged:
        """In the child: answers against the driver's own vectors. Loads the session itself, in both of its modes."""

    def run(self, session: Session, manifest: Manifest, job: Job, phase: Phase) -> None:
        """In the child: one use of the loaded session, announcing each phase with its seconds; at the full load, or at
        the job's."""

    def asker(self, session: Session, artifact: Path, manifest: Manifest) -> Asker:
        """In the child: who answers questions, of a loaded session. Raises EdgewrightError where nobody does."""

    def speed(self, events: Mapping[str, Mapping[str, Any]]) -> Sequence[Figure]:
        """Figures of a run on this host without limits, from its phases."""

    def conclude(self, manifest: Manifest, judged: Judged, ask: Callable[..., Ended]) -> Sequence[Failure]:
        """In the parent, after `judge`: what other processes say, added to `judged`. ask(stage, **changes of the job):
        runs one and gives its end."""


def driver_of(artifact: Path, manifest: Manifest) -> Driver:
    """The driver that a manifest names. Raises EdgewrightError when there is none of that name."""
    name = manifest.driver.name if manifest.driver else None
    if name is None or importlib.util.find_spec(f"{__name__}.{name}") is None:
        raise EdgewrightError(f"{artifact / MANIFEST}: no driver {name!r} in this Edgewright; upgrade it")
    driver: Any = importlib.import_module(f"{__name__}.{name}")
    found: Driver = driver
    return found


def positive(artifact: Path, manifest: Manifest, key: str, least: int = 2) -> int:
    """A constant of the driver that must be a whole number. Raises EdgewrightError."""
    value = manifest.driver.constants.get(key) if manifest.driver else None
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise EdgewrightError(
            f"{artifact / MANIFEST}: driver.constants.{key} is {value!r}, not a number of {least} or more"
        )
    return value
