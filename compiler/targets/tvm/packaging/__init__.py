"""What apps are given to call a package, a file for each driver; for a driver without one, `generic.py` has the same
functions. Only here may the target know what a model is for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from artifacts.formats.interface import Dimension
    from artifacts.formats.tvm import Function, TvmRuntime
    from compiler.targets.base import BuildJob, Job
    from compiler.targets.card import About
    from compiler.targets.tvm.captured import Captured
    from compiler.targets.tvm.triples import Triple


class Packaging(Protocol):
    """A module of this folder, or `generic.py`.

    SOURCES: files and folders of the package that an app builds with, and does not ship.
    """

    SOURCES: tuple[str, ...]

    def functions(self, job: Job) -> list[Function]:
        """What a library has, and under which names."""

    def narrowed(self, job: Job) -> dict[tuple[str, str, str], Dimension]:
        """Dimensions that functions take less of than the model's entries, see `Built`."""

    def described(self, job: Job, captured: Captured) -> Mapping[str, Any]:
        """What a library says of itself, besides the digest of its parameters: JSON."""

    def write(self, job: BuildJob, folder: Path, machines: Sequence[Triple]) -> None:
        """The files beside parameters, libraries and tokenizer."""

    def about(self, job: BuildJob) -> About:
        """How README.md begins."""

    def sections(self, job: BuildJob, machines: Sequence[Triple], runtime: TvmRuntime) -> list[str]:
        """Of README.md: how an app loads and calls the package."""
