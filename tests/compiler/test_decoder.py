"""The decoder and the dialect's reference semantics against transformers: same config, same weights, same logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from artifacts import EdgewrightError
from compiler import dialect
from compiler.checkpoint import Checkpoint, CheckpointError
from compiler.graph import capture_decoder
from compiler.models import decoder
from compiler.pipeline import OriginalWeights
from compiler.slots import Scheme
from tests.compiler.conftest import MINISTRAL3, Quantizer, random_tensors, reference_logits, save

LLAMA: dict[str, Any] = {
    **{k: v for k, v in MINISTRAL3.items() if k not in ("rope_parameters", "head_dim")},
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "rope_theta": 10000.0,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "ministral3": MINISTRAL3,
    "ministral3, untied": {**MINISTRAL3, "tie_word_embeddings": False},
    "llama": LLAMA,
    "llama, llama3 rope": {**LLAMA, "rope_theta": 500000.0, "rope_scaling": LLAMA3_ROPE},
    "llama, linear rope": {**LLAMA, "rope_scaling": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}},
    "mistral, no grouping": {
        **LLAMA,
        "architectures": ["MistralForCausalLM"],
        "model_type": "mistral",
        "num_key_value_heads": 4,
        "sliding_window": None,
        "head_dim": 32,
    },
}


def original(folder: Path) -> tuple[decoder.DecoderSpec, OriginalWeights]:
    checkpoint = Checkpoint(folder)
    spec = decoder.read_spec(checkpoint.config)
    return spec, OriginalWeights(checkpoint, decoder.slots(spec, list(checkpoint.tensors.names())))


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_equal_those_of_transformers(tmp_path: Path, name: str) -> None:
    """100 tokens, far beyond YaRN's 16 original positions, where queries are scaled too."""
    folder = save(tmp_path / "m", CONFIGS[name], random_tensors(CONFIGS[name]))
    spec, weights = original(folder)
    ids = np.random.default_rng(0).integers(0, spec.vocab, (2, 100))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        expected = model(torch.from_numpy(ids)).logits.numpy()
    np.testing.assert_allclose(reference_logits(spec, weights, ids), expected, atol=1e-4)


def test_a_wrapped_text_side_is_found(tmp_path: Path) -> None:
    wrapped = {"model_type": "mistral3", "text_config": MINISTRAL3, "vision_config": {}}
    tensors = {f"language_model.{k}": v for k, v in random_tensors(MINISTRAL3).items()}
    spec, weights = original(save(tmp_path / "wrapped", wrapped, tensors))
    plain_spec, plain = original(save(tmp_path / "plain", MINISTRAL3, random_tensors(MINISTRAL3)))
    ids = np.random.default_rng(0).integers(0, spec.vocab, (1, 20))
    assert spec == plain_spec
    np.testing.assert_array_equal(reference_logits(spec, weights, ids), reference_logits(plain_spec, plain, ids))


def test_cached_decoding_equals_one_prefill(ministral: Path) -> None:
    spec, weights = original(ministral)
    ids = np.random.default_rng(0).integers(0, spec.vocab, (1, 60))
    whole = reference_logits(spec, weights, ids)
    model, caches = decoder.build(spec, {}, "last"), decoder.empty_caches(spec, 64)
    with torch.no_grad(), dialect.weights(weights):
        for start, stop in [(0, 40), (40, 43), *((i, i + 1) for i in range(43, 60))]:
            positions = torch.arange(start, stop)[None]
            out, caches = model(torch.from_numpy(ids[:, start:stop]), positions, caches)
            np.testing.assert_allclose(out[0, 0].numpy(), whole[0, stop - 1], atol=1e-5)


def test_fused_projections_compute_what_apart_ones_do(ministral: Path, quantized: Quantizer) -> None:
    apart = {"model.layers.0.self_attn.k_proj": Scheme(8, 32), "model.layers.1.mlp.up_proj": Scheme(4, 16)}
    spec, _, schemes, weights = quantized(ministral, Scheme(4, 32), apart)
    ids = torch.arange(20)[None]
    with torch.no_grad(), dialect.weights(weights):
        mixed, _ = decoder.build(spec, schemes)(ids, ids, decoder.empty_caches(spec, 20))
        fused, _ = decoder.build(spec, {})(ids, ids, decoder.empty_caches(spec, 20))
    np.testing.assert_allclose(mixed.numpy(), fused.numpy(), atol=1e-5)
    count = {
        name: sum("edge.linear" in str(n.target) for n in capture_decoder(spec, s).graph.nodes)
        for name, s in (("mixed", schemes), ("fused", {}))
    }
    assert count == {"fused": 2 * 4 + 1, "mixed": 2 * 4 + 1 + 2 + 1}


def test_a_captured_graph_holds_no_weights(ministral: Path) -> None:
    spec, _ = original(ministral)
    for program in (capture_decoder(spec, {}), capture_decoder(spec, {}, length=8, max_tokens=32, output="last")):
        assert not program.state_dict
        assert not program.constants


def test_edge_ops_need_a_table_of_weights(ministral: Path) -> None:
    spec, _ = original(ministral)
    ids = torch.zeros((1, 3), dtype=torch.int64)
    with pytest.raises(RuntimeError, match="only inside"):
        decoder.build(spec, {})(ids, ids, decoder.empty_caches(spec, 3))


def test_a_token_outside_the_vocabulary_is_refused(ministral: Path) -> None:
    spec, weights = original(ministral)
    with pytest.raises(IndexError, match=r"outside 0\.\.159"):
        reference_logits(spec, weights, np.asarray([[3, 160]]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "gpt2"}, "model_type 'gpt2' is not supported"),
        ({"attention_bias": True}, "attention_bias"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"sliding_window": 128}, "sliding_window"),
        ({"hidden_size": "64"}, "hidden_size must be a positive integer, not '64'"),
        ({"num_hidden_layers": None}, "num_hidden_layers"),
        ({"num_key_value_heads": 3}, "4 attention heads do not divide over 3"),
        ({"rope_parameters": {"rope_type": "longrope"}}, "rope_type 'longrope'"),
        ({"model_type": "mistral3"}, "text_config"),
    ],
)
def test_what_the_family_cannot_do_is_refused_by_key(change: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        decoder.read_spec({**MINISTRAL3, **change})


def test_a_checkpoint_without_a_text_side_is_refused() -> None:
    with pytest.raises(EdgewrightError, match=r"no tensor named model.embed_tokens.weight"):
        decoder.slots(decoder.read_spec(MINISTRAL3), ["transformer.wte.weight"])
