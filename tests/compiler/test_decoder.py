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
from compiler.graph import capture, op_name
from compiler.models import decoder
from compiler.models.base import read_model
from compiler.slots import Scheme
from compiler.tensors import CheckpointError
from tests.compiler.conftest import (
    MINISTRAL3,
    Quantizer,
    empty_states,
    original,
    random_tensors,
    reference_logits,
    save,
)

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


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_equal_those_of_transformers(tmp_path: Path, name: str) -> None:
    """100 tokens, far beyond YaRN's 16 original positions, where queries are scaled too."""
    folder = save(tmp_path / "m", CONFIGS[name], random_tensors(CONFIGS[name]))
    model, weights = original(folder)
    ids = np.random.default_rng(0).integers(0, CONFIGS[name]["vocab_size"], (2, 100))
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        expected = theirs(torch.from_numpy(ids)).logits.numpy()
    np.testing.assert_allclose(reference_logits(model, weights, ids), expected, atol=1e-4)


def test_a_wrapped_text_side_is_found(tmp_path: Path) -> None:
    wrapped = {"model_type": "mistral3", "text_config": MINISTRAL3, "vision_config": {}}
    tensors = {f"language_model.{k}": v for k, v in random_tensors(MINISTRAL3).items()}
    model, weights = original(save(tmp_path / "wrapped", wrapped, tensors))
    plain_model, plain = original(save(tmp_path / "plain", MINISTRAL3, random_tensors(MINISTRAL3)))
    ids = np.random.default_rng(0).integers(0, MINISTRAL3["vocab_size"], (1, 20))
    assert (model.geometry, model.constants, model.config) == (
        plain_model.geometry,
        plain_model.constants,
        plain_model.config,
    )
    assert decoder.read_spec(wrapped) == decoder.read_spec(MINISTRAL3)
    np.testing.assert_array_equal(reference_logits(model, weights, ids), reference_logits(plain_model, plain, ids))


@pytest.mark.parametrize(("outer", "inner", "tied"), [(True, False, True), (False, True, False), (None, True, True)])
def test_the_whole_model_says_whether_its_head_is_tied(outer: bool | None, inner: bool, tied: bool) -> None:
    """transformers 5 saves a text_config that says false inside of a model that ties them."""
    config = {"model_type": "mistral3", "text_config": {**MINISTRAL3, "tie_word_embeddings": inner}}
    config |= {} if outer is None else {"tie_word_embeddings": outer}
    assert decoder.read_spec(config).tied is tied


def test_cached_decoding_equals_one_prefill(ministral: Path) -> None:
    model, weights = original(ministral)
    (component,) = model.components
    ids = np.random.default_rng(0).integers(0, MINISTRAL3["vocab_size"], (1, 60))
    whole = reference_logits(model, weights, ids)
    prefill, decode = (component.module(component.entry(name), {}) for name in ("prefill", "decode"))
    caches = empty_states(component)
    with torch.no_grad(), dialect.weights(weights):
        for start, stop in [(0, 40), (40, 43), *((i, i + 1) for i in range(43, 60))]:
            body, positions = decode if stop - start == 1 else prefill, torch.arange(start, stop)[None]
            out, *caches = body(torch.from_numpy(ids[:, start:stop]), positions, *caches)
            assert out.shape == (1, 1, MINISTRAL3["vocab_size"])
            np.testing.assert_allclose(out[0, 0].numpy(), whole[0, stop - 1], atol=1e-5)


def test_what_the_head_gets_comes_without_caches(ministral: Path) -> None:
    """The entry "hidden" with the head's matrix behind it is the entry "score"."""
    model, weights = original(ministral)
    (component,) = model.components
    ids = torch.arange(20)[None]
    with torch.no_grad(), dialect.weights(weights):
        given = (ids, ids, *empty_states(component))
        found = component.module(component.entry("hidden"), {})(*given)
        score = component.module(component.entry("score"), {})(*given)
    assert [tuple(x.shape) for x in found] == [(1, 20, MINISTRAL3["hidden_size"])]
    assert len(score) == 1 + len(component.states)
    head = torch.from_numpy(weights.rows(component.head))
    torch.testing.assert_close(found[0] @ head.T, score[0], atol=1e-5, rtol=1e-5)


def test_fused_projections_compute_what_apart_ones_do(ministral: Path, quantized: Quantizer) -> None:
    apart = {"model.layers.0.self_attn.k_proj": Scheme(8, 32), "model.layers.1.mlp.up_proj": Scheme(4, 16)}
    model, schemes, weights = quantized(ministral, Scheme(4, 32), apart)
    ids = np.arange(20)[None]
    mixed, fused = (reference_logits(model, weights, ids, found) for found in (schemes, {}))
    np.testing.assert_allclose(mixed, fused, atol=1e-5)
    (component,) = model.components
    count = {
        name: sum(op_name(n) == "edge::linear" for n in capture(component, component.entry("score"), s).graph.nodes)
        for name, s in (("mixed", schemes), ("fused", {}))
    }
    assert count == {"fused": 2 * 4 + 1, "mixed": 2 * 4 + 1 + 2 + 1}


def test_a_captured_graph_holds_no_weights(ministral: Path) -> None:
    (component,) = original(ministral)[0].components
    for name, sizes in (("score", {}), ("prefill", {"tokens": 8}), ("decode", {})):
        entry = component.entry(name)
        program = capture(component, entry, {}, sizes)
        assert not program.state_dict
        assert not program.constants
        places = [n.name for n in program.graph.nodes if n.op == "placeholder"]
        assert len(places) == len(entry.inputs) + len(component.states)
        (results,) = (n.args[0] for n in program.graph.nodes if n.op == "output")
        assert len(results) == len(entry.outputs) + len(component.states)


def test_edge_ops_need_a_table_of_weights(ministral: Path) -> None:
    (component,) = original(ministral)[0].components
    ids = torch.zeros((1, 3), dtype=torch.int64)
    with pytest.raises(RuntimeError, match="only inside"):
        component.module(component.entry("score"), {})(ids, ids, *empty_states(component))


def test_a_token_outside_the_vocabulary_is_refused(ministral: Path) -> None:
    model, weights = original(ministral)
    with pytest.raises(IndexError, match=r"outside 0\.\.159"):
        reference_logits(model, weights, np.asarray([[3, 160]]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "gpt2"}, "model_type 'gpt2' is not supported"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types must be a list of full_attention"),
        ({"hidden_act": "gelu"}, "hidden_act must be one of silu, not 'gelu'"),
        ({"sliding_window": 128}, "sliding_window"),
        ({"hidden_size": "64"}, "hidden_size must be a whole number from 1 to 1048576, not '64'"),
        ({"num_hidden_layers": None}, "num_hidden_layers"),
        ({"num_key_value_heads": 3}, "4 attention heads do not divide over 3"),
        (
            {"rope_parameters": {"rope_type": "longrope"}},
            r"rope_parameters\.rope_type must be one of default, linear, llama3, yarn, not 'longrope'",
        ),
        ({"model_type": "mistral3"}, "text_config"),
    ],
)
def test_what_the_family_cannot_do_is_refused_by_key(change: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        decoder.read_spec({**MINISTRAL3, **change})


_ROPE = MINISTRAL3["rope_parameters"]
_LLAMA3 = {"rope_parameters": None, "rope_scaling": LLAMA3_ROPE}
_WRONG: list[tuple[dict[str, Any], str]] = [
    ({"hidden_size": 10**30}, "hidden_size must be a whole number from 1 to 1048576"),
    ({"hidden_size": 64.0}, "hidden_size must be a whole number"),
    ({"hidden_size": True}, "hidden_size must be a whole number"),
    ({"vocab_size": 2**30}, "vocab_size must be a whole number from 1 to"),
    ({"num_hidden_layers": 10**9}, "num_hidden_layers must be a whole number from 1 to 4096"),
    ({"num_attention_heads": -4}, "num_attention_heads must be"),
    ({"num_attention_heads": 65, "head_dim": None}, "head_dim must be a whole number from 1 to 4096, and is missing"),
    ({"num_key_value_heads": "2"}, "num_key_value_heads must be"),
    ({"num_key_value_heads": 0}, "num_key_value_heads must be"),
    ({"head_dim": [1]}, r"head_dim must be .*, not \[1\]"),
    ({"head_dim": 33}, "head_dim 33 is odd"),
    ({"intermediate_size": {}}, "intermediate_size must be"),
    ({"max_position_embeddings": 2**63}, "max_position_embeddings must be"),
    ({"max_position_embeddings": "256"}, "max_position_embeddings must be"),
    ({"rms_norm_eps": "x"}, "rms_norm_eps must be a number from 0 to 1, not 'x'"),
    ({"rms_norm_eps": [1e-5]}, "rms_norm_eps must be"),
    ({"rms_norm_eps": -1e-5}, "rms_norm_eps must be"),
    ({"rms_norm_eps": float("nan")}, "rms_norm_eps must be"),
    ({"tie_word_embeddings": "false"}, "tie_word_embeddings must be true or false, not 'false'"),
    ({"attention_bias": "no"}, "attention_bias must be true or false"),
    ({"hidden_act": ["silu"]}, "hidden_act must be one of silu"),
    ({"model_type": ["llama"]}, r"model_type \['llama'\] is not supported"),
    ({"model_type": {}}, "model_type {} is not supported"),
    ({"bos_token_id": "<s>"}, "bos_token_id must be a whole number from 0 to 159"),
    ({"bos_token_id": 160}, "bos_token_id must be a whole number from 0 to 159, not 160"),
    ({"eos_token_id": "</s>"}, "eos_token_id must be a token id or a list of token ids"),
    ({"eos_token_id": [2, "x"]}, "eos_token_id must be a token id or a list"),
    ({"eos_token_id": [2, 160]}, r"eos_token_id must be below vocab_size, 160, not \[2, 160\]"),
    ({"eos_token_id": -1}, "eos_token_id must be a token id"),
    ({"eos_token_id": {"a": 2}}, "eos_token_id must be a token id"),
    ({"rope_parameters": "yarn"}, "rope_parameters must be an object, not 'yarn'"),
    ({"rope_parameters": []}, "rope_parameters must be an object"),
    ({"rope_parameters": None, "rope_scaling": 4.0}, "rope_scaling must be an object, not 4.0"),
    ({"rope_parameters": {"full_attention": _ROPE}}, r"rope_parameters\.full_attention cannot be an object"),
    ({"rope_parameters": {**_ROPE, "factor": None}}, r"rope_parameters\.factor is needed for rope_type yarn"),
    ({"rope_parameters": {**_ROPE, "factor": "16"}}, r"rope_parameters\.factor must be a number from 1 to 1e\+06"),
    ({"rope_parameters": {**_ROPE, "factor": 0}}, r"rope_parameters\.factor must be"),
    ({"rope_parameters": {**_ROPE, "rope_theta": 1.0}}, r"rope_parameters\.rope_theta must be a number from 1.001"),
    ({"rope_parameters": {**_ROPE, "rope_theta": [1e4]}}, r"rope_parameters\.rope_theta must be"),
    ({"rope_parameters": {**_ROPE, "original_max_position_embeddings": 0}}, "original_max_position_embeddings must be"),
    ({"rope_parameters": {**_ROPE, "beta_fast": "32"}}, r"rope_parameters\.beta_fast must be"),
    ({"rope_parameters": {**_ROPE, "mscale": [1]}}, r"rope_parameters\.mscale must be"),
    ({"rope_parameters": {**_ROPE, "attention_factor": -1}}, r"rope_parameters\.attention_factor must be"),
    ({"rope_parameters": {**_ROPE, "llama_4_scaling_beta": "x"}}, r"rope_parameters\.llama_4_scaling_beta must be"),
    ({"rope_parameters": {**_ROPE, "truncate": 1}}, r"rope_parameters\.truncate must be true or false"),
    ({"rope_parameters": {**_ROPE, "type": 7}}, r"rope_parameters\.type must be one of default"),
    ({"rope_parameters": {**_ROPE, "partial_rotary_factor": 0.5}}, "partial_rotary_factor other than 1"),
    ({"rope_parameters": {**_ROPE, "partial_rotary_factor": "1"}}, "partial_rotary_factor must be a number"),
    ({"rope_parameters": {"rope_type": "default"}, "rope_theta": "x"}, "^config.json: rope_theta must be a number"),
    ({**_LLAMA3, "rope_scaling": {**LLAMA3_ROPE, "high_freq_factor": 1.0}}, "high_freq_factor must be more than"),
    ({**_LLAMA3, "rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, r"rope_scaling\.low_freq_factor is needed"),
    ({"model_type": "mistral3", "text_config": []}, "text_config must be an object"),
    ({"model_type": "mistral3", "text_config": {**MINISTRAL3, "head_dim": "x"}}, r"text_config\.head_dim must be"),
    (
        {"model_type": "mistral3", "text_config": {**MINISTRAL3, "rope_parameters": 3}},
        r"text_config\.rope_parameters mus",
    ),
]


@pytest.mark.parametrize(("change", "message"), _WRONG)
def test_a_value_of_the_wrong_type_or_size_is_refused_by_key(change: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as raised:
        decoder.read_spec({**MINISTRAL3, **change})
    assert "config.json: " in str(raised.value)


@pytest.mark.parametrize(
    "change",
    [
        {"rms_norm_eps": 0},
        {"tie_word_embeddings": None, "eos_token_id": None, "bos_token_id": None},
        {"num_key_value_heads": None, "head_dim": None},
        {"rope_parameters": {}, "rope_theta": 500000},
        {"rope_parameters": None, "rope_scaling": {"type": "linear", "factor": 2}},
        {"rope_parameters": {**_ROPE, "finetuned": True, "attention_factor": None, "factor": 16}},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "partial_rotary_factor": 1}},
        {"sliding_window": 0, "attention_bias": False, "hidden_act": "silu"},
        {"eos_token_id": [2, 5, 159]},
    ],
)
def test_what_checkpoints_do_say_is_still_read(change: dict[str, Any]) -> None:
    spec = decoder.read_spec({**MINISTRAL3, **change})
    frequencies, factor = decoder.rotary_frequencies(spec)
    assert np.isfinite([*frequencies, factor]).all() and len(frequencies) == spec.head_dim // 2


def test_a_checkpoint_without_a_text_side_is_refused() -> None:
    for read in (
        lambda names: decoder.slots(decoder.read_spec(MINISTRAL3), names),
        lambda names: read_model(MINISTRAL3, names, 64),
    ):
        with pytest.raises(EdgewrightError, match=r"no tensor named model.embed_tokens.weight"):
            read(["transformer.wte.weight"])
