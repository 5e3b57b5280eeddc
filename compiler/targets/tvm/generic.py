"""The layout of a model whose driver has no packaging: one library with a function for every entry that an app calls,
named `<component>.<entry>`, in TVM's calling convention. See `packaging.Packaging`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from artifacts.formats.interface import Dimension
from artifacts.formats.tvm import Function, TvmRuntime
from compiler.targets.base import BuildJob, Job
from compiler.targets.card import About

if TYPE_CHECKING:
    from compiler.targets.tvm.captured import Captured
    from compiler.targets.tvm.triples import Triple

SOURCES: tuple[str, ...] = ()


def functions(job: Job) -> list[Function]:
    return [
        Function(
            component=component.name,
            entry=entry.name,
            name=f"{component.name}.{entry.name}",
            exact=f"{component.name}.{entry.name}.exact",
        )
        for component in job.model.components
        for entry in component.shipped
    ]


def narrowed(job: Job) -> dict[tuple[str, str, str], Dimension]:
    return {}


def described(job: Job, captured: Captured) -> Mapping[str, Any]:
    return {}


def write(job: BuildJob, folder: Path, machines: Sequence[Triple]) -> None:
    """Nothing: TVM's own API calls the functions."""


def about(job: BuildJob) -> About:
    return About()


def sections(job: BuildJob, machines: Sequence[Triple], runtime: TvmRuntime) -> list[str]:
    rows = []
    for function in runtime.functions:
        entry = job.model.component(function.component).entry(function.entry)
        states = [s for s in runtime.states if s.component == function.component]
        going = [f"`{s.name}`" for s in states if not s.in_place]
        lasting = [f"`{s.name}` float32 {list(s.shape)}" for s in states if s.in_place]
        inputs, outputs = ([f"`{port.name}`" for port in ports] for ports in (entry.inputs, entry.outputs))
        after = going if entry.keeps else []
        cells = [", ".join(names) or "none" for names in ([*inputs, *going], lasting, [*outputs, *after])]
        rows.append(f"| `{function.name}` | {' | '.join(cells)} |")
    table = "\n".join(["| function | arguments | written in place | results |", "|---|---|---|---|", *rows])
    names = ", ".join(machine.name for machine in machines)
    return [
        f"## Calling it\n\nFor: {names}. `host` is the machine that built this artifact; it is what "
        "`edgewright validate` runs. "
        "Variants: `i8mm` (smmla and sdot), `dotprod` (sdot), `neon` (any ARMv8 core; float32 activations). The first "
        f"two round the activations of matrix products to int8, per token and weight group.\n\n{table}\n\n"
        "Shapes and dtypes are in `edgewright.json` under `components`. Arguments come in this order, and after "
        "them one array: what is written in place, then every tensor of `params.bin` in its order, each aligned to 64 "
        "bytes. A single result comes as it is, several as an array. States are zeros at first; one among the results "
        "is the argument of the next call. With `.exact` behind a name activations stay float32.\n\n"
        '```python\nimport tvm_ffi\n\nmachine = tvm_ffi.load_module("host/libmodel-<variant>.so")'
        '["vm_load_executable"]()\nmachine["vm_initialization"](1, 0, 2)\n'
        f'results = machine["{runtime.functions[0].name}"](*arguments, [*in_place, *parameters])\n```\n\n'
        f"Needs TVM's runtime, version {runtime.tvm}: `libtvm_runtime` and `libtvm_ffi`. The library's function "
        "`describe` gives the digest of the parameters that it was compiled for, which `params.bin` holds at byte 16. "
        "Convolutions decode their packed weights in every call; they, and what is no matrix product, run in TVM's "
        "plain kernels, on one thread.\n\n"
        "`edgewright validate` runs the libraries for `host` and compares every result with PyTorch's; the others were "
        "compiled and linked on Linux and **were not run on a phone**."
    ]
