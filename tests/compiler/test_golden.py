"""Golden vectors say what transformers says, for both sides, within their size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from artifacts import silent
from compiler import golden
from compiler.checkpoint import Checkpoint
from compiler.models import decoder
from compiler.pipeline import OriginalWeights
from compiler.slots import Scheme
from tests.compiler.conftest import MINISTRAL3, Quantizer


def load(path: Path) -> tuple[dict[str, np.ndarray[Any, Any]], dict[str, str]]:
    with safe_open(path, "numpy") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118  # not a mapping


def test_both_sides_are_what_transformers_computes(ministral: Path, quantized: Quantizer, tmp_path: Path) -> None:
    spec, slots, schemes, weights = quantized(ministral, Scheme(4, 32))
    tokens = np.random.default_rng(3).integers(0, spec.vocab, (2, 50)).astype(np.int32)
    sides = {"reference": weights, "original": OriginalWeights(Checkpoint(ministral), slots)}
    golden.write(tmp_path / "g.safetensors", spec, schemes, tokens, "random", sides, silent)
    found, metadata = load(tmp_path / "g.safetensors")
    assert metadata["original_positions"] == "16"
    for side, folder in (("reference", weights.path), ("original", ministral)):
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
        with torch.no_grad():
            logits = model(torch.from_numpy(tokens.astype(np.int64))).logits
        logp = logits.log_softmax(-1)
        target = logp[:, :-1].gather(-1, torch.from_numpy(tokens[:, 1:, None].astype(np.int64)))[..., 0]
        np.testing.assert_allclose(found[f"{side}.target_logprob"], target, atol=2e-5)
        np.testing.assert_allclose(found[f"{side}.logsumexp"], logits.logsumexp(-1), atol=2e-5)
        np.testing.assert_allclose(found[f"{side}.top_logits"], logits.topk(64).values, atol=2e-5)
        chosen = logits.gather(-1, torch.from_numpy(found[f"{side}.top_ids"].astype(np.int64)))
        np.testing.assert_allclose(found[f"{side}.top_logits"], chosen, atol=2e-5)
        if side == "reference":
            full = [logits[i, j].numpy() for i, j in found["full.index"]]
            np.testing.assert_allclose(found["reference.full_logits"], full, atol=2e-5)
    assert "original.full_logits" not in found
    assert found["full.index"][-1].tolist() == [1, 49]


@pytest.mark.parametrize("vocab", [50, 4096, 131072, 400000])
@pytest.mark.parametrize("max_tokens", [64, 4096])
def test_tokens_fill_the_size_limit(vocab: int, max_tokens: int) -> None:
    spec = decoder.read_spec({**MINISTRAL3, "vocab_size": vocab})
    tokens, text = golden.held_out_tokens(None, spec, max_tokens)
    top = min(64, vocab)
    size = tokens.size * (4 + 2 * (8 * top + 8)) + 16 * vocab
    assert tokens.shape[1] <= max_tokens
    assert tokens.max() < vocab
    assert "no tokenizer" in text
    assert size <= golden.MAX_BYTES or tokens.size <= 128
    assert vocab > 300000 or size > 0.7 * golden.MAX_BYTES


def test_a_target_adds_its_tolerances(ministral: Path, tmp_path: Path) -> None:
    spec = decoder.read_spec(Checkpoint(ministral).config)
    table = OriginalWeights(Checkpoint(ministral), decoder.slots(spec))
    tokens = np.zeros((1, 8), np.int32)
    golden.write(tmp_path / "g", spec, {}, tokens, "zeros", {"reference": table, "original": table}, silent)
    golden.copy_with_tolerances(tmp_path / "g", tmp_path / "t", {"exact_max_abs_logit": 1e-4})
    before, after = load(tmp_path / "g"), load(tmp_path / "t")
    assert after[1] == {**before[1], "tolerances": '{"exact_max_abs_logit": 0.0001}'}
    for name, values in before[0].items():
        np.testing.assert_array_equal(after[0][name], values)
