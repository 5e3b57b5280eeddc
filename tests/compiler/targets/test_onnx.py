"""The ONNX lowering, run by onnxruntime on inputs that it was not traced with, against the dialect's reference."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from artifacts import silent
from compiler.models import decoder
from compiler.slots import HALF, Scheme
from compiler.targets import load_target
from compiler.targets.base import Job
from compiler.targets.onnx.external import ExternalData
from compiler.targets.onnx.initializers import pack_zero_points
from compiler.targets.onnx.options import OnnxOptions
from runtime_tests.runners.onnx import OnnxRunner
from tests.compiler.conftest import MINISTRAL3, Quantizer, random_tensors, reference_logits, save

TABLE = "model.embed_tokens"


def build(folder: Path, parts: Any, max_tokens: int = 256, **options: Any) -> Path:
    spec, slots, schemes, weights = parts
    folder.mkdir()
    job = Job("t", spec, slots, schemes, max_tokens, weights, folder, OnnxOptions(**options))
    runtime = load_target("onnx").build(job, folder, silent)
    (folder / "runtime.json").write_text(json.dumps(runtime))
    return folder


def run(folder: Path, ids: np.ndarray[Any, Any], past: Mapping[str, Any] | None = None) -> dict[str, Any]:
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    feed: dict[str, Any] = dict(past or {})
    before = 0
    for value in session.get_inputs():
        if value.name.startswith("past"):
            feed.setdefault(value.name, np.zeros((len(ids), value.shape[1], 0, value.shape[3]), np.float32))
            before = feed[value.name].shape[2]
    total = before + ids.shape[1]
    feed |= {"input_ids": ids, "attention_mask": np.ones((len(ids), total), np.int64)}
    if any(v.name == "position_ids" for v in session.get_inputs()):
        feed["position_ids"] = np.broadcast_to(np.arange(before, total), ids.shape).copy()
    names = [v.name for v in session.get_outputs()]
    return dict(zip(names, session.run(names, feed), strict=True))


SCHEMES = {
    "int4": (Scheme(4, 32), {}),
    "int4, asymmetric": (Scheme(4, 32, False), {}),
    "int4, odd number of groups, asymmetric": (Scheme(4, 32, False), {TABLE: HALF}),
    "int8": (Scheme(8, 32), {}),
    "int8, asymmetric": (Scheme(8, 16, False), {}),
    "one scale per row": (Scheme(4, 0), {TABLE: Scheme(8, 0)}),
    "one scale per row, asymmetric": (Scheme(4, 0, False), {TABLE: Scheme(8, 0, False)}),
    "half": (HALF, {}),
    "mixed": (Scheme(4, 32), {TABLE: Scheme(8, 64), "model.layers.1.self_attn.v_proj": Scheme(8, 32)}),
}


@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize("logits", ["all", "last"])
def test_logits_equal_the_reference(
    ministral: Path, quantized: Quantizer, tmp_path: Path, name: str, logits: str
) -> None:
    """100 tokens: six times the original positions; exact activations."""
    parts = quantized(ministral, *SCHEMES[name])
    folder = build(tmp_path / "onnx", parts, logits=logits, accuracy_level=0)
    ids = np.random.default_rng(5).integers(0, 160, (2, 100))
    found = run(folder, ids)["logits"]
    expected = reference_logits(parts[0], parts[3], ids)
    np.testing.assert_allclose(found, expected if logits == "all" else expected[:, -1:], atol=1e-4)


def test_cached_steps_equal_one_prefill(ministral: Path, quantized: Quantizer, tmp_path: Path) -> None:
    parts = quantized(ministral, Scheme(4, 32))
    folder = build(tmp_path / "onnx", parts, accuracy_level=0)
    ids = np.random.default_rng(5).integers(0, 160, (1, 60))
    expected = reference_logits(parts[0], parts[3], ids)[0]
    past: dict[str, Any] = {}
    for start, stop in [(0, 30), (30, 37), *((i, i + 1) for i in range(37, 60))]:
        out = run(folder, ids[:, start:stop], past)
        past = {k.replace("present", "past_key_values"): v for k, v in out.items() if k != "logits"}
        np.testing.assert_allclose(out["logits"][0, 0], expected[stop - 1], atol=1e-4)


def test_one_flipped_nibble_is_seen(ministral: Path, quantized: Quantizer, tmp_path: Path) -> None:
    parts = quantized(ministral, Scheme(4, 32))
    folder = build(tmp_path / "onnx", parts, logits="all", accuracy_level=0)
    ids = np.random.default_rng(5).integers(0, 160, (1, 30))
    before = run(folder, ids)["logits"]
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    tensor = next(t for t in model.graph.initializer if t.name == "model.layers.0.mlp.down_proj.q4")
    offset = next(int(e.value) for e in tensor.external_data if e.key == "offset")
    data = bytearray((folder / "model.onnx.data").read_bytes())
    data[offset + 100] ^= 0x80
    (folder / "model.onnx.data").write_bytes(data)
    assert np.abs(run(folder, ids)["logits"] - before).max() > 1e-3


def test_large_tensors_start_pages_and_small_ones_vector_registers(tmp_path: Path) -> None:
    data = ExternalData(tmp_path / "data")
    blocks = [np.full(count, at, np.uint8) for at, count in enumerate((3, 100, 1 << 20, 5, 1 << 20))]
    tensors = [data.add(str(at), onnx.TensorProto.UINT8, [block.size], [block]) for at, block in enumerate(blocks)]
    data.close()
    places = [{e.key: e.value for e in t.external_data} for t in tensors]
    assert [int(p["offset"]) for p in places] == [0, 64, 16384, 16384 + (1 << 20), 2 * 16384 + (1 << 20)]
    content = np.fromfile(tmp_path / "data", np.uint8)
    for place, block in zip(places, blocks, strict=True):
        np.testing.assert_array_equal(content[int(place["offset"]) :][: block.size], block)


def test_a_tied_table_is_stored_once(ministral: Path, quantized: Quantizer, tmp_path: Path) -> None:
    parts = quantized(ministral, Scheme(4, 32))
    folder = build(tmp_path / "onnx", parts)
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    places = {t.name: {e.key: e.value for e in t.external_data} for t in model.graph.initializer if t.external_data}
    assert places[f"{TABLE}.q4"] == places[f"{TABLE}.rows"]
    assert all(int(p["offset"]) % 64 == 0 for p in places.values())
    assert (
        sum(
            t.name.endswith("q_proj+model.layers.0.self_attn.k_proj+model.layers.0.self_attn.v_proj.q4")
            for t in model.graph.initializer
        )
        == 1
    )
    kinds = [n.op_type for n in model.graph.node]
    assert kinds.count("MatMulNBits") == 2 * 4 + 1
    assert kinds.count("GroupQueryAttention") == 2
    assert kinds.count("SkipSimplifiedLayerNormalization") == 4


def test_queries_are_scaled_only_where_it_can_matter(ministral: Path, quantized: Quantizer, tmp_path: Path) -> None:
    """Within the first 16 positions the scaling is one: no position_ids are asked for."""
    parts = quantized(ministral, Scheme(4, 32))
    folder = build(tmp_path / "onnx", parts, max_tokens=16, logits="all", accuracy_level=0)
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    assert "position_ids" not in {v.name for v in session.get_inputs()}
    ids = np.random.default_rng(5).integers(0, 160, (1, 16))
    np.testing.assert_allclose(run(folder, ids)["logits"], reference_logits(parts[0], parts[3], ids), atol=1e-4)


def test_zero_points_fill_bytes_row_by_row() -> None:
    zeros = np.asarray([[-8, 7, 0]], np.int8)
    np.testing.assert_array_equal(pack_zero_points(zeros, 4), [[0xF0, 0x08]])
    np.testing.assert_array_equal(pack_zero_points(zeros, 8), [[120, 135, 128]])


def test_columns_that_no_group_divides_are_refused_by_name() -> None:
    spec = decoder.read_spec({**MINISTRAL3, "head_dim": 18})  # 4 x 18 columns into o_proj
    slots = decoder.slots(spec)
    schemes = {s.name: Scheme(4, 0) for s in slots if s.name.endswith("o_proj")}
    refusals = load_target("onnx").refusals(spec, slots, schemes, OnnxOptions())
    assert [text.split(";")[0] for text in refusals] == [
        f"onnx: model.layers.{i}.self_attn.o_proj has 72 columns and one scale per row" for i in (0, 1)
    ]
    assert all("keep it at bits: 16" in text for text in refusals)


@pytest.mark.parametrize("head_dim", [18, 40, 100])
@pytest.mark.parametrize("kv", [{}, {"kv_bits": 8}, {"kv_bits": 8, "kv_scales": "tensor"}], ids=str)
def test_head_sizes_that_the_kernel_has_not_are_filled_up(
    tmp_path: Path, quantized: Quantizer, head_dim: int, kv: dict[str, Any]
) -> None:
    """GroupQueryAttention rotates heads of multiples of 16; OpenLLaMA's has 100."""
    config = {**MINISTRAL3, "head_dim": head_dim}
    parts = quantized(save(tmp_path / "source", config, random_tensors(config)), HALF)
    folder = build(tmp_path / "onnx", parts, accuracy_level=0, **kv)
    runner = OnnxRunner(folder, json.loads((folder / "runtime.json").read_text()))
    ids = np.random.default_rng(5).integers(0, 160, 60)
    expected = reference_logits(parts[0], parts[3], ids[None])[0]
    for exact in (True, False):
        runner.load(exact=exact)
        found = [runner.prefill(ids[:30]), *(runner.decode(int(token)) for token in ids[30:])]
        worst = np.abs(np.stack(found) - expected[29:]).max()
        assert worst <= 1e-4 if exact or not kv else 1e-4 < worst < 0.5


def test_the_estimate_is_what_is_written(ministral: Path, quantized: Quantizer, tmp_path: Path) -> None:
    parts = quantized(ministral, Scheme(4, 32), {TABLE: Scheme(8, 64)})
    folder = build(tmp_path / "onnx", parts)
    estimate = load_target("onnx").estimate(*parts[:3], 256, OnnxOptions())
    tensors = onnx.load(folder / "model.onnx", load_external_data=False).graph.initializer
    data = (folder / "model.onnx.data").stat().st_size
    assert estimate.weight_bytes <= data + 65536
    written = data + sum(len(t.raw_data) for t in tensors)
    assert 0 <= written - estimate.file_bytes <= 64 * len(tensors)
    assert estimate.app_bytes == {"android": estimate.file_bytes, "ios": estimate.file_bytes}
