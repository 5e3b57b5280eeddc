"""INT8 caches: scales as measured, what onnxruntime makes of them, and the exact mode without them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from artifacts import silent
from compiler.checkpoint import Checkpoint
from compiler.models import decoder
from compiler.quantize import kv
from compiler.targets import load_target
from compiler.targets.base import Job
from compiler.targets.onnx.options import OnnxOptions
from runtime_tests.runners.onnx import OnnxRunner

from .conftest import Quantize


def package(source: Path, out: Path, weights: Any, **options: Any) -> Path:
    checkpoint = Checkpoint(source)
    spec = decoder.read_spec(checkpoint.config)
    slots = decoder.slots(spec, list(checkpoint.tensors.names()))
    out.mkdir()
    job = Job("t", spec, slots, weights.schemes, 64, weights, source, OnnxOptions(**options))
    runtime = load_target("onnx").build(job, out, silent)
    (out / "runtime.json").write_text(json.dumps(runtime))
    return out


def runner(folder: Path, *, exact: bool = False) -> OnnxRunner:
    found = OnnxRunner(folder, json.loads((folder / "runtime.json").read_text()))
    found.load(exact=exact)
    return found


@pytest.mark.parametrize("granularity", ["channel", "tensor"])
def test_an_int8_cache_is_close_and_exact_mode_has_none(
    small: Path, quantize: Quantize, tmp_path: Path, granularity: str
) -> None:
    weights, _ = quantize(small, {"match": "*", "bits": 8, "group": 32})
    plain = package(small, tmp_path / "plain", weights, accuracy_level=0, logits="all")
    cached = package(
        small, tmp_path / "cached", weights, accuracy_level=0, logits="all", kv_bits=8, kv_scales=granularity
    )
    types = {
        v.type.tensor_type.elem_type
        for v in onnx.load(cached / "model.onnx", load_external_data=False).graph.input
        if v.name.startswith("past")
    }
    assert types == {onnx.TensorProto.INT8}
    ids = np.random.default_rng(0).integers(16, 4000, 40)
    expected = runner(plain).logits(ids)
    found = runner(cached)
    wrong = np.abs(found.logits(ids) - expected).max()
    assert 1e-4 < wrong < 0.1 * np.abs(expected).max()
    np.testing.assert_allclose(runner(cached, exact=True).logits(ids), expected, atol=1e-5)
    # token by token over the cache that the prefill left
    found.prefill(ids[:30])
    steps = np.stack([found.decode(int(token)) for token in ids[30:]])
    assert np.abs(steps - expected[30:]).max() < 0.1 * np.abs(expected).max()
    errors = json.loads((cached / "runtime.json").read_text())["kv_error"]
    assert errors["scales"] == granularity and errors["worst_key_snr_db"] > 25 and errors["worst_value_snr_db"] > 25


def test_scales_follow_the_channels(small: Path, quantize: Quantize) -> None:
    weights, _ = quantize(small, {"match": "*", "bits": 16})
    spec = decoder.read_spec(Checkpoint(small).config)
    fine = kv.measure(spec, {}, weights, small, "channel")
    coarse = kv.measure(spec, {}, weights, small, "tensor")
    assert len(fine) == spec.layers
    for a, b in zip(fine, coarse, strict=True):
        assert a.key.shape == (spec.kv_width,) and b.key.shape == (1,)
        assert a.key.max() == pytest.approx(b.key[0]) and a.value.max() == pytest.approx(b.value[0])
        assert a.key_snr_db > b.key_snr_db and a.value_snr_db > b.value_snr_db


def test_the_estimate_counts_a_quarter() -> None:
    config = json.loads((Path(__file__).parents[3] / "recipes/mistral/ministral-3-3b.config.json").read_text())
    spec = decoder.read_spec(config)
    slots = decoder.slots(spec)
    full, small = (
        load_target("onnx").estimate(spec, slots, {}, 4096, OnnxOptions(kv_bits=bits)).kv_bytes for bits in (32, 8)
    )
    assert full == 4 * small == 2 * 26 * 1024 * 4096 * 4
