"""Scales of INT8 caches: as wide as what was looked at, by channel or by tensor."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from compiler.models.base import read_model
from compiler.quantize import kv
from compiler.slots import HALF
from tests.compiler.conftest import MINISTRAL3
from tests.compiler.targets.onnx.packages import make_job


def test_scales_follow_the_channels(tmp_path: Path) -> None:
    model = read_model(MINISTRAL3, None, 256)
    job = make_job(model, tmp_path / "weights", HALF)
    (decoder,) = model.components
    ids = np.random.default_rng(0).integers(0, 160, (1, 100))
    inputs = {"input_ids": ids, "positions": np.arange(100)[None]}
    fine, coarse = (
        kv.measure(decoder, decoder.entry("prefill"), job.schemes, job.weights, inputs, 100, granularity)
        for granularity in ("channel", "tensor")
    )
    assert len(fine) == len(coarse) == 2
    for a, b in zip(fine, coarse, strict=True):
        assert a.key.shape == (2 * 32,) and b.key.shape == (1,)
        assert a.key.max() == pytest.approx(b.key[0]) and a.value.max() == pytest.approx(b.value[0])
        assert a.key_snr_db > b.key_snr_db and a.value_snr_db > b.value_snr_db
