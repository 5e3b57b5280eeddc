"""The layout of a model whose driver has no packaging: each component a package, each of its entries a function."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial

from artifacts.formats.coreml import CoreMLRuntime
from compiler.models.base import Component, Port
from compiler.targets.base import Job
from compiler.targets.coreml.capture import NARROW, Call, Sizes


def packages(job: Job) -> dict[str, list[Call]]:
    """The functions of every package, by its name."""
    return {f"{component.name}.mlpackage": list(calls(component)) for component in job.model.components}


def calls(component: Component) -> Iterator[Call]:
    """A function for each entry that ships, of the entry's ports."""
    for entry in component.shipped:
        inputs = tuple(Port(p.name, NARROW.get(p.dtype, p.dtype), p.shape, p.below, p.counts) for p in entry.inputs)  # type: ignore[arg-type]  # a key of Dtype
        sizes: dict[str, Sizes] = {n: (a,) if a == b else (None, a, b) for n, (a, b) in entry.dimensions.items()}
        function = entry.name if len(component.shipped) > 1 else "main"
        yield Call(function, component, entry, inputs, partial(component.module, entry), sizes)


def features(packages: Mapping[str, Sequence[Call]]) -> dict[str, str]:
    """What is said of features, by name."""
    ports = [p for some in packages.values() for c in some for p in (*c.inputs, *c.entry.outputs)]
    return {port.name: f"{port.dtype} {list(port.shape)}" for port in ports}


def calling(runtime: CoreMLRuntime, units: str) -> str:
    """Of the README: functions, how they are called, and what was run."""
    rows = [f"| `{f.package}` | `{f.function}` | {f.component}: {f.entry} |" for f in runtime.functions]
    states = "states of the model (`makeState()`)" if runtime.cache == "state" else "inputs and `new_` outputs"
    return (
        "## Calling it\n\n| package | function | entry |\n|---|---|---|\n" + "\n".join(rows) + "\n\n"
        "Inputs and outputs go by the names that `edgewright.json` gives under `components`; what lasts from call to "
        f"call are {states}. Needs {runtime.minimum.replace('iOS', 'iOS ')}; hint for compute units: `{units}`.\n\n"
        "## What was run, and what was not\n\n"
        "`edgewright validate` executes the programs on Linux, operation by operation, with an executor of its own, "
        "and compares every output with PyTorch's. They were **not run by Core ML**, on no Mac and no phone; memory is "
        "counted from the program, and speed is unknown."
    )
