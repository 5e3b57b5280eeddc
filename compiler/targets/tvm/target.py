"""The TVM target: what it refuses, how large it gets, and the artifact it writes.

params.bin                     every parameter, mapped as it is by all libraries
<triple>/libmodel-<variant>.so one library for each CPU variant (iOS: one archive libmodel.a of all)
include/, src/, example/       the C API, its implementation over TVM's runtime, and a program that uses it
CMakeLists.txt, README.md      how to build them with TVM's runtime from its pinned source
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from artifacts import Progress, scratch_folder
from compiler.models.decoder import DecoderSpec
from compiler.slots import HALF, Schemes, Slot
from compiler.targets.base import Estimate, Job, copy_tokenizer, shipped_files
from compiler.targets.card import tokens_section, write_card
from compiler.targets.tvm import link, params, triples, weights, workers
from compiler.targets.tvm.geometry import heads_of
from compiler.targets.tvm.options import TvmOptions
from compiler.targets.tvm.params import Tensor
from compiler.targets.tvm.triples import Triple

PARAMETERS = "params.bin"
_LIBRARY_BYTES = 1_500_000
_NATIVE = Path(__file__).parent / "native"


class TvmTarget:
    """Lowers a decoder to scheduled kernels over one mapped parameter file, for each triple and CPU variant."""

    tolerances: Mapping[str, float] = {
        "exact_max_abs_logit": 1e-4,
        "shipped_mean_kl": 2e-3,
        "shipped_min_top1": 0.97,
    }
    entry_tolerances = (2e-5, 5e-2)

    def refusals(self, spec: DecoderSpec, slots: list[Slot], schemes: Schemes, options: TvmOptions) -> list[str]:
        """What of a recipe this target cannot build, one sentence each."""
        found = []
        for name in options.triples:
            try:
                triples.parse(name, options.features)
            except ValueError as error:
                found.append(f"tvm: {error}")
        for slot in slots:
            scheme = schemes.get(slot.name, HALF)
            if scheme.bits != 16 and not scheme.symmetric:
                found.append(f"tvm: {slot.name} has zero points; the kernels take symmetric codes only")
        return found

    def estimate(
        self, spec: DecoderSpec, slots: list[Slot], schemes: Schemes, max_tokens: int, options: TvmOptions
    ) -> Estimate:
        """Sizes in bytes; activations are those of one chunk of a prompt, in float32."""
        scale_bytes = 2 if options.scales == "float16" else 4
        weights = 0
        for slot in slots:
            scheme = schemes.get(slot.name, HALF)
            if slot.is_vector:
                weights += slot.columns * 4
            else:
                weights += scheme.packed_bytes(slot.rows, slot.columns, scale_bytes)
        tables = max_tokens * (spec.head_dim + 1) * 4
        libraries = (2 + len(options.triples) * len(options.features)) * _LIBRARY_BYTES
        kv = 2 * spec.layers * spec.kv_width * -(-max_tokens // 16) * 16 * 4
        wide = 2 * spec.intermediate + spec.qkv_width + 4 * spec.hidden
        activations = (options.chunk * wide + spec.vocab) * 4
        app = weights + tables + len(options.features) * _LIBRARY_BYTES
        platforms = [name for name in ("android", "ios") if any(name in triple for triple in options.triples)]
        return Estimate(weights + tables + libraries, weights + tables, kv, activations, dict.fromkeys(platforms, app))

    def build(self, job: Job, folder: Path, progress: Progress) -> dict[str, Any]:
        """Write params.bin, the libraries, the C API and the files that build it; see the module's docstring."""
        total = sum(s.rows * s.columns for s in job.slots if not s.is_vector)
        done = 0

        def advance(count: int) -> None:
            nonlocal done
            done += count
            progress("writing weights", done, total)

        # first, since it may find an op that is not lowered
        captured = workers.capture_graphs(job)
        heads = heads_of(job)
        tensors = weights.tensors(job, heads.max_tokens, captured.frequencies, job.options.scales, advance)
        digest = params.write(folder / PARAMETERS, tensors)
        runtime: dict[str, Any] = {
            "params": PARAMETERS,
            "params_digest": digest,
            "max_tokens": job.max_tokens,
            "vocab_size": job.spec.vocab,
            "layers": job.spec.layers,
            "kv_heads": job.spec.kv_heads,
            "head_dim": job.spec.head_dim,
            "key_shape": list(heads.key_shape),
            "value_shape": list(heads.value_shape),
            "chunk": job.options.chunk,
        }
        machines = [triples.host(), *(triples.parse(name, job.options.features) for name in job.options.triples)]
        description = json.dumps(runtime, sort_keys=True)
        libraries = self._libraries(job, captured, tensors, machines, description, folder, progress)
        _copy_native(folder, job, machines, version("apache-tvm"))
        found = {"libraries": libraries, "tvm": version("apache-tvm"), "eos": list(job.spec.eos)}
        return {**runtime, **found, "payload": _payload(folder, machines)}

    def _libraries(
        self,
        job: Job,
        captured: workers.Captured,
        tensors: list[Tensor],
        machines: list[Triple],
        description: str,
        folder: Path,
        progress: Progress,
    ) -> list[dict[str, Any]]:
        """Compile and link every variant of every machine."""
        total, done = sum(len(m.variants) for m in machines), 0
        built = []
        with scratch_folder() as scratch:
            arguments = job, captured, tensors, machines, description, scratch
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
                        {
                            "triple": machine.name,
                            "variant": variant.name,
                            "path": path,
                            "features": list(variant.features),
                        }
                    )
                    done += 1
                    progress("linking", done, total)
                if packed:
                    link.static_archive(folder / machine.name / "libmodel.a", packed, machine)
        return built


def _payload(folder: Path, machines: list[Triple]) -> dict[str, list[str]]:
    """What an app ships on each platform: parameters, tokenizer and the platform's own libraries."""
    found = {}
    for system in {machine.system for machine in machines} - {"linux"}:
        others = [machine.name for machine in machines if machine.system != system]
        found[system] = shipped_files(folder, "CMakeLists.txt", "include", "src", "example", *others)
    return dict(sorted(found.items()))


def _copy_native(folder: Path, job: Job, machines: list[Triple], version: str) -> None:
    """The sources that an app builds, and what they need."""
    for name, to in (("edgewright.h", "include"), ("edgewright.cc", "src"), ("example.cc", "example")):
        (folder / to).mkdir(exist_ok=True)
        shutil.copyfile(_NATIVE / name, folder / to / name)
    values = {"NAME": job.name, "TVM_VERSION": version, "TRIPLES": ", ".join(m.name for m in machines)}

    def filled(name: str) -> str:
        text = (_NATIVE / name).read_text(encoding="utf-8")
        for key, value in values.items():
            text = text.replace(f"@{key}@", value)
        return text.rstrip() + "\n"

    (folder / "CMakeLists.txt").write_text(filled("CMakeLists.txt"), encoding="utf-8")
    copy_tokenizer(job.tokenizer, folder)
    sections = [tokens_section(job), filled("README.md").rstrip()]
    write_card(job, folder, runtime="TVM", library="tvm", tags=["tvm"], sections=sections)
