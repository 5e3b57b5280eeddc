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
from compiler.slots import HALF, Scheme, Slot
from compiler.targets.base import BuildJob, Built, Estimate, Job, copy_tokenizer
from compiler.targets.card import write_card
from compiler.targets.mlx.shards import package_tensors, stored_bytes, write_shards
from compiler.targets.packaging import packaging_of

_GROUPS = (32, 64, 128)
_BITS = (4, 8)
_NAMED = 3
_PACKAGE = "compiler.targets.mlx"
# between the smallest and the largest size of a dimension nothing is traced: a trace is for one size
_MOST_TRACES = 2


class MlxTarget:
    """Lowers a model to the layout of mlx-community, or to traced functions, from the packed bytes."""

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
        """Sizes in bytes; activations are those of one token or the smallest call, in float16: MLX takes a prompt in
        pieces."""
        packaging = packaging_of(_PACKAGE, job.model.driver)
        found = []
        for component in job.model.components:
            weights = sum(stored_bytes(slot, job.schemes.get(slot.name, HALF)) for slot in component.slots)
            states = packaging.state_bytes(job) if packaging else 2 * component.state_values
            live = max(component.live(e, {n: low for n, (low, _) in e.dimensions.items()}) for e in component.shipped)
            found.append(Estimate(component.name, weights, weights, states, 2 * live))
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
        write_card(job, folder, runtime="MLX", library="mlx", tags=["mlx"], sections=sections)
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
        "inputs and then the component's states, in the order that `edgewright.json` gives under `components`, floating ones "
        "in float16 (float32 works too); keyword arguments: every tensor of `model*.safetensors` under its name. "
        "Results: the outputs, then the states for the next call; states are zeros at first.\n\n```python\n"
        "import mlx.core as mx\n\n"
        f'entry = mx.import_function("{runtime.functions[0].file}")\n'
        'weights = mx.load("model.safetensors")\n'
        "results = entry(*inputs, *states, **weights)\n```\n\n"
        "The format of `.mlxfn` is experimental: a file is for the MLX that wrote it and what newer ones still read. "
        "Edgewright runs it on a Linux CPU and compares it with PyTorch; it was run on no Apple device."
    )


def refusal(slot: Slot, scheme: Scheme) -> str | None:
    """Why MLX cannot hold a slot in this scheme, and the nearest that it can; None when it can."""
    if scheme.bits == 16:
        return None
    if scheme.bits not in _BITS:
        nearest = min(_BITS, key=lambda bits: abs(bits - scheme.bits))
        return f"{scheme.bits} bits cannot be lowered to MLX; use {nearest}"
    if scheme.group in _GROUPS and slot.columns % scheme.group == 0:
        return None
    wanted = f"groups of {scheme.group}" if scheme.group else "one scale per row"
    fitting = [group for group in _GROUPS if slot.columns % group == 0]
    if not fitting:
        return f"{slot.columns} columns divide into none of MLX's groups of 32, 64 or 128; keep it at bits: 16"
    nearest = min(fitting, key=lambda group: abs(group - (scheme.group or 128)))
    if scheme.group in _GROUPS:
        return f"groups of {scheme.group} do not divide {slot.columns} columns; use group: {nearest}"
    return f"MLX has no {wanted}, only groups of 32, 64 and 128; use group: {nearest}"


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
