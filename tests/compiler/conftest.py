"""Random-weight checkpoints of small geometries, as Hugging Face saves them, and quantized folders made from them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from artifacts import silent
from compiler.checkpoint import Checkpoint
from compiler.models import decoder
from compiler.quantize.methods import rtn
from compiler.quantize.packed import PackedWeights
from compiler.quantize.stream import quantize_checkpoint
from compiler.slots import Scheme, Slot

YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 16.0,
    "original_max_position_embeddings": 16,
    "max_position_embeddings": 256,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "llama_4_scaling_beta": 0.1,
}
MINISTRAL3: dict[str, Any] = {
    "architectures": ["Ministral3ForCausalLM"],
    "model_type": "ministral3",
    "vocab_size": 160,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 256,
    "tie_word_embeddings": True,
    "rope_parameters": YARN,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def random_tensors(config: Mapping[str, Any], seed: int = 0) -> dict[str, torch.Tensor]:
    """bf16 weights for every slot of a decoder config."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for slot in decoder.slots(decoder.read_spec(dict(config))):
        shape = (slot.columns,) if slot.kind == "norm" else (slot.rows, slot.columns)
        values = torch.randn(shape, generator=generator)
        tensors[slot.tensor] = (1 + values / 8 if slot.kind == "norm" else values / 8).bfloat16()
    return tensors


def save(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(dict(tensors), folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.fixture
def ministral(tmp_path: Path) -> Path:
    """A two-layer Ministral 3 with every feature of the real one, random weights."""
    return save(tmp_path / "ministral", MINISTRAL3, random_tensors(MINISTRAL3))


Quantizer = Callable[..., tuple[decoder.DecoderSpec, list[Slot], dict[str, Scheme], PackedWeights]]


@pytest.fixture
def quantized(tmp_path: Path) -> Quantizer:
    """quantized(folder, scheme, **other schemes by slot name): rounded to nearest into a new folder."""

    def make(
        source: Path, scheme: Scheme, others: Mapping[str, Scheme] | None = None
    ) -> tuple[decoder.DecoderSpec, list[Slot], dict[str, Scheme], PackedWeights]:
        checkpoint = Checkpoint(source)
        spec = decoder.read_spec(checkpoint.config)
        slots = decoder.slots(spec, list(checkpoint.tensors.names()))
        schemes = {s.name: scheme for s in slots if s.kind != "norm"} | dict(others or {})
        folder = tmp_path / f"quantized-{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        rounders = dict.fromkeys(schemes, rtn.quantize)
        quantize_checkpoint(checkpoint, slots, schemes, rounders, folder, checkpoint.config, silent)
        return spec, slots, schemes, PackedWeights(folder)

    return make


def reference_logits(spec: decoder.DecoderSpec, weights: Any, ids: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Logits [batch, seq, vocab] of the dialect's reference."""
    from compiler import dialect

    batch, length = ids.shape
    positions = torch.arange(length).expand(batch, length)
    with torch.no_grad(), dialect.weights(weights):
        out, _ = decoder.build(spec, {})(torch.from_numpy(ids), positions, decoder.empty_caches(spec, length, batch))
    return np.asarray(out)
