"""What loaders of the MLX ecosystem demand, a file for each driver; for a driver without one, `generic.py` has the same
functions. Only here may the target know what a model is for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from artifacts.formats.interface import Dimension

if TYPE_CHECKING:
    from artifacts import Progress
    from artifacts.formats.mlx import MlxRuntime
    from compiler.models.base import Component, Entry
    from compiler.targets.base import BuildJob, Job
    from compiler.targets.card import About

Narrowed = dict[tuple[str, str, str], Dimension]
"""See `Built.narrowed`."""


class Packaging(Protocol):
    """A module of this folder, or `generic.py`."""

    def refusals(self, job: Job) -> list[str]:
        """What of a job the layout cannot express, one sentence each. Imports no framework."""

    def check(self, job: Job) -> None:
        """Raises EdgewrightError naming the ops without a lowering."""

    def state_bytes(self, job: Job, component: Component) -> int:
        """Of the states of a component, as they are kept between calls."""

    def called(self, entry: Entry) -> dict[str, int]:
        """The sizes of the largest call that is made of an entry."""

    def named(self, job: BuildJob) -> Callable[[str], str]:
        """What the package calls a slot, or a tensor of one."""

    def write(self, job: BuildJob, folder: Path, progress: Progress) -> tuple[MlxRuntime, Narrowed]:
        """Everything beside the weights, which lie in the folder already."""

    def about(self, job: Job) -> About:
        """How README.md begins."""

    def sections(self, job: BuildJob, runtime: MlxRuntime) -> list[str]:
        """Of README.md: how an app loads and calls the package."""
