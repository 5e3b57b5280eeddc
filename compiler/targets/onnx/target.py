"""The ONNX target: what it refuses, how large it gets, and the package it writes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from artifacts import Progress
from compiler.models.decoder import DecoderSpec
from compiler.slots import HALF, Schemes, Slot
from compiler.targets.base import Estimate, Job, copy_tokenizer
from compiler.targets.onnx.options import OnnxOptions

_GROUPS = (16, 32, 64, 128, 256)


class OnnxTarget:
    """Lowers a decoder to MatMulNBits and GroupQueryAttention over memory-mapped weights."""

    tolerances: Mapping[str, float] = {
        "exact_max_abs_logit": 2e-4,
        "shipped_mean_kl": 2e-3,
        "shipped_min_top1": 0.97,
    }

    def refusals(self, spec: DecoderSpec, slots: list[Slot], schemes: Schemes, options: OnnxOptions) -> list[str]:
        """What of a recipe this target cannot express, one sentence each."""
        found = []
        for slot in slots:
            scheme = schemes.get(slot.name, HALF)
            if scheme.bits != 16 and scheme.group not in _GROUPS:
                wanted = "one scale per row" if scheme.group == 0 else f"group {scheme.group}"
                found.append(
                    f"onnx: {slot.name} has {wanted}; MatMulNBits takes groups of {', '.join(map(str, _GROUPS))}"
                )
        return found

    def estimate(
        self, spec: DecoderSpec, slots: list[Slot], schemes: Schemes, max_tokens: int, options: OnnxOptions
    ) -> Estimate:
        """Sizes in bytes; activations are those of a one-token step with its logits, in float32."""
        weights = 0
        for slot in slots:
            scheme = schemes.get(slot.name, HALF)
            weights += (
                slot.rows * slot.columns * 4 if scheme.bits == 16 else scheme.packed_bytes(slot.rows, slot.columns)
            )
        tables = max_tokens * spec.head_dim * 4
        kv = 2 * spec.layers * spec.kv_width * max_tokens * options.kv_bits // 8
        widest = max(spec.vocab, 2 * spec.intermediate, spec.qkv_width)
        return Estimate(weights + tables, weights, kv, (widest + 4 * spec.hidden) * 4)

    def build(self, job: Job, folder: Path, progress: Progress) -> dict[str, Any]:
        """Write model.onnx, model.onnx.data, genai_config.json and the tokenizer files."""
        from compiler.targets.onnx.external import ExternalData
        from compiler.targets.onnx.lower import Lowering, needs_positions, write_model

        total = sum(s.rows * s.columns for s in job.slots if not s.is_vector)
        done = 0

        def advance(count: int) -> None:
            nonlocal done
            done += count
            progress("writing weights", done, total)

        cache = None
        if job.options.kv_bits == 8:
            from compiler.quantize import kv

            progress("measuring the cache", 0, 1)
            cache = kv.measure(job.spec, job.schemes, job.weights, job.tokenizer, job.options.kv_scales)
        data = ExternalData(folder / "model.onnx.data")
        model = Lowering(job, data, advance, cache).run()
        data.close()
        write_model(model, folder / "model.onnx")
        positions = needs_positions(job)
        config = json.dumps(genai_config(job, positions), indent=2)
        (folder / "genai_config.json").write_text(config + "\n", encoding="utf-8")
        copy_tokenizer(job.tokenizer, folder)
        spec = job.spec
        runtime: dict[str, Any] = {
            "model": "model.onnx",
            "max_tokens": job.max_tokens,
            "vocab_size": spec.vocab,
            "layers": spec.layers,
            "kv_heads": spec.kv_heads,
            "head_dim": spec.head_dim,
            "kv_bits": job.options.kv_bits,
            "logits": job.options.logits,
            "position_ids": positions,
            "eos": list(spec.eos),
        }
        if cache is not None:
            runtime["kv_error"] = {
                "scales": job.options.kv_scales,
                "worst_key_snr_db": round(min(c.key_snr_db for c in cache), 2),
                "worst_value_snr_db": round(min(c.value_snr_db for c in cache), 2),
            }
        return runtime


def genai_config(job: Job, positions: bool) -> dict[str, Any]:
    """onnxruntime-genai's description of the package (its `genai_config.json`, model type "mistral")."""
    spec = job.spec
    inputs = {"input_ids": "input_ids", "attention_mask": "attention_mask"}
    if positions:
        inputs["position_ids"] = "position_ids"
    inputs |= {"past_key_names": "past_key_values.%d.key", "past_value_names": "past_key_values.%d.value"}
    return {
        "model": {
            "type": "mistral",
            "bos_token_id": spec.bos if spec.bos is not None else 0,
            "eos_token_id": list(spec.eos),
            "pad_token_id": spec.eos[0] if spec.eos else 0,
            "vocab_size": spec.vocab,
            "context_length": job.max_tokens,
            "decoder": {
                "filename": "model.onnx",
                "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
                "head_size": spec.head_dim,
                "hidden_size": spec.hidden,
                "num_attention_heads": spec.heads,
                "num_key_value_heads": spec.kv_heads,
                "num_hidden_layers": spec.layers,
                "inputs": inputs,
                "outputs": {
                    "logits": "logits",
                    "present_key_names": "present.%d.key",
                    "present_value_names": "present.%d.value",
                },
            },
        },
        "search": {"do_sample": False, "max_length": job.max_tokens, "past_present_share_buffer": True},
    }
