"""The TVM target: what it refuses, how large it gets, and the artifact it writes.

    params.bin                     every parameter, mapped as it is by all libraries
    <triple>/libmodel-<variant>.so one library for each CPU variant (iOS: one archive libmodel.a of all)
    include/, src/, example/       the C API, its implementation over TVM's runtime, and a program that uses it
    CMakeLists.txt, README.md      how to build them with TVM's runtime from its pinned source
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from artifacts import Progress
from compiler.models.decoder import DecoderSpec
from compiler.slots import HALF, Schemes, Slot
from compiler.targets.base import Estimate, Job, copy_tokenizer
from compiler.targets.tvm import triples
from compiler.targets.tvm.options import TvmOptions
from compiler.targets.tvm.triples import Triple, Variant

PARAMETERS = "params.bin"
_GROUPS = (0, 32, 64, 128, 256)
_LIBRARY_BYTES = 1_500_000
_NATIVE = Path(__file__).parent / "native"


class TvmTarget:
    """Lowers a decoder to scheduled kernels over one mapped parameter file, for each triple and CPU variant."""

    tolerances: Mapping[str, float] = {
        "exact_max_abs_logit": 1e-4,
        "shipped_mean_kl": 2e-3,
        "shipped_min_top1": 0.97,
    }

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
            if slot.columns % 32:
                found.append(f"tvm: {slot.name} has {slot.columns} columns; the kernels take multiples of 32")
            if scheme.bits == 16:
                continue
            if not scheme.symmetric:
                found.append(f"tvm: {slot.name} has zero points; the kernels take symmetric codes only")
            if scheme.group not in _GROUPS:
                found.append(f"tvm: {slot.name} has group {scheme.group}; the kernels take 32, 64, 128, 256 or channel")
            elif slot.columns % (scheme.group or slot.columns):
                found.append(f"tvm: {slot.name} has {slot.columns} columns, which groups of {scheme.group} do not divide")
        if spec.head_dim % 8:
            found.append(f"tvm: head_dim {spec.head_dim}; the attention kernel takes multiples of 8")
        return found

    def estimate(
        self, spec: DecoderSpec, slots: list[Slot], schemes: Schemes, max_tokens: int, options: TvmOptions
    ) -> Estimate:
        """Sizes in bytes; activations are those of one chunk of a prompt, in float32."""
        scale_bytes = 2 if options.scales == "float16" else 4
        weights = 0
        for slot in slots:
            scheme = schemes.get(slot.name, HALF)
            if slot.kind == "norm":
                weights += slot.columns * 4
            else:
                weights += scheme.packed_bytes(slot.rows, slot.columns, scale_bytes)
        tables = max_tokens * (spec.head_dim + 1) * 4
        libraries = (2 + len(options.triples) * len(options.features)) * _LIBRARY_BYTES
        kv = 2 * spec.layers * spec.kv_width * -(-max_tokens // 16) * 16 * 4
        wide = 2 * spec.intermediate + spec.qkv_width + 4 * spec.hidden
        return Estimate(weights + tables + libraries, weights + tables, kv, (options.chunk * wide + spec.vocab) * 4)

    def build(self, job: Job, folder: Path, progress: Progress) -> dict[str, Any]:
        """Write params.bin, the libraries, the C API and the files that build it; see the module's docstring."""
        import tvm

        from compiler.targets.tvm import params, weights
        from compiler.targets.tvm.lower import heads_of

        total = sum(s.rows * s.columns for s in job.slots if s.kind != "norm")
        done = 0

        def advance(count: int) -> None:
            nonlocal done
            done += count
            progress("writing weights", done, total)

        heads = heads_of(job)
        tensors = weights.tensors(job, heads.max_tokens, job.options.scales, advance)
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
        libraries = self._libraries(job, tensors, machines, json.dumps(runtime, sort_keys=True), folder, progress)
        _copy_native(folder, job, machines, tvm.__version__)
        copy_tokenizer(job.tokenizer, folder)
        return {**runtime, "libraries": libraries, "tvm": tvm.__version__, "eos": list(job.spec.eos)}

    def _libraries(
        self, job: Job, tensors: Any, machines: list[Triple], description: str, folder: Path, progress: Progress
    ) -> list[dict[str, Any]]:
        """Compile every variant of every machine; a module is lowered once for each instruction set."""
        from compiler.targets.tvm.module import compile_module, decoder_module

        work: dict[str, list[tuple[Triple, Variant]]] = {}
        for machine in machines:
            for variant in machine.variants:
                work.setdefault(variant.name, []).append((machine, variant))
        total, done = sum(map(len, work.values())), 0
        built = []
        with tempfile.TemporaryDirectory(prefix="edgewright-") as scratch:
            archives: dict[str, list[Path]] = {}
            for members in work.values():
                module = decoder_module(job, members[0][1].isa, tensors, job.options.chunk, description)
                for machine, variant in members:
                    progress("compiling kernels", done, total)
                    target = machine.target(variant)
                    if machine.container == "archive":
                        executable = compile_module(module, target, f"edgewright_{variant.name}_")
                        objects = _objects(executable, Path(scratch) / machine.name / variant.name)
                        archives.setdefault(machine.name, []).extend(objects)
                        path = f"{machine.name}/libmodel.a"
                    else:
                        executable = compile_module(module, target)
                        objects = _objects(executable, Path(scratch) / machine.name / variant.name)
                        path = f"{machine.name}/libmodel-{variant.name}.so"
                        _link(folder / path, objects, machine)
                    done += 1
                    built.append(
                        {"triple": machine.name, "variant": variant.name, "path": path, "features": list(variant.features)}
                    )
            for machine in machines:
                if machine.name in archives:
                    from compiler.targets.tvm.link import static_archive

                    (folder / machine.name).mkdir()
                    static_archive(folder / machine.name / "libmodel.a", archives[machine.name], machine)
        progress("compiling kernels", total, total)
        return built


def _objects(executable: Any, folder: Path) -> list[Path]:
    """The object files of a compiled module, under names that stay distinct in an archive."""
    folder.mkdir(parents=True)
    found: list[Path] = []

    def keep(_: str, objects: list[str], **__: Any) -> None:
        for i, name in enumerate(objects):
            found.append(folder / f"{folder.name}-{i}.o")
            shutil.copyfile(name, found[-1])

    executable.export_library(str(folder / "objects.tar"), fcompile=keep)
    return found


def _link(path: Path, objects: list[Path], machine: Triple) -> None:
    from compiler.targets.tvm.link import shared_library

    path.parent.mkdir(exist_ok=True)
    shared_library(path, objects, machine)


def _copy_native(folder: Path, job: Job, machines: list[Triple], version: str) -> None:
    """The sources that an app builds, and what they need."""
    for name, to in (("edgewright.h", "include"), ("edgewright.cc", "src"), ("example.cc", "example")):
        (folder / to).mkdir(exist_ok=True)
        shutil.copyfile(_NATIVE / name, folder / to / name)
    for name in ("CMakeLists.txt", "README.md"):
        text = (_NATIVE / name).read_text(encoding="utf-8")
        values = {"NAME": job.name, "TVM_VERSION": version, "TRIPLES": ", ".join(m.name for m in machines)}
        for key, value in values.items():
            text = text.replace(f"@{key}@", value)
        (folder / name).write_text(text, encoding="utf-8")
