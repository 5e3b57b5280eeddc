"""The MLX target: what it refuses, how large it gets, and the package it writes. Imports no MLX to write weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from artifacts import Progress
from compiler.checkpoint import read_config
from compiler.models.decoder import DecoderSpec
from compiler.slots import HALF, Schemes, Slot
from compiler.targets.base import Estimate, Job, copy_tokenizer, shipped_files
from compiler.targets.card import tokens_section, write_card
from compiler.targets.mlx import card
from compiler.targets.mlx.config import is_wrapped, package_config, tensor_prefix, unreadable
from compiler.targets.mlx.geometry import kv_group, refusal
from compiler.targets.mlx.options import MlxOptions
from compiler.targets.mlx.shards import package_tensors, stored_bytes, write_shards

FUNCTIONS = "decoder.mlxfn"
_NAMED = 3
_PREFILL_STEP = 512


class MlxTarget:
    """Lowers a decoder to the layout of mlx-community from the packed bytes."""

    tolerances: Mapping[str, float] = {
        "exact_max_abs_logit": 2e-3,
        "shipped_mean_kl": 2e-3,
        "shipped_min_top1": 0.97,
    }

    def refusals(self, spec: DecoderSpec, slots: list[Slot], schemes: Schemes, options: MlxOptions) -> list[str]:
        """What of a recipe MLX cannot hold, one sentence for each reason, with the tensors and the nearest choice."""
        reasons: dict[str, list[str]] = {}
        for slot in slots:
            if (reason := refusal(slot, schemes.get(slot.name, HALF))) is not None:
                reasons.setdefault(reason, []).append(slot.name)
        found = [f"mlx: {_listed(names)}: {reason}" for reason, names in reasons.items()]
        found += [f"mlx: {reason}" for reason in unreadable(spec)]
        if options.kv_bits < 16 and kv_group(spec.head_dim) is None:
            found.append(
                f"mlx: kv_bits {options.kv_bits} needs a head_dim that 32 divides, this model's is {spec.head_dim}; "
                "use kv_bits: 16"
            )
        return found

    def estimate(
        self, spec: DecoderSpec, slots: list[Slot], schemes: Schemes, max_tokens: int, options: MlxOptions
    ) -> Estimate:
        """Sizes in bytes; activations are those of one of the pieces in which mlx-lm runs a prompt, in float16.

        MLX reads weights into buffers of its own: nothing of them stays mapped.
        """
        weights = sum(stored_bytes(slot, schemes.get(slot.name, HALF)) for slot in slots)
        values = 2 * spec.layers * spec.kv_width * max_tokens
        kv = values * 2
        if options.kv_bits < 16:
            kv = values * options.kv_bits // 8 + values // (kv_group(spec.head_dim) or 32) * 4
        widest = max(2 * spec.intermediate, spec.qkv_width) + 4 * spec.hidden
        activations = (min(_PREFILL_STEP, max_tokens) * widest + spec.vocab) * 2
        return Estimate(weights, weights, kv, activations, {"ios": weights}, weights)

    def build(self, job: Job, folder: Path, progress: Progress) -> dict[str, Any]:
        """Write weights, config.json, tokenizer and generation files, README.md and, if asked for, decoder.mlxfn."""
        source = checkpoint_config(job)
        tensors = package_tensors(job.slots, job.weights, tensor_prefix(source))
        total, done = sum(t.size for t in tensors), 0

        def advance(count: int) -> None:
            nonlocal done
            done += count
            progress("writing weights", done, total)

        write_shards(tensors, folder, sum(s.rows * s.columns for s in job.slots), advance)
        _write_json(folder / "config.json", package_config(source, job.spec, job.slots, job.schemes))
        copy_tokenizer(job.tokenizer, folder)
        if not (folder / "generation_config.json").exists():
            _write_json(folder / "generation_config.json", _generation_config(job.spec))
        options: MlxOptions = job.options
        runtime: dict[str, Any] = {
            "loader": "mlx-lm",
            "requires": {"mlx": ">=0.32", "mlx-lm": ">=0.32"},
            "max_tokens": job.max_tokens,
            "vocab_size": job.spec.vocab,
            "layers": job.spec.layers,
            "kv_heads": job.spec.kv_heads,
            "head_dim": job.spec.head_dim,
            "kv_bits": options.kv_bits,
            "kv_group": kv_group(job.spec.head_dim) if options.kv_bits < 16 else None,
            "eos": list(job.spec.eos),
        }
        if options.mlxfn_prefill is not None:
            from compiler.targets.mlx.functions import export_decoder

            progress("tracing functions", 0, 1)
            export_decoder(job, folder, folder / FUNCTIONS, options.mlxfn_prefill, tensor_prefix(source))
            runtime["functions"] = {"file": FUNCTIONS, "prefill_tokens": options.mlxfn_prefill}
            progress("tracing functions", 1, 1)
        sections = [tokens_section(job), *card.sections(job, wrapped=is_wrapped(source))]
        write_card(job, folder, runtime="MLX", library="mlx", tags=["mlx"], sections=sections)
        return {**runtime, "payload": {"ios": shipped_files(folder)}}


def checkpoint_config(job: Job) -> Mapping[str, Any]:
    """The own config.json of the checkpoint, which may wrap the decoder's; without one, that of the packed weights."""
    return read_config(job.tokenizer) if (job.tokenizer / "config.json").exists() else job.weights.config


def _generation_config(spec: DecoderSpec) -> dict[str, Any]:
    eos = spec.eos[0] if len(spec.eos) == 1 else list(spec.eos)
    found = {"bos_token_id": spec.bos, "eos_token_id": eos or None}
    return {key: value for key, value in found.items() if value is not None}


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=4) + "\n", encoding="utf-8")
