"""What ecosystems demand of a package, a file for each driver; for a driver without one, `generic.py` has the same
functions. Only here may the target know what a model is for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from artifacts.formats import onnx as formats
    from compiler.models.base import Component, Entry
    from compiler.quantize.kv import CacheScales
    from compiler.targets.base import BuildJob, Job
    from compiler.targets.card import About
    from compiler.targets.onnx.layout import Plan


class Packaging(Protocol):
    """A module of this folder, or `generic.py`.

    LIBRARY: what loads the package, by the Hub's name. TOKENIZER_OPTIONS: what an app has to ask genai's tokenizer for.
    """

    LIBRARY: str
    TOKENIZER_OPTIONS: dict[str, str]

    def refusals(self, job: Job) -> list[str]:
        """What of a job the layout cannot express, one sentence each. Imports no framework."""

    def entries(self, job: Job, component: Component) -> list[Entry]:
        """What the graphs of a component compute, a graph each. Imports no framework."""

    def plans(self, job: Job, cache: Sequence[CacheScales] | None) -> list[Plan]:
        """The graph files of the package. cache: what `measured` found, None for caches in float32."""

    def measured(self, job: BuildJob) -> list[CacheScales]:
        """Scales of INT8 caches, in the order of the graph's attentions: what the option `kv_bits` asks for."""

    def write(self, job: BuildJob, folder: Path, graphs: Sequence[formats.Graph]) -> None:
        """The files beside the graphs."""

    def about(self, job: Job) -> About:
        """How README.md begins."""

    def sections(self, job: BuildJob, graphs: Sequence[formats.Graph]) -> list[str]:
        """Of README.md: how an app loads and calls the package."""
