"""The Core ML target: what it refuses, how large it gets, and the package it writes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from artifacts import Progress
from compiler.apart import apart
from compiler.models.decoder import DecoderSpec
from compiler.slots import HALF, Scheme, Schemes, Slot
from compiler.targets.base import Estimate, Job, bare, copy_tokenizer
from compiler.targets.coreml.options import CoreMLOptions

PACKAGE = "model.mlpackage"
_LARGEST_LENGTHS = 128
_UNITS = {
    "all": ".all",
    "cpu_and_gpu": ".cpuAndGPU",
    "cpu_and_neural_engine": ".cpuAndNeuralEngine",
    "cpu_only": ".cpuOnly",
}


class CoreMLTarget:
    """Lowers a decoder to an ML Program: compressed weights, a cache in states, prefill and decode functions."""

    # the package's rotary tables are exact; the reference's float32 angles are off by about position * 2**-24, which
    # shows in logits from a few hundred positions on
    tolerances: Mapping[str, float] = {
        "exact_max_abs_logit": 1e-3,
        "shipped_mean_kl": 2e-4,
        "shipped_min_top1": 0.98,
    }

    def refusals(self, spec: DecoderSpec, slots: list[Slot], schemes: Schemes, options: CoreMLOptions) -> list[str]:
        """What of a recipe this target cannot express, one sentence each."""
        return list(_refusals(spec, slots, schemes, options))

    def estimate(
        self, spec: DecoderSpec, slots: list[Slot], schemes: Schemes, max_tokens: int, options: CoreMLOptions
    ) -> Estimate:
        """Sizes in bytes; activations are those of the longest prompt call, one layer and its logits."""
        width = 2 if options.compute == "fp16" else 4
        weights = 0
        for slot in slots:
            scheme = schemes.get(slot.name, HALF)
            if slot.is_vector:
                weights += slot.columns * 4
            elif scheme.bits == 16:
                weights += slot.rows * slot.columns * width
            else:
                weights += scheme.packed_bytes(slot.rows, slot.columns, scale_bytes=width)
        kv = 2 * spec.layers * spec.kv_width * max_tokens * (2 if options.stateful else width)
        longest = max_tokens if options.prompt == "range" else options.prompt_lengths[-1]
        widest = max(3 * spec.intermediate, 3 * spec.qkv_width)
        activations = min(longest, max_tokens) * (widest + 2 * spec.hidden + max_tokens) * width + spec.vocab * width
        # the program itself: about 250 bytes for each of about 100 operations a layer and function
        program = 25_000 * (spec.layers + 4) * (2 if options.multifunction else 1)
        return Estimate(weights + program, weights, kv if options.stateful else 2 * kv, activations)

    def build(self, job: Job, folder: Path, progress: Progress) -> dict[str, Any]:
        """Write model.mlpackage, a README with its Swift usage, and the tokenizer files."""
        from compiler.targets.coreml.convert import lengths, make_package
        from compiler.targets.coreml.readme import readme

        options: CoreMLOptions = job.options
        license_ = license_of(job.tokenizer)
        metadata = {
            "shortDescription": f"{job.name}: a text decoder with a key-value cache, made by Edgewright.",
            "author": "Edgewright",
            "license": license_ or "that of the checkpoint it was made from",
            "versionString": "1",
        }
        user = {
            "com.edgewright.compute_units": options.compute_units,
            "com.edgewright.max_tokens": str(job.max_tokens),
        }
        apart(make_package, bare(job), job.weights.path, folder / PACKAGE, metadata, user, progress=progress)
        copy_tokenizer(job.tokenizer, folder)
        runtime = {
            "model": PACKAGE,
            "max_tokens": job.max_tokens,
            "vocab_size": job.spec.vocab,
            "layers": job.spec.layers,
            "kv_heads": job.spec.kv_heads,
            "head_dim": job.spec.head_dim,
            "logits": "last",
            "memory": "modelled",
            "platforms": ["ios"],
            "cache": options.cache,
            "functions": _functions(options),
            "prompt_lengths": list(lengths(options, job.max_tokens)),
            "compute": options.compute,
            "compute_units": options.compute_units,
            "minimum": options.minimum,
            "eos": list(job.spec.eos),
        }
        (folder / "README.md").write_text(
            readme(job, runtime, license_, _UNITS[options.compute_units]), encoding="utf-8"
        )
        return runtime

    def traces(self, job: Job) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
        """For every function of a package: its name, the inputs of one short call, and all values that PyTorch gives.

        For naming the first operation that differs once parity has failed (`runtime_tests.mil.bisect`).
        """
        from compiler.targets.coreml.capture import cache_names
        from compiler.targets.coreml.convert import lengths
        from compiler.targets.coreml.trace import decoder_values

        counts = lengths(job.options, job.max_tokens)
        fixed = counts[0] if len(counts) == 1 else None
        calls = [(counts[-1] if counts else min(16, job.max_tokens), fixed)]
        if job.options.multifunction:
            calls.append((1, 1))
        for name, (count, length) in zip(_functions(job.options), calls, strict=True):
            position = job.max_tokens - count
            ids = [(7 * i + 3) % job.spec.vocab for i in range(count)]
            values = decoder_values(
                job.spec, job.schemes, job.weights, job.max_tokens, ids, position=position, length=length
            )
            inputs: dict[str, Any] = {"input_ids": [ids], "position": [position]}
            if not job.options.stateful:
                shape = (1, job.spec.kv_heads, job.max_tokens, job.spec.head_dim)
                inputs |= {name: np.zeros(shape, np.float32) for name in cache_names(job.spec.layers)}
            yield name, inputs, values


def _functions(options: CoreMLOptions) -> list[str]:
    return ["prefill", "decode"] if options.multifunction else ["main"]


def _refusals(spec: DecoderSpec, slots: list[Slot], schemes: Schemes, options: CoreMLOptions) -> Iterator[str]:
    if options.cache == "state" and options.minimum == "iOS17":
        yield "coreml: states need iOS 18; for iOS 17 say cache: explicit"
    if spec.head_dim % 2:
        yield f"coreml: head size {spec.head_dim} is odd, which rotary positions cannot halve"
    if options.minimum == "iOS17":
        for slot in slots:
            scheme = schemes.get(slot.name, HALF)
            if not _ios17_holds(scheme):
                yield (
                    f"coreml: {slot.name} has {scheme.bits} bits in groups of {scheme.group or 'a row'}; iOS 17 has 8 "
                    "bits with one scale per row (bits: 8, group: channel), 4 bits and groups need minimum: iOS18"
                )
                break


def _ios17_holds(scheme: Scheme) -> bool:
    return scheme.bits == 16 or (scheme.bits == 8 and scheme.group == 0)


def license_of(checkpoint: Path) -> str:
    """The licence that a checkpoint's README.md names in its front matter, or an empty string."""
    card = checkpoint / "README.md"
    if not card.is_file():
        return ""
    front = re.match(r"---\n(.*?)\n---", card.read_text(encoding="utf-8", errors="replace"), re.S)
    found = re.search(r"^license:\s*(\S+)\s*$", front.group(1), re.M) if front else None
    return found.group(1) if found else ""
