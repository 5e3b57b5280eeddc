"""The MLX target: what it refuses, how large it gets, and the package it writes. Imports no MLX to write weights.

The packaging of a model's driver gives the layout that loaders know; without one, `functions.py` traces every entry.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from artifacts import Progress
from artifacts.formats.interface import Dimension
from artifacts.formats.mlx import Function, MlxRuntime
from compiler.models.base import Entry
from compiler.slots import HALF
from compiler.targets.base import BuildJob, Built, Estimate, Job, copy_tokenizer, shipped_files
from compiler.targets.card import About, write_card
from compiler.targets.mlx.geometry import refusal
from compiler.targets.mlx.shards import package_tensors, stored_bytes, write_shards
from compiler.targets.packaging import packaging_of

_NAMED = 3
_PACKAGE = "compiler.targets.mlx"
# between the smallest and the largest size of a dimension nothing is traced: a trace is for one size
_MOST_TRACES = 2


class MlxTarget:
    """Lowers a model to the layout of mlx-community, or to traced functions, from the packed bytes."""

    tools: tuple[str, ...] = ("mlx", "mlx-lm")
    tolerances: Mapping[str, float] = {
        "exact_max_abs_logit": 2e-3,
        "shipped_mean_kl": 2e-3,
        "shipped_min_top1": 0.97,
    }
    entry_tolerances = (2e-5, 3e-2)

    def refusals(self, job: Job) -> list[str]:
        """What of a recipe MLX cannot hold, one sentence for each reason, with the tensors and the nearest choice."""
        reasons: dict[str, list[str]] = {}
        for slot in job.model.slots:
            if (reason := refusal(slot, job.schemes.get(slot.name, HALF))) is not None:
                reasons.setdefault(reason, []).append(slot.name)
        found = [f"mlx: {_listed(names)}: {reason}" for reason, names in reasons.items()]
        packaging = packaging_of(_PACKAGE, job.model.driver)
        return found + (packaging.refusals(job) if packaging else [])

    def estimate(self, job: Job) -> list[Estimate]:
        """Sizes in bytes; activations are those of the largest call that is made of an entry, in float16.

        MLX reads weights into buffers of its own: nothing of them stays mapped.
        """
        packaging = packaging_of(_PACKAGE, job.model.driver)
        found = []
        for component in job.model.components:
            weights = sum(stored_bytes(slot, job.schemes.get(slot.name, HALF)) for slot in component.slots)
            states = packaging.state_bytes(job) if packaging else 2 * component.state_values
            live = max(component.live(e, packaging.called(e) if packaging else e.largest()) for e in component.shipped)
            found.append(Estimate(component.name, weights, weights, states, 2 * live, {"ios": weights}, weights))
        return found

    def check(self, job: Job) -> None:
        """Raises EdgewrightError naming the ops without a lowering. A model class of the ecosystem needs no graph."""
        if packaging_of(_PACKAGE, job.model.driver) is None:
            from compiler.targets.mlx.functions import check

            check(job)

    def build(self, job: BuildJob, folder: Path, progress: Progress) -> Built:
        """Write weights, what the packaging adds, tokenizer and generation files where there are any, and README.md."""
        packaging = packaging_of(_PACKAGE, job.model.driver)
        tensors = package_tensors(job.model.slots, job.weights, packaging.prefix(job) if packaging else "")
        total, done = sum(t.size for t in tensors), 0

        def advance(count: int) -> None:
            nonlocal done
            done += count
            progress("writing weights", done, total)

        write_shards(tensors, folder, sum(s.rows * s.columns for s in job.model.slots), advance)
        copy_tokenizer(job.source, folder)
        narrowed: dict[tuple[str, str, str], Dimension] = {}
        if packaging:
            runtime: MlxRuntime = packaging.write(job, folder, progress)
        else:
            runtime, narrowed = _traced(job, folder, progress)
        sections = packaging.sections(job) if packaging else [_calling(runtime)]
        about = packaging.about(job) if packaging else About()
        write_card(job, folder, runtime="MLX", library="mlx", tags=["mlx"], sections=sections, about=about)
        runtime = runtime.model_copy(update={"payload": {"ios": tuple(shipped_files(folder))}})
        return Built(runtime.model_dump(mode="json"), narrowed)

    def traces(self, job: BuildJob) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
        """None: the graph is called as it is."""
        return iter(())


def _traced(
    job: BuildJob, folder: Path, progress: Progress
) -> tuple[MlxRuntime, dict[tuple[str, str, str], Dimension]]:
    from compiler.targets.mlx.functions import export_entry

    functions, narrowed = [], {}
    entries = [(component, entry) for component in job.model.components for entry in component.shipped]
    for done, (component, entry) in enumerate(entries):
        progress("tracing functions", done, len(entries))
        file = f"{component.name}.{entry.name}.mlxfn"
        sizes = traced_sizes(entry)
        export_entry(job, component, entry, sizes, folder, folder / file)
        functions.append(Function(component=component.name, entry=entry.name, file=file))
        for name, (low, high) in entry.dimensions.items():
            chosen = tuple(sorted({size[name] for size in sizes}))
            narrowed[component.name, entry.name, name] = Dimension(low=low, high=high, sizes=chosen)
    progress("tracing functions", len(entries), len(entries))
    return MlxRuntime(loader="functions", functions=tuple(functions)), narrowed


def traced_sizes(entry: Entry) -> list[dict[str, int]]:
    """The sizes of named dimensions that get a trace: all smallest, all largest."""
    found = [{name: bounds[end] for name, bounds in entry.dimensions.items()} for end in range(_MOST_TRACES)]
    return found if found[0] != found[1] else found[:1]


def _calling(runtime: MlxRuntime) -> str:
    names = ", ".join(f"`{function.file}`" for function in runtime.functions)
    return (
        f"## Calling it\n\n{names} hold traces of the entries without weights. Positional arguments: the entry's "
        "inputs and then the component's states, in the order that `edgewright.json` gives under `components`, "
        "floating ones in float16 (float32 works too); keyword arguments: every tensor of `model*.safetensors` under "
        "its name. Results: the outputs, then the states for the next call; states are zeros at first.\n\n```python\n"
        "import mlx.core as mx\n\n"
        f'entry = mx.import_function("{runtime.functions[0].file}")\n'
        'weights = mx.load("model.safetensors")\n'
        "results = entry(*inputs, *states, **weights)\n```\n\n"
        "The format of `.mlxfn` is experimental: a file is for the MLX that wrote it and what newer ones still read."
        "\n\n## What was run, and what was not\n\n"
        "`edgewright validate` runs these files with MLX on a CPU, in float32 and as shipped, and compares every "
        "output with PyTorch's. They were **not run on an Apple device**; speed and memory there are unknown."
    )


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
