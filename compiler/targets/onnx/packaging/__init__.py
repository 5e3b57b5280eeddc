"""What ecosystems want of a package: one module for each driver, found by the driver's name.

A module has the functions of `Packaging`. Only here may the target know what a model is for.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from artifacts.formats import onnx as formats
    from compiler.quantize.kv import CacheScales
    from compiler.targets.base import BuildJob, Job
    from compiler.targets.onnx.layout import Plan


class Packaging(Protocol):
    """A module of this folder, or `generic.py` for a driver that has none."""

    def plans(self, job: Job, cache: Sequence[CacheScales] | None) -> list[Plan]:
        """The graph files of the package. cache: what `measured` found, None for caches in float32."""

    def measured(self, job: BuildJob) -> list[CacheScales]:
        """Scales of INT8 caches, in the order of the graph's attentions: what the option `kv_bits` asks for."""

    def write(self, job: BuildJob, folder: Path, graphs: Sequence[formats.Graph]) -> None:
        """The files beside the graphs."""


def has_packaging(driver: str) -> bool:
    return importlib.util.find_spec(f"{__name__}.{driver}") is not None


def packaging_of(driver: str) -> Packaging:
    """That of a driver, or the generic one."""
    name = f"{__name__}.{driver}" if has_packaging(driver) else "compiler.targets.onnx.generic"
    found: Packaging = importlib.import_module(name)
    return found
