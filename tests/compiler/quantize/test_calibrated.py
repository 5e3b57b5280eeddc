"""Calibrated runs: what they write, that folding keeps the function, and that a killed run ends the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from artifacts import EdgewrightError
from compiler.checkpoint import Checkpoint
from compiler.drivers import text
from compiler.models import decoder
from compiler.quantize.metrics import divergence
from recipes.schema import Calibration
from tests.compiler.conftest import original, random_tensors, reference_logits

from .conftest import CONFIG, TINY, Quantize, save

KEEP = {"match": "model.embed_tokens", "bits": 16}


def mean_kl(source: Path, weights: Any, count: int = 4) -> float:
    model, unquantized = original(source)
    tokens = text.looked_at(Calibration(tokens=128 * count, seed=7), None, model, source).reshape(count, 128)
    expected, found = (torch.from_numpy(reference_logits(model, table, tokens)) for table in (unquantized, weights))
    return float(divergence(expected, found).mean())


@pytest.fixture
def two_layers(tmp_path: Path) -> Path:
    """The first two layers of the trained checkpoint: inputs as a trained model has them."""
    checkpoint = Checkpoint(TINY)
    config = {**checkpoint.config, "num_hidden_layers": 2}
    slots = decoder.slots(decoder.read_spec(config))
    return save(
        tmp_path / "two", {s.tensor: torch.from_numpy(checkpoint.rows(s.tensor)).bfloat16() for s in slots}, config
    )


def test_gptq_beats_nearest_at_the_same_size_and_at_a_quarter_of_the_scales(
    two_layers: Path, quantize: Quantize
) -> None:
    nearest, _ = quantize(two_layers, KEEP, {"match": "*", "bits": 4, "group": 32})
    found, evidence = quantize(two_layers, KEEP, {"match": "*", "bits": 4, "group": 32, "method": "gptq"}, tokens=4096)
    coarse, _ = quantize(two_layers, KEEP, {"match": "*", "bits": 4, "group": 128, "method": "gptq"}, tokens=4096)
    base = mean_kl(two_layers, nearest)
    assert mean_kl(two_layers, found) < 0.5 * base
    assert mean_kl(two_layers, coarse) < base
    assert len(evidence.tensors) == 14 and len(evidence.layers) == 2
    assert all(t.output_error is not None and 0 < t.output_error < 0.2 for t in evidence.tensors)
    assert evidence.tensors[0].snr_db == min(t.snr_db for t in evidence.tensors)
    assert 0 < evidence.layers[0].output_error < evidence.layers[1].output_error < 0.2


def test_awq_folds_exactly_and_survives_outlier_channels(two_layers: Path, quantize: Quantize, tmp_path: Path) -> None:
    """On a copy whose norms have 3 channels scaled by 16 and the following columns by 1/16: the same function."""
    checkpoint = Checkpoint(two_layers)
    slots = decoder.slots(decoder.read_spec(checkpoint.config))
    tensors = {s.tensor: torch.from_numpy(checkpoint.rows(s.tensor)) for s in slots}
    for layer in range(2):
        for norm, after in (("input_layernorm", ["q", "k", "v"]), ("post_attention_layernorm", ["gate", "up"])):
            tensors[f"model.layers.{layer}.{norm}.weight"][[3, 90, 201]] *= 16
            block = "self_attn" if len(after) == 3 else "mlp"
            for name in after:
                tensors[f"model.layers.{layer}.{block}.{name}_proj.weight"][:, [3, 90, 201]] /= 16
    outliers = save(tmp_path / "outliers", {k: v.bfloat16() for k, v in tensors.items()}, checkpoint.config)
    nearest, _ = quantize(outliers, KEEP, {"match": "*", "bits": 4})
    scaled, _ = quantize(outliers, KEEP, {"match": "*", "bits": 4, "method": "awq"}, tokens=2048)
    assert mean_kl(outliers, scaled) < 0.5 * mean_kl(outliers, nearest)
    fine, _ = quantize(outliers, KEEP, {"match": "*", "bits": 8, "group": 16, "method": "awq"}, tokens=1024)
    assert not np.array_equal(
        fine.rows("model.layers.0.input_layernorm"), tensors["model.layers.0.input_layernorm.weight"]
    )
    assert mean_kl(outliers, fine) < 1e-4


def test_methods_mix_and_every_slot_is_written(small: Path, quantize: Quantize) -> None:
    packed, evidence = quantize(
        small,
        {"match": "model.embed_tokens", "bits": 8, "group": 64, "method": "gptq"},
        {"match": "*.o_proj", "bits": 16},
        {"match": "*.down_proj", "bits": 8, "group": "channel", "method": "hqq", "symmetric": False},
        {"match": "*.k_proj", "bits": 4, "group": 16, "method": "awq"},
        {"match": "*", "bits": 4, "group": 32, "method": "gptq", "symmetric": False},
    )
    checkpoint = Checkpoint(small)
    slots = decoder.slots(decoder.read_spec(checkpoint.config))
    assert {t.slot for t in evidence.tensors} == {s.name for s in slots if not s.is_vector and "o_proj" not in s.name}
    for slot in slots:
        ours, theirs = packed.rows(slot.name), checkpoint.rows(slot.tensor)
        exact = slot.is_vector or slot.name.endswith("o_proj")
        assert np.array_equal(ours, theirs) if exact else 0 < np.abs(ours - theirs).max() < 0.3, slot.name


def test_an_untied_head_is_calibrated_too(tmp_path: Path, quantize: Quantize) -> None:
    config = {**CONFIG, "tie_word_embeddings": False}
    source = save(tmp_path / "untied", random_tensors(config), config)
    packed, evidence = quantize(source, {"match": "*", "bits": 4, "group": 32, "method": "gptq"})
    errors = {t.slot: t.output_error for t in evidence.tensors}
    assert errors["lm_head"] is not None and 0 < errors["lm_head"] < 0.3
    assert packed.scheme("lm_head").bits == packed.scheme("model.embed_tokens").bits == 4


@pytest.mark.parametrize("size", [1.0, 100.0])
def test_uncertainty_is_that_of_the_softmax(small: Path, monkeypatch: pytest.MonkeyPatch, size: float) -> None:
    """Also where one token takes nearly everything, and with a head read in many blocks."""
    monkeypatch.setattr(text, "_WEIGHED_BYTES", 1 << 14)
    model, table = original(small)
    states = size * torch.randn(3, 20, CONFIG["hidden_size"], generator=torch.Generator().manual_seed(0))
    logits = states.double() @ torch.from_numpy(table.rows("model.embed_tokens")).double().t()
    expected = 1 - logits.softmax(-1).square().sum(-1)
    found = torch.stack(text.uncertainty(table, model.slots[0])(states.__getitem__, 3))
    assert found.min() >= 0
    assert torch.allclose(found.double(), expected, atol=1e-5)


class Killed(Exception):
    pass


@pytest.mark.parametrize("at", [0.05, 0.55, 0.95])
def test_a_killed_run_goes_on_and_ends_the_same(small: Path, quantize: Quantize, tmp_path: Path, at: float) -> None:
    rule = {"match": "*", "bits": 4, "group": 32, "method": "gptq"}
    expected, _ = quantize(small, rule)

    def kill(stage: str, done: int, total: int) -> None:
        if stage == "calibrating" and done > at * total:
            raise Killed

    work = tmp_path / "work"
    with pytest.raises(Killed):
        quantize(small, rule, work=work, progress=kill)
    assert work.is_dir()
    redone: list[int] = []
    found, _ = quantize(small, rule, work=work, progress=lambda stage, done, total: redone.append(done))
    assert (found.path / "model.safetensors").read_bytes() == (expected.path / "model.safetensors").read_bytes()
    if at > 0.5:
        assert redone[0] > 1  # the first layer was kept


def test_progress_counts_every_unit(small: Path, quantize: Quantize) -> None:
    seen: list[tuple[int, int]] = []
    quantize(
        small,
        KEEP,
        {"match": "*", "bits": 4, "method": "gptq"},
        progress=lambda stage, done, total: seen.append((done, total)) if stage == "calibrating" else None,
    )
    total = seen[0][1]
    assert [done for done, _ in seen] == list(range(1, total + 1))


def test_an_overflowing_scale_names_its_tensor(tmp_path: Path, quantize: Quantize) -> None:
    tensors = random_tensors(CONFIG)
    tensors["model.layers.1.mlp.up_proj.weight"][0, 0] = 1e7
    source = save(tmp_path / "huge", tensors)
    with pytest.raises(EdgewrightError, match=r"layers\.1\.mlp\.up_proj.*fp16.*bits: 16"):
        quantize(source, {"match": "*", "bits": 4, "method": "gptq"})


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_activations_beyond_float32_are_an_error_that_names_where(
    method: str, tmp_path: Path, quantize: Quantize
) -> None:
    tensors = random_tensors(CONFIG)
    tensors["model.layers.1.post_attention_layernorm.weight"] *= 1e25
    source = save(tmp_path / "source", tensors)
    keep = {"match": "model.embed_tokens", "bits": 16}
    with pytest.raises(EdgewrightError, match=r"inputs of model\.layers\.1\.mlp\.gate_proj .* too large"):
        quantize(source, keep, {"match": "*", "bits": 4, "group": 32, "method": method})


def test_uncalibrated_methods_need_no_tokenizer(small: Path, quantize: Quantize) -> None:
    (small / "tokenizer.json").unlink()
    _, evidence = quantize(small, {"match": "*", "bits": 4, "method": "mse"})
    assert evidence.calibration is None and evidence.layers == () and len(evidence.tensors) == 15
    with pytest.raises(EdgewrightError, match=r"tokenizer\.json"):
        quantize(small, {"match": "*", "bits": 4, "method": "awq"})
