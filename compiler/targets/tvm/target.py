"""The TVM target: what it refuses, how large it gets, and the artifact it writes.

params.bin                     every parameter, mapped as it is by all libraries
<triple>/libmodel-<variant>.so one library for each CPU variant (iOS: one archive libmodel.a of all)

The packaging of a model's driver adds what its apps call it by; without one the libraries are called as TVM calls them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

from artifacts import Progress, scratch_folder
from artifacts.formats.tvm import Library, TvmRuntime
from compiler.models.base import Component
from compiler.slots import HALF
from compiler.targets.base import BuildJob, Built, Estimate, Job, copy_tokenizer, shipped_files
from compiler.targets.card import write_card
from compiler.targets.packaging import packaging_of
from compiler.targets.tensors import Tensor
from compiler.targets.tvm import generic, link, params, triples, weights, workers
from compiler.targets.tvm.captured import Captured
from compiler.targets.tvm.geometry import in_blocks
from compiler.targets.tvm.packaging import Packaging
from compiler.targets.tvm.triples import Triple

PARAMETERS = "params.bin"
_PACKAGE = "compiler.targets.tvm"
_CODE_BYTES = {"shared": 500_000, "archive": 950_000}  # of a variant of a small decoder; a bit more for each layer


class TvmTarget:
    """Lowers every entry to scheduled kernels over one mapped parameter file, for each triple and CPU variant."""

    rounds = False
    tools: tuple[str, ...] = ("apache-tvm", "ziglang")
    tolerances: Mapping[str, float] = {
        "exact_max_abs_logit": 1e-4,
        "shipped_mean_kl": 2e-3,
        "shipped_min_top1": 0.97,
    }
    entry_tolerances = (2e-5, 5e-2)

    def refusals(self, job: Job) -> list[str]:
        """What of a job this target cannot build, one sentence each."""
        found = []
        for name in job.options.triples:
            try:
                triples.parse(name, job.options.features)
            except ValueError as error:
                found.append(f"tvm: {error}")
        for slot in job.model.slots:
            scheme = job.schemes.get(slot.name, HALF)
            if scheme.bits != 16 and not scheme.symmetric:
                found.append(f"tvm: {slot.name} has zero points; the kernels take symmetric codes only")
        return found

    def estimate(self, job: Job) -> list[Estimate]:
        """Sizes in bytes; activations are those of the largest call, in float32. Of convolutions the weights of the
        largest, which is decoded in every call, and the copy of an image with zeros around it: it lies beside the image
        and what comes of it, and is at the most as large as half of the two."""
        return [self._estimate(job, component) for component in job.model.components]

    def _estimate(self, job: Job, component: Component) -> Estimate:
        scale_bytes = 2 if job.options.scales == "float16" else 4
        found = 0
        for slot in component.slots:
            scheme = job.schemes.get(slot.name, HALF)
            found += slot.columns * 4 if slot.is_vector else scheme.packed_bytes(slot.rows, slot.columns, scale_bytes)
        states, tables = component.state_values * 4, 0
        if component.attention is not None:
            positions = max(state.sized({})[2] for state in component.states if len(state.shape) == 4)
            states = states // positions * in_blocks(positions)
            tables = in_blocks(positions) * (component.attention.head_dim + 1) * 4
        narrowed = _packaging(job).narrowed(job)
        live = 0
        for entry in component.shipped:
            sizes = entry.largest()
            sizes |= {d: narrowed[key].high for d in sizes if (key := (component.name, entry.name, d)) in narrowed}
            live = max(live, component.live(entry, sizes))
        convolutions = [slot for slot in component.slots if slot.kind == "convolution"]
        if any(math.prod(slot.kernel) > 1 for slot in convolutions):
            live += live // 2
        live += max((slot.rows * slot.columns for slot in convolutions), default=0)
        code: dict[str, int] = {}
        first = component is job.model.components[0]  # one library holds them all
        for machine in _known_machines(job):
            size = len(machine.variants) * _CODE_BYTES[machine.container] if first else 0
            code[machine.system] = code.get(machine.system, 0) + size
        return Estimate(
            component.name,
            file_bytes=found + tables + sum(code.values()),
            weight_bytes=found + tables,
            state_bytes=states,
            activation_bytes=live * 4,
            app_bytes={name: found + tables + size for name, size in sorted(code.items()) if name != "linux"},
        )

    def check(self, job: Job) -> object:
        """Capture every function and lower it, in processes of their own, for the best variant of this machine.

        Returns what was captured.
        """
        packaging = _packaging(job)
        functions = packaging.functions(job)
        captured = workers.capture_graphs(job, functions, packaging.narrowed(job))
        workers.check_lowering(functions, captured, job, triples.host().variants[0].isa)
        return captured

    def build(self, job: BuildJob, folder: Path, progress: Progress) -> Built:
        """Write params.bin, the libraries, tokenizer files, and what the packaging adds; see the module's docstring."""
        total = sum(s.rows * s.columns for s in job.model.slots if not s.is_vector)
        done = 0

        def advance(count: int) -> None:
            nonlocal done
            done += count
            progress("writing weights", done, total)

        packaging = _packaging(job)
        functions, narrowed = packaging.functions(job), packaging.narrowed(job)
        captured: Captured = job.checked or workers.capture_graphs(job, functions, narrowed)
        tensors = weights.tensors(job, weights.tables_of(captured), advance)
        digest = params.write(folder / PARAMETERS, tensors)
        machines = [triples.host(), *(triples.parse(name, job.options.features) for name in job.options.triples)]
        description = {**packaging.described(job, captured), "params_digest": digest}
        libraries = self._libraries(job, captured, tensors, machines, description, folder, progress)
        packaging.write(job, folder, machines)
        copy_tokenizer(job.source, folder)
        runtime = TvmRuntime(
            params=PARAMETERS,
            params_digest=digest,
            libraries=tuple(libraries),
            functions=tuple(functions),
            states=captured.states,
            tvm=version("apache-tvm"),
            payload=_payload(folder, packaging, machines),
        )
        sections = packaging.sections(job, machines, runtime)
        about = packaging.about(job)
        write_card(job, folder, runtime="TVM", library="tvm", tags=["tvm"], sections=sections, about=about)
        return Built(runtime.model_dump(mode="json"), narrowed)

    def traces(self, job: BuildJob) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
        """None: no converter's program lies between the graph and the machine code."""
        return iter(())

    def _libraries(
        self,
        job: Job,
        captured: Captured,
        tensors: list[Tensor],
        machines: list[Triple],
        description: Mapping[str, Any],
        folder: Path,
        progress: Progress,
    ) -> list[Library]:
        """Compile and link every variant of every machine."""
        total, done = sum(len(m.variants) for m in machines), 0
        built = []
        with scratch_folder() as scratch:
            text = json.dumps(description, sort_keys=True)
            arguments = _packaging(job).functions(job), captured, tensors, machines, text, scratch
            objects = workers.compile_variants(*arguments, progress)
            progress("compiling kernels", total, total)
            for machine in machines:
                (folder / machine.name).mkdir()
                packed: list[Path] = []
                for variant in machine.variants:
                    if machine.container == "archive":
                        path = f"{machine.name}/libmodel.a"
                        packed += objects[machine.name, variant.name]
                    else:
                        path = f"{machine.name}/libmodel-{variant.name}.so"
                        link.shared_library(folder / path, objects[machine.name, variant.name], machine)
                    built.append(
                        Library(triple=machine.name, variant=variant.name, path=path, features=variant.features)
                    )
                    done += 1
                    progress("linking", done, total)
                if packed:
                    link.static_archive(folder / machine.name / "libmodel.a", packed, machine)
        return built


def _known_machines(job: Job) -> list[Triple]:
    """This machine and those of the job's triples that are known; `refusals` names the others."""
    found = [triples.host()]
    for name in job.options.triples:
        with suppress(ValueError):
            found.append(triples.parse(name, job.options.features))
    return found


def _packaging(job: Job) -> Packaging:
    found: Packaging = packaging_of(_PACKAGE, job.model) or generic
    return found


def _payload(folder: Path, packaging: Packaging, machines: list[Triple]) -> dict[str, tuple[str, ...]]:
    """What an app ships on each platform: parameters, tokenizer and the platform's own libraries."""
    found = {}
    for system in {machine.system for machine in machines} - {"linux"}:
        others = [machine.name for machine in machines if machine.system != system]
        found[system] = tuple(shipped_files(folder, *packaging.SOURCES, *others))
    return dict(sorted(found.items()))
