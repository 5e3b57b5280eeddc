"""Scales of INT8 caches: as wide as what was looked at, by channel or by tensor."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from compiler.models.base import read_model
from compiler.quantize import kv
from compiler.slots import HALF
from compiler.targets import load_target
from compiler.targets.base import Job
from compiler.targets.onnx.options import OnnxOptions
from tests.bench.synthetic import ROOT
from tests.compiler.conftest import MINISTRAL3
from tests.compiler.targets.onnx.packages import make_job


def test_scales_follow_the_channels(tmp_path: Path) -> None:
    model = read_model(MINISTRAL3, None, 256)
    job = make_job(model, tmp_path / "weights", HALF)
    (decoder,) = model.at(100).components
    ids = np.random.default_rng(0).integers(0, 160, (1, 100))
    inputs = {"input_ids": ids, "positions": np.arange(100)[None]}
    fine, coarse = (
        kv.measure(decoder, decoder.entry("prefill"), job.schemes, job.weights, inputs, granularity)
        for granularity in ("channel", "tensor")
    )
    assert len(fine) == len(coarse) == 2
    for a, b in zip(fine, coarse, strict=True):
        assert a.key.shape == (2 * 32,) and b.key.shape == (1,)
        assert a.key.max() == pytest.approx(b.key[0]) and a.value.max() == pytest.approx(b.value[0])
        assert a.key_snr_db > b.key_snr_db and a.value_snr_db > b.value_snr_db


def test_the_estimate_counts_a_quarter() -> None:
    config = json.loads((ROOT / "recipes/mistral/ministral-3-3b.config.json").read_text())
    model = read_model(config, None, 4096)
    full, small = (
        load_target("onnx").estimate(Job("t", model, {}, OnnxOptions(kv_bits=bits)))[0].state_bytes for bits in (32, 8)
    )
    assert full == 4 * small == 2 * 26 * 1024 * 4096 * 4
