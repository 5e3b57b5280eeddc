"""The layout of a model whose driver has no packaging: a `.mlxfn` file for every entry that an app calls, over tensors
by the names of their slots."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from artifacts import Progress, silent
from artifacts.formats.interface import Dimension
from artifacts.formats.mlx import Function, MlxRuntime
from compiler.apart import apart
from compiler.models.base import Component, Entry
from compiler.targets.base import BuildJob, Job, bare
from compiler.targets.card import About
from compiler.targets.mlx.packaging import Narrowed

# between the smallest and the largest size of a dimension nothing is traced: a trace is for one size
_MOST_TRACES = 2


def refusals(job: Job) -> list[str]:
    """See `packaging.Packaging`; what serves mlx-lm alone."""
    found = []
    if job.options.kv_bits < 16:
        found.append(f"kv_bits: {job.options.kv_bits}")
    if job.options.mlxfn_prefill is not None:
        found.append(f"mlxfn_prefill: {job.options.mlxfn_prefill}")
    return [f"mlx: {option} is for text decoders; this model is driven as {job.model.driver!r}" for option in found]


def check(job: Job) -> None:
    """See `packaging.Packaging`: every entry is walked."""
    if job.model.wide:
        apart(_check, bare(job), progress=silent)
    else:
        _check(job, silent)


def _check(job: Job, _: Progress) -> None:
    from compiler.targets.mlx.functions import check

    check(job)


def state_bytes(job: Job, component: Component) -> int:
    """Float16."""
    return 2 * component.state_values


def called(entry: Entry) -> dict[str, int]:
    """The largest sizes of an entry."""
    return entry.largest()


def named(job: BuildJob) -> Callable[[str], str]:
    """The names of the slots."""
    return str


def write(job: BuildJob, folder: Path, progress: Progress) -> tuple[MlxRuntime, Narrowed]:
    """The traces."""
    if not job.model.wide:
        return _traced(job, folder, progress)
    found: tuple[MlxRuntime, Narrowed] = apart(_traced, bare(job), folder, progress=progress)
    return found


def _traced(job: Job, folder: Path, progress: Progress) -> tuple[MlxRuntime, Narrowed]:
    return traced(job, folder, progress, str)


def about(job: Job) -> About:
    """Nothing is known of it."""
    return About()


def sections(job: BuildJob, runtime: MlxRuntime) -> list[str]:
    """How a function is called."""
    return [calling(runtime), RUN]


def traced(job: Job, folder: Path, progress: Progress, slotted: Callable[[str], str]) -> tuple[MlxRuntime, Narrowed]:
    """Functions over the package's tensors. slotted: a tensor's name by its slot."""
    from compiler.targets.mlx.functions import export_entry

    functions, narrowed = [], {}
    entries = [(component, entry) for component in job.model.components for entry in component.shipped]
    for done, (component, entry) in enumerate(entries):
        progress("tracing functions", done, len(entries))
        file = f"{component.name}.{entry.name}.mlxfn"
        sizes = traced_sizes(entry)
        export_entry(job, component, entry, sizes, folder, folder / file, slotted)
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


def calling(runtime: MlxRuntime) -> str:
    """Of README.md."""
    names = ", ".join(f"`{function.file}`" for function in runtime.functions)
    return (
        f"## Calling it\n\n{names} hold traces of the entries without weights. Positional arguments: the entry's "
        "inputs and then the component's states, in the order that `edgewright.json` gives under `components`, "
        "floating ones in float16 (float32 works too); keyword arguments: every tensor of `model*.safetensors` under "
        "its name. Results: the outputs, then the states for the next call; states are zeros at first.\n\n```python\n"
        "import mlx.core as mx\n\n"
        f'entry = mx.import_function("{runtime.functions[0].file}")\n'
        'weights = mx.load("model.safetensors")\n'
        "results = entry((*inputs, *states), weights)\n```\n\n"
        "The format of `.mlxfn` is experimental: a file is for the MLX that wrote it and what newer ones still read."
    )


RUN = (
    "## What was run, and what was not\n\n"
    "`edgewright validate` runs these files with MLX on a CPU, in float32 and as shipped, and compares every "
    "output with PyTorch's. They were **not run on an Apple device**; speed and memory there are unknown."
)
