"""The Core ML target: what it refuses, how large it gets, and the packages it writes.

The packaging of a model's driver says which functions an app calls; without one each component is a package, and each
of its entries a function of the entry's ports.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from artifacts import Progress, silent
from artifacts.formats.coreml import CoreMLRuntime, Function
from artifacts.formats.interface import Dimension
from compiler.apart import apart
from compiler.licence import licence_of
from compiler.slots import HALF, Scheme
from compiler.targets.base import BuildJob, Built, Estimate, Job, bare, copy_tokenizer, shipped_files
from compiler.targets.card import About, write_card
from compiler.targets.coreml import convert, generic
from compiler.targets.coreml.capture import Call, Sizes
from compiler.targets.coreml.options import CoreMLOptions
from compiler.targets.packaging import packaging_of

_PACKAGE = "compiler.targets.coreml"
_UNITS = {
    "all": ".all",
    "cpu_and_gpu": ".cpuAndGPU",
    "cpu_and_neural_engine": ".cpuAndNeuralEngine",
    "cpu_only": ".cpuOnly",
}
# of the program itself: about 250 bytes for each of about 12 operations around a weight
_PROGRAM_BYTES = 3_000


class CoreMLTarget:
    """Lowers components to ML Programs: compressed weights, states, an entry for a function."""

    # the package's rotary tables are exact; the reference's float32 angles are off by about position * 2**-24, which
    # shows in logits from a few hundred positions on
    rounds = False
    tools: tuple[str, ...] = ("coremltools",)
    tolerances: Mapping[str, float] = {
        "exact_max_abs_logit": 1e-3,
        "shipped_mean_kl": 2e-4,
        "shipped_min_top1": 0.98,
    }
    entry_tolerances = (2e-4, 1e-2)

    def refusals(self, job: Job) -> list[str]:
        """What of a recipe this target cannot express, one sentence each."""
        packaging = packaging_of(_PACKAGE, job.model)
        return [*_refusals(job), *(packaging.refusals(job) if packaging else [])]

    def estimate(self, job: Job) -> list[Estimate]:
        """Sizes in bytes; activations are those of the largest call of a function."""
        options: CoreMLOptions = job.options
        width = 2 if options.compute == "fp16" else 4
        found = []
        for component in job.model.components:
            weights = 0
            for slot in component.slots:
                scheme = job.schemes.get(slot.name, HALF)
                if slot.is_vector:
                    weights += slot.columns * 4
                elif scheme.bits == 16:
                    weights += slot.rows * slot.columns * width
                else:
                    weights += scheme.packed_bytes(slot.rows, slot.columns, scale_bytes=width)
            calls = [c for calls in _packages(job).values() for c in calls if c.component is component]
            live = max(component.live(c.entry, {**c.entry.largest(), **_most(c.sizes)}) for c in calls)
            states = component.state_values * (2 if options.stateful else 2 * width)
            program = _PROGRAM_BYTES * len(component.slots) * len(calls)
            total = weights + program
            found.append(Estimate(component.name, total, weights, states, live * width, {"ios": total}))
        return found

    def check(self, job: Job) -> None:
        """Capture every function in a process of its own."""
        apart(convert.check, bare(job), _packages(job), progress=silent)

    def build(self, job: BuildJob, folder: Path, progress: Progress) -> Built:
        """Write the packages, a README, and the tokenizer files."""
        options: CoreMLOptions = job.options
        packaging = packaging_of(_PACKAGE, job.model)
        metadata = {
            "shortDescription": f"{job.name}{packaging.PURPOSE if packaging else ''}, made by Edgewright.",
            "author": "Edgewright",
            "license": licence_of(job.source) or "that of the checkpoint it was made from",
            "versionString": "1",
        }
        user = {"com.edgewright.compute_units": options.compute_units}
        user |= packaging.metadata(job) if packaging else {}
        packages = _packages(job)
        features = packaging.FEATURES if packaging else generic.features(packages)
        arguments = (bare(job), job.weights.path, folder, packages, features, metadata, user)
        apart(convert.make_packages, *arguments, progress=progress)
        copy_tokenizer(job.source, folder)
        runtime = CoreMLRuntime(
            functions=tuple(_functions(packages, job)),
            cache=options.cache,
            compute=options.compute,
            compute_units=options.compute_units,
            minimum=options.minimum,
            payload={"ios": tuple(shipped_files(folder))},
        )
        units = _UNITS[options.compute_units]
        sections = packaging.sections(job, runtime, units) if packaging else [generic.calling(runtime, units)]
        about = packaging.about(job) if packaging else About()
        write_card(job, folder, runtime="Core ML", library="coreml", tags=["coreml"], sections=sections, about=about)
        return Built(runtime.model_dump(mode="json"), _narrowed(packages))

    def traces(self, job: BuildJob) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
        """For every function of a text package: its name, the inputs of one short call, and all values that PyTorch
        gives. For naming the first operation that differs once parity has failed."""
        from compiler.targets.coreml.trace import call_values

        packaging = packaging_of(_PACKAGE, job.model)
        for call, inputs in packaging.examples(job) if packaging else ():
            values = call_values(call, job.schemes, job.weights, inputs)
            if not job.options.stateful:
                inputs |= {state.name: np.zeros(state.sized({}), np.float32) for state in call.component.states}
            yield call.function, inputs, values


def _packages(job: Job) -> dict[str, list[Call]]:
    packaging = packaging_of(_PACKAGE, job.model)
    if packaging:
        found: dict[str, list[Call]] = packaging.packages(job)
        return found
    return generic.packages(job)


def _most(sizes: Mapping[str, Sizes]) -> dict[str, int]:
    return {name: max(n for n in found if n is not None) for name, found in sizes.items()}


def _functions(packages: Mapping[str, Sequence[Call]], job: Job) -> Iterator[Function]:
    for package, calls in packages.items():
        by_entry = {(c.component.name, c.entry.name): c for c in calls}
        for component in {c.component.name: c.component for c in calls}.values():
            for entry in component.shipped:
                # below iOS 18 one function serves every entry
                call = by_entry.get((component.name, entry.name), calls[0])
                yield Function(
                    component=component.name,
                    entry=entry.name,
                    package=package,
                    function=call.function,
                    firsts=dict(call.firsts),
                    image=call.image,
                )


def _narrowed(packages: Mapping[str, Sequence[Call]]) -> dict[tuple[str, str, str], Dimension]:
    found = {}
    for calls in packages.values():
        for call in calls:
            for name, sizes in call.sizes.items():
                listed = tuple(n for n in sizes if n is not None) if sizes[0] is not None else ()
                low, high = min(n for n in sizes if n is not None), max(n for n in sizes if n is not None)
                if len(listed) < 2 and (low, high) == call.entry.dimensions[name]:
                    continue
                found[call.component.name, call.entry.name, name] = Dimension(low=low, high=high, sizes=listed)
    return found


def _refusals(job: Job) -> Iterator[str]:
    options: CoreMLOptions = job.options
    if options.cache == "state" and options.minimum == "iOS17":
        yield "coreml: states need iOS 18; for iOS 17 say cache: explicit"
    for component in job.model.components:
        if component.attention and component.attention.head_dim % 2:
            yield f"coreml: head size {component.attention.head_dim} is odd, which rotary positions cannot halve"
        for entry in component.shipped:
            if sum(1 for low, high in entry.dimensions.values() if low != high) > 1:
                yield f"coreml: {component.name}.{entry.name} varies in more than one dimension"
    if options.minimum == "iOS17":
        for slot in job.model.slots:
            scheme = job.schemes.get(slot.name, HALF)
            if not _ios17_holds(scheme):
                yield (
                    f"coreml: {slot.name} has {scheme.bits} bits in groups of {scheme.group or 'a row'}; iOS 17 has 8 "
                    "bits with one scale per row (bits: 8, group: channel), 4 bits and groups need minimum: iOS18"
                )
                break


def _ios17_holds(scheme: Scheme) -> bool:
    return scheme.bits == 16 or (scheme.bits == 8 and scheme.group == 0)
