"""Every value of config.json that mlx-lm and transformers read differently, proven on fp32 logits of both.

Each case is a checkpoint with one value changed. transformers reads the checkpoint, and the package: both must be the
same model. mlx-lm reads the package. And the value must matter: with the plain one the logits are others.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import torch
from mlx_lm.utils import load_model
from transformers import AutoConfig, AutoModelForCausalLM

from compiler.models import decoder
from compiler.models.base import read_model
from compiler.slots import HALF
from compiler.targets import load_target
from compiler.targets.base import BuildJob, Job
from compiler.targets.mlx.options import MlxOptions
from tests.compiler.conftest import MINISTRAL3, YARN, Jobs, job_logits, packed, random_tensors, save

LLAMA = {**MINISTRAL3, "model_type": "llama", "architectures": ["LlamaForCausalLM"], "rope_parameters": None}
LLAMA["rope_parameters"] = {"rope_type": "default", "rope_theta": 10000.0}
MISTRAL = {**LLAMA, "model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": None}
PLAIN_YARN = {k: v for k, v in YARN.items() if not k.startswith(("mscale", "llama", "max"))}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


def rope(base: dict[str, Any], **values: Any) -> dict[str, Any]:
    parameters = {**base["rope_parameters"], **values}
    return {**base, "rope_parameters": {k: v for k, v in parameters.items() if v is not None}}


CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "ministral3": (MINISTRAL3, rope(MINISTRAL3, factor=2.0)),
    "rope_theta": (rope(MINISTRAL3, rope_theta=1e6), MINISTRAL3),
    "query scaling": (rope(MINISTRAL3, llama_4_scaling_beta=0.4), MINISTRAL3),
    "no query scaling": (rope(MINISTRAL3, llama_4_scaling_beta=0.0), MINISTRAL3),
    "original positions": (rope(MINISTRAL3, original_max_position_embeddings=32), MINISTRAL3),
    "yarn factor": (rope(MINISTRAL3, factor=4.0), MINISTRAL3),
    "yarn beta_fast": (rope(MINISTRAL3, beta_fast=1.0), MINISTRAL3),
    "yarn beta_slow": (rope(MINISTRAL3, beta_slow=0.25), MINISTRAL3),
    "yarn mscale": (rope(MINISTRAL3, mscale=2.0), MINISTRAL3),
    "yarn mscale without its other half": (rope(MINISTRAL3, mscale=2.0, mscale_all_dim=None), MINISTRAL3),
    "yarn without mscale": (rope(MINISTRAL3, mscale=None, mscale_all_dim=None), MINISTRAL3),
    "yarn attention_factor": (rope(MINISTRAL3, attention_factor=1.7), MINISTRAL3),
    "ministral3, default rope": (
        rope(MINISTRAL3, rope_type="default", original_max_position_embeddings=16, factor=None),
        MINISTRAL3,
    ),
    "head_dim": ({**MINISTRAL3, "head_dim": 16}, MINISTRAL3),
    "rms_norm_eps": ({**MINISTRAL3, "rms_norm_eps": 0.1}, MINISTRAL3),
    "untied": ({**MINISTRAL3, "tie_word_embeddings": False}, MINISTRAL3),
    "tied, unsaid": ({k: v for k, v in LLAMA.items() if k != "tie_word_embeddings"}, LLAMA),
    "llama, rope_theta in rope_parameters": (rope(LLAMA, rope_theta=130000.0), LLAMA),
    "llama, rope_theta at the top": (
        {**{k: v for k, v in LLAMA.items() if k != "rope_parameters"}, "rope_theta": 130000.0},
        LLAMA,
    ),
    "llama, linear": (rope(LLAMA, rope_type="linear", factor=4.0), LLAMA),
    "llama, llama3": ({**LLAMA, "rope_parameters": LLAMA3}, LLAMA),
    "llama, yarn": ({**LLAMA, "rope_parameters": PLAIN_YARN}, LLAMA),
    "mistral, rope_theta": (rope(MISTRAL, rope_theta=1e6), MISTRAL),
    "mistral, yarn": ({**MISTRAL, "rope_parameters": PLAIN_YARN}, MISTRAL),
}
IDS = np.random.default_rng(2).integers(0, 160, (1, 96))


def package(folder: Path, config: dict[str, Any], jobs: Jobs) -> tuple[Path, Path]:
    """A checkpoint of this config with random weights, and its 16-bit package."""
    source = save(folder / "source", config, random_tensors(config))
    packed(jobs(source, MlxOptions(), HALF, max_tokens=256), "mlx", folder / "mlx")
    return source, folder / "mlx"


def transformers_logits(folder: Path, config: dict[str, Any]) -> np.ndarray[Any, Any]:
    """Logits of the model that transformers makes of a folder's config.json, with the checkpoint's weights."""
    made = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder), dtype=torch.float32).eval()
    state = {name: tensor.float() for name, tensor in random_tensors(config).items()}
    if decoder.read_spec(config).tied:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    made.load_state_dict(state)
    with torch.no_grad():
        return np.asarray(made(torch.from_numpy(IDS)).logits)


def mlx_logits(folder: Path) -> np.ndarray[Any, Any]:
    model, _ = load_model(folder)
    model.set_dtype(mx.float32)
    return np.array(model(mx.array(IDS)))


@pytest.mark.parametrize("name", CASES)
def test_all_readers_see_the_same_model(tmp_path: Path, jobs: Jobs, name: str) -> None:
    config, plain = CASES[name]
    source, folder = package(tmp_path, config, jobs)
    expected = transformers_logits(source, config)
    largest = np.ptp(expected)
    np.testing.assert_allclose(transformers_logits(folder, config), expected, atol=1e-6 * largest)
    np.testing.assert_allclose(mlx_logits(folder), expected, atol=1e-5 * largest)
    if {s.name: s.rows for s in decoder.slots(decoder.read_spec(config))} == {
        s.name: s.rows for s in decoder.slots(decoder.read_spec(plain))
    }:
        (tmp_path / "plain").mkdir()
        (tmp_path / "plain" / "config.json").write_text(json.dumps(plain))
        assert np.abs(transformers_logits(tmp_path / "plain", config) - expected).max() > 1e-3 * largest


@pytest.mark.parametrize("text", ["ministral3", "mistral, yarn", "untied"])
def test_a_wrapped_decoder_reads_the_same(tmp_path: Path, jobs: Jobs, text: str) -> None:
    """As Ministral 3 is published: mistral3 around its text decoder; the package keeps the form."""
    config = CASES[text][0]
    tied = {"tie_word_embeddings": config["tie_word_embeddings"]}
    wrapped = {"model_type": "mistral3", "text_config": config, "vision_config": {"model_type": "pixtral"}, **tied}
    weights = {f"language_model.{name}": tensor for name, tensor in random_tensors(config).items()}
    source = save(tmp_path / "source", wrapped, weights)
    job: BuildJob = jobs(source, MlxOptions(), HALF, max_tokens=256)
    folder = tmp_path / "mlx"
    packed(job, "mlx", folder)
    spec = decoder.read_spec(wrapped)
    expected = job_logits(job, IDS)
    np.testing.assert_allclose(mlx_logits(folder), expected, atol=1e-5 * np.ptp(expected))
    read = AutoConfig.from_pretrained(folder).text_config
    assert read.rope_parameters["rope_theta"] == spec.rope["rope_theta"]
    assert read.tie_word_embeddings == spec.tied and read.head_dim == spec.head_dim


def test_what_no_config_can_say_is_refused() -> None:
    target = load_target("mlx")

    def refused(config: dict[str, Any]) -> list[str]:
        return target.refusals(Job("t", read_model(config, None, 256), {}, MlxOptions()))

    assert refused(MINISTRAL3) == []
    assert refused(rope(MINISTRAL3, truncate=False)) == [
        "mlx: mlx-lm always truncates YaRN's correction range, the checkpoint says truncate: false"
    ]
    scaled = {**MISTRAL, "rope_parameters": {**PLAIN_YARN, "llama_4_scaling_beta": 0.1}}
    assert refused(scaled) == [
        "mlx: mlx-lm scales queries by position (llama_4_scaling_beta) in ministral3, not in mistral"
    ]
    assert refused(rope(MINISTRAL3, factor=1.0, attention_factor=2.0)) == [
        "mlx: mlx-lm cannot be given an attention_factor where YaRN's factor is 1 or less"
    ]
