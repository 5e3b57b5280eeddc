"""INT8 caches: what onnxruntime makes of measured scales, and the exact mode without them."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from artifacts import read_manifest
from compiler.models.base import read_model
from compiler.quantize import kv
from compiler.slots import Scheme
from runtime_tests.drivers.text import Decoder
from tests.bench.synthetic import ROOT
from tests.compiler.conftest import MINISTRAL3, packed

from .packages import make_job, opened

TINY = ROOT / "recipes" / "checkpoints" / "tiny-ministral3"


@pytest.mark.parametrize("granularity", ["channel", "tensor"])
def test_an_int8_cache_is_close_and_exact_mode_has_none(tmp_path: Path, granularity: str) -> None:
    model = read_model(MINISTRAL3 | {"vocab_size": 4096}, None, 64)  # the vocabulary of the shipped tokenizer
    packages = {}
    for bits in (32, 8):
        options: dict[str, Any] = {"kv_bits": bits, "kv_scales": granularity, "accuracy_level": 0, "logits": "all"}
        job = make_job(model, tmp_path / f"weights-{bits}", Scheme(8, 32), **options)
        shutil.copyfile(TINY / "tokenizer.json", job.source / "tokenizer.json")
        packages[bits] = tmp_path / str(bits)
        packed(job, "onnx", packages[bits])
    graph = onnx.load(packages[8] / "model.onnx", load_external_data=False).graph
    caches = [v for v in (*graph.input, *graph.output) if v.name.startswith(("past", "present"))]
    assert {v.type.tensor_type.elem_type for v in caches} == {onnx.TensorProto.INT8} and len(caches) == 8
    ids = np.random.default_rng(0).integers(16, 4000, 40)

    def decoder(bits: int, exact: bool = False) -> Decoder:
        return Decoder(opened(packages[bits], exact=exact), read_manifest(packages[bits]).components[0], 64)

    expected = decoder(32).logits(ids)
    found = decoder(8)
    wrong = np.abs(found.logits(ids) - expected).max()
    assert 1e-4 < wrong < 0.1 * np.abs(expected).max()
    np.testing.assert_allclose(decoder(8, exact=True).logits(ids), expected, atol=1e-5)
    # token by token over the cache that the prefill left
    found.prefill(ids[:30])
    steps = np.stack([found.decode(int(token)) for token in ids[30:]])
    assert np.abs(steps - expected[30:]).max() < 0.1 * np.abs(expected).max()
    errors: Any = read_manifest(packages[8]).runtime["kv_error"]
    assert errors["scales"] == granularity
    assert errors["worst_key_snr_db"] > 25 and errors["worst_value_snr_db"] > 25
    assert read_manifest(packages[32]).runtime["kv_error"] is None


def test_scales_are_measured_on_the_recipes_calibration_text(tmp_path: Path) -> None:
    """Its first tokens, as one sequence."""
    model = read_model(MINISTRAL3, None, 64)
    job = make_job(model, tmp_path / "weights", Scheme(8, 32), kv_bits=8)
    ids = np.random.default_rng(7).integers(0, 40, (3, 100), np.int32)  # 300 tokens; the checkpoint knows 256 positions
    (decoder,) = model.at(256).components
    inputs = {"input_ids": ids.reshape(1, -1)[:, :256].astype(np.int64), "positions": np.arange(256)[None]}
    prefill = decoder.entry("prefill")
    expected = kv.measure(decoder, prefill, job.schemes, job.weights, inputs, "channel")
    scales = {}
    for name, tokens in (("given", ids), ("none", None)):
        packed(replace(job, calibration=tokens), "onnx", tmp_path / name)
        graph = onnx.load(tmp_path / name / "model.onnx").graph
        found = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
        scales[name] = [found[f"attention_{at}.{kind}_scale"] for at in (0, 1) for kind in ("key", "value")]
    np.testing.assert_array_equal(scales["given"], [scale for layer in expected for scale in (layer.key, layer.value)])
    assert not np.array_equal(scales["given"], scales["none"])
