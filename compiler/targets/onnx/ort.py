"""Small components also in the ORT format, which ONNX Runtime's mobile builds load, with the list of operators that
such a build must have.

A file holds a graph and its weights, all of which a build without memory mapping copies: so components of at most
`MOST_BYTES`, and without states, which no such component has yet. Graphs are optimized as far as every machine does the
same ("basic"): what goes further is made for the machine that converts.

Format: onnxruntime.ai/docs/performance/model-optimizations/ort-format-models.html.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from artifacts import Progress, silent
from artifacts.formats import onnx as formats
from compiler.apart import apart
from compiler.models.base import Component
from compiler.targets.base import Estimate, Job

MOST_BYTES = 32 << 20


def fits(component: Component, estimate: Estimate) -> bool:
    """Whether a component is written in the ORT format too."""
    return not component.states and estimate.weight_bytes <= MOST_BYTES


def refusals(job: Job, estimates: Sequence[Estimate], packaged: bool) -> Iterator[str]:
    """Why `ort` cannot be had. packaged: whether the package is an ecosystem's, which has no place for it."""
    if packaged:
        yield f"onnx: ort: true is not for a model that is driven as {job.model.driver!r}; leave it out"
    elif not any(fits(*pair) for pair in zip(job.model.components, estimates, strict=True)):
        yield (
            f"onnx: ort: true is for components without states of at most {MOST_BYTES >> 20} MiB, which this model has "
            "not; leave it out"
        )


def convert(folder: Path, graphs: Sequence[formats.Graph], components: set[str]) -> list[formats.Graph]:
    """Write the graphs of these components in the ORT format, and what they need; the records of all graphs.

    In a process of its own: ONNX Runtime reads weights into memory, of which it gives little back.
    """
    (folder / formats.ORT).mkdir()
    files = {g.file: f"{formats.ORT}/{Path(g.file).stem}.ort" for g in graphs if g.component in components}
    apart(_convert, folder, files, progress=silent)
    return [graph.model_copy(update={"ort": files.get(graph.file)}) for graph in graphs]


def _convert(folder: Path, files: Mapping[str, str], _: Progress) -> None:
    import onnxruntime
    from onnxruntime.tools.ort_format_model import create_config_from_models

    for source, file in files.items():
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(folder / file)
        options.add_session_config_entry("session.save_model_format", "ORT")
        onnxruntime.InferenceSession(str(folder / source), options, providers=["CPUExecutionProvider"])
    written = [folder / file for file in files.values()]
    create_config_from_models(written, folder / formats.ORT_OPERATORS, enable_type_reduction=True)
    text = (folder / formats.ORT_OPERATORS).read_text(encoding="utf-8")
    (folder / formats.ORT_OPERATORS).write_text(text.replace(f"{folder / formats.ORT}/", ""), encoding="utf-8")


def section(graphs: Sequence[formats.Graph]) -> list[str]:
    """Of README.md: how the files are loaded; nothing where there are none."""
    rows = [f"| `{graph.ort}` | `{graph.file}` |" for graph in graphs if graph.ort is not None]
    if not rows:
        return []
    table = "\n".join(["| file | the same as |", "|---|---|", *rows])
    return [
        f"## In a mobile build\n\n{table}\n\nONNX Runtime's minimal builds read the ORT format alone. Each file holds "
        "its weights; inputs and outputs are those of the graph beside it. A build with just what they need is made "
        f"from `{formats.ORT_OPERATORS}`: `build.py --minimal_build extended --include_ops_by_config "
        f"{Path(formats.ORT_OPERATORS).name} --enable_reduced_operator_type_support`. To keep the weights out of the "
        "heap, map the file and give its bytes to the session with `session.use_ort_model_bytes_directly` and "
        "`session.use_ort_model_bytes_for_initializers` set to `1`. Graphs are optimized as far as every machine does "
        "the same, and `edgewright validate` holds their answers to be those of the `.onnx` files, bit for bit, here."
    ]
