"""The layout of a model whose driver has no packaging: `<component>.<entry>.onnx` for every entry that an app calls,
the graphs of a component over one `<component>.onnx.data`, ports and states by their own names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from artifacts.formats import onnx as formats
from compiler.models.base import Component, Entry
from compiler.quantize.kv import CacheScales
from compiler.targets.base import BuildJob, Job
from compiler.targets.card import About

if TYPE_CHECKING:
    from compiler.targets.onnx.layout import Plan

LIBRARY = "onnxruntime"
TOKENIZER_OPTIONS: dict[str, str] = {}


_CODES = (
    "Convolutions multiply 8-bit activations: QuantizeLinear and DequantizeLinear around them become one kernel when "
    "the graph is loaded, unless `session.disable_quant_qdq` is `1`, which makes everything floats."
)
_DECODED = (
    "Convolutions keep their packed weights in memory and decode them in every call. The session option "
    "`session.disable_quant_qdq` = `1` decodes them once, when the graph is loaded: faster calls, 4 bytes a weight."
)


def refusals(job: Job) -> list[str]:
    """See `packaging.Packaging`; nobody knows what to feed an unknown model with, to measure its caches."""
    if job.options.kv_bits == 32:
        return []
    return [f"onnx: kv_bits: 8 is not known for a model that is driven as {job.model.driver!r}; leave it out"]


def entries(job: Job, component: Component) -> list[Entry]:
    """All that an app calls."""
    return list(component.shipped)


def plans(job: Job, cache: Sequence[CacheScales] | None) -> list[Plan]:
    """One for every shipped entry."""
    from compiler.targets.onnx.layout import Plan

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
        for entry in entries(job, component)
    ]


def measured(job: BuildJob) -> list[CacheScales]:
    """Refused before."""
    raise NotImplementedError


def write(job: BuildJob, folder: Path, graphs: Sequence[formats.Graph]) -> None:
    """Nothing: no ecosystem reads this layout."""


def about(job: Job) -> About:
    """Nothing is known of it."""
    return About()


def sections(job: BuildJob, graphs: Sequence[formats.Graph]) -> list[str]:
    """How each file is called."""
    rows = []
    for graph in graphs:
        states = [s for s in graph.states.values() if s.output is not None]
        after = ", ".join(f"`{s.input}` ← `{s.output}`" for s in states) or "none"
        names = [", ".join(f"`{name}`" for name in ports.values()) for ports in (graph.inputs, graph.outputs)]
        rows.append(f"| `{graph.file}` | {names[0]} | {names[1]} | {after} |")
    table = "\n".join(["| file | inputs | outputs | states |", "|---|---|---|---|", *rows])
    return [
        f"## Calling it\n\n{table}\n\nShapes and dtypes are in `edgewright.json` under `components`. A state is zeros "
        "at first; after a call its output is the input of the next one. The weights of a component are in its "
        "`.onnx.data`, which ONNX Runtime maps from beside the graph.\n\n```python\nimport onnxruntime\n\n"
        f'session = onnxruntime.InferenceSession("{graphs[0].file}")\noutputs = session.run(None, inputs)\n```\n\n'
        + (_CODES if any(graph.codes for graph in graphs) else _DECODED)
    ]
