"""The layout of a model whose driver has no packaging: `<component>.<entry>.onnx` for every entry that an app calls,
the graphs of a component over one `<component>.onnx.data`, ports and states by their own names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from artifacts.formats import onnx as formats
from compiler.quantize.kv import CacheScales
from compiler.targets.base import BuildJob, Job
from compiler.targets.onnx.layout import Plan


def plans(job: Job, cache: Sequence[CacheScales] | None) -> list[Plan]:
    """See `packaging.Packaging`."""
    return [
        Plan(
            file=f"{component.name}.{entry.name}.onnx",
            data=f"{component.name}.onnx.data",
            component=component,
            entry=entry,
            serves=(entry.name,),
            inline=len(component.shipped) == 1,
        )
        for component in job.model.components
        for entry in component.shipped
    ]


def measured(job: BuildJob) -> list[CacheScales]:
    """Nobody knows what to feed an unknown model with; the target refuses `kv_bits: 8` for it."""
    raise NotImplementedError


def write(job: BuildJob, folder: Path, graphs: Sequence[formats.Graph]) -> None:
    """Nothing: no ecosystem reads this layout."""
