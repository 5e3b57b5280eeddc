"""The text packaging in plain onnxruntime, on inputs that it was not traced with, against the dialect's reference."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch

from artifacts import MANIFEST, silent
from compiler import dialect
from compiler.models.base import Model, read_model
from compiler.slots import HALF, Scheme, Slot
from compiler.targets import load_target
from compiler.targets.base import BuildJob, Job
from compiler.targets.onnx.external import ExternalData
from compiler.targets.onnx.options import OnnxOptions
from compiler.targets.onnx.weights import pack_zero_points
from runtime_tests.drivers.text import Decoder
from runtime_tests.genai import generate
from tests.bench.synthetic import ROOT
from tests.compiler.conftest import MINISTRAL3, packed

from .packages import make_job, opened

TABLE = "model.embed_tokens"
TINY = ROOT / "recipes" / "checkpoints" / "tiny-ministral3"


def ministral(max_tokens: int = 256, **changes: Any) -> Model:
    return read_model({**MINISTRAL3, **changes}, None, max_tokens)


def build(folder: Path, job: BuildJob, **options: Any) -> Path:
    """The package with other options than the job's."""
    folder.mkdir()
    load_target("onnx").build(replace(job, options=OnnxOptions(**options)), folder, silent)
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


def reference(job: BuildJob, ids: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Logits [batch, seq, vocab] of the dialect's own semantics."""
    (decoder,) = job.model.components
    batch, length = ids.shape
    shapes = [state.sized({}) for state in decoder.states]
    caches = [torch.zeros(batch, shape[1], length, shape[3]) for shape in shapes]
    positions = torch.arange(length).expand(batch, length)
    with torch.no_grad(), dialect.weights(job.weights):
        module = decoder.module(decoder.entry("score"), job.schemes)
        return np.asarray(module(torch.from_numpy(ids), positions, *caches)[0])


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
def test_logits_equal_the_reference(tmp_path: Path, name: str, logits: str) -> None:
    """100 tokens: six times the original positions; exact activations."""
    job = make_job(ministral(), tmp_path / "weights", *SCHEMES[name])
    folder = build(tmp_path / "onnx", job, logits=logits, accuracy_level=0)
    ids = np.random.default_rng(5).integers(0, 160, (2, 100))
    found, expected = run(folder, ids)["logits"], reference(job, ids)
    np.testing.assert_allclose(found, expected if logits == "all" else expected[:, -1:], atol=1e-4)


def test_an_untied_head_is_a_matrix_of_its_own(tmp_path: Path) -> None:
    job = make_job(ministral(tie_word_embeddings=False), tmp_path / "weights", Scheme(4, 32))
    folder = build(tmp_path / "onnx", job, logits="all", accuracy_level=0)
    ids = np.random.default_rng(5).integers(0, 160, (1, 20))
    np.testing.assert_allclose(run(folder, ids)["logits"], reference(job, ids), atol=1e-4)
    names = {t.name for t in onnx.load(folder / "model.onnx", load_external_data=False).graph.initializer}
    assert "lm_head.q4" in names and f"{TABLE}.rows" in names and f"{TABLE}.q4" not in names


def test_cached_steps_equal_one_prefill(tmp_path: Path) -> None:
    job = make_job(ministral(), tmp_path / "weights", Scheme(4, 32))
    folder = build(tmp_path / "onnx", job, accuracy_level=0)
    ids = np.random.default_rng(5).integers(0, 160, (1, 60))
    expected = reference(job, ids)[0]
    past: dict[str, Any] = {}
    for start, stop in [(0, 30), (30, 37), *((i, i + 1) for i in range(37, 60))]:
        out = run(folder, ids[:, start:stop], past)
        past = {k.replace("present", "past_key_values"): v for k, v in out.items() if k != "logits"}
        np.testing.assert_allclose(out["logits"][0, 0], expected[stop - 1], atol=1e-4)


def test_one_flipped_nibble_is_seen(tmp_path: Path) -> None:
    folder = build(
        tmp_path / "onnx", make_job(ministral(), tmp_path / "w", Scheme(4, 32)), logits="all", accuracy_level=0
    )
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
    tensors = [
        data.add(at, str(at), ir.DataType.UINT8, [block.size], partial(iter, [block]))
        for at, block in enumerate(blocks)
    ]
    again = data.add(2, "again", ir.DataType.UINT8, [1 << 10, 1 << 10], lambda: iter([]))
    data.close()
    assert [t.offset for t in tensors] == [0, 64, 16384, 16384 + (1 << 20), 2 * 16384 + (1 << 20)]
    assert (again.offset, again.length) == (16384, 1 << 20)
    content = np.fromfile(tmp_path / "data", np.uint8)
    for tensor, block in zip(tensors, blocks, strict=True):
        np.testing.assert_array_equal(content[tensor.offset or 0 :][: block.size], block)


def test_the_graph_is_the_runtimes_own_kernels(tmp_path: Path) -> None:
    """A tied table is stored once, q, k and v are one matrix, and users find the names that they know."""
    folder = build(tmp_path / "onnx", make_job(ministral(), tmp_path / "w", Scheme(4, 32)))
    graph = onnx.load(folder / "model.onnx", load_external_data=False).graph
    places = {t.name: {e.key: e.value for e in t.external_data} for t in graph.initializer if t.external_data}
    assert places[f"{TABLE}.q4"] == places[f"{TABLE}.rows"]
    assert all(int(p["offset"]) % 64 == 0 for p in places.values())
    attention = "model.layers.0.self_attn."
    together = "+".join(f"{attention}{m}_proj" for m in "qkv")
    assert sum(t.name == f"{together}.q4" for t in graph.initializer) == 1
    kinds = [n.op_type for n in graph.node]
    assert {kind: kinds.count(kind) for kind in kinds if kinds.count(kind) > 1 and kind not in ("Cast", "Add")} == {
        "MatMulNBits": 2 * 4 + 1,
        "GroupQueryAttention": 2,
        "SkipSimplifiedLayerNormalization": 4,
        "QuickGelu": 2,
        "Split": 2,
        "Mul": 2 * 2 + 1,
    }
    sizes = {v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in graph.input}
    assert list(sizes)[:3] == ["input_ids", "attention_mask", "position_ids"]
    assert sizes["attention_mask"] == ["batch", "total"] and sizes["input_ids"] == ["batch", "sequence"]
    assert sizes["past_key_values.1.value"] == ["batch", 2, "past", 32]
    results = {v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in graph.output}
    assert results["logits"] == ["batch", 1, 160] and results["present.0.key"] == ["batch", 2, "total", 32]


def test_no_path_of_this_machine_is_in_a_graph(tmp_path: Path) -> None:
    folder = build(tmp_path / "onnx", make_job(ministral(), tmp_path / "w", Scheme(4, 32)))
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    assert b".py" not in (folder / "model.onnx").read_bytes()
    assert (model.producer_name, len(model.graph.value_info)) == ("edgewright", 0)
    assert {(o.domain, o.version) for o in model.opset_import} == {("", 21), ("com.microsoft", 1)}


def test_queries_are_scaled_only_where_it_can_matter(tmp_path: Path) -> None:
    """Within the first 16 positions the scaling is one: no position_ids are asked for."""
    job = make_job(ministral(max_tokens=16), tmp_path / "weights", Scheme(4, 32))
    folder = build(tmp_path / "onnx", job, logits="all", accuracy_level=0)
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    assert "position_ids" not in {v.name for v in session.get_inputs()}
    assert "position_ids" not in json.loads((folder / "genai_config.json").read_text())["model"]["decoder"]["inputs"]
    ids = np.random.default_rng(5).integers(0, 160, (1, 16))
    np.testing.assert_allclose(run(folder, ids)["logits"], reference(job, ids), atol=1e-4)


def test_zero_points_fill_bytes_row_by_row() -> None:
    zeros = np.asarray([[-8, 7, 0]], np.int8)
    np.testing.assert_array_equal(pack_zero_points(zeros, 4), [[0xF0, 0x08]])
    np.testing.assert_array_equal(pack_zero_points(zeros, 8), [[120, 135, 128]])


def test_columns_that_no_group_divides_are_refused_by_name() -> None:
    model = ministral(head_dim=18)  # 4 x 18 columns into o_proj
    schemes = {slot.name: Scheme(4, 0) for slot in model.slots if slot.name.endswith("o_proj")}
    refusals = load_target("onnx").refusals(Job("t", model, schemes, OnnxOptions()))
    assert [text.split(";")[0] for text in refusals] == [
        f"onnx: model.layers.{i}.self_attn.o_proj has 72 columns and one scale per row" for i in (0, 1)
    ]
    assert all("keep it at bits: 16" in text for text in refusals)


@pytest.mark.parametrize("head_dim", [18, 40, 100])
@pytest.mark.parametrize("kv", [{}, {"kv_bits": 8}, {"kv_bits": 8, "kv_scales": "tensor"}], ids=str)
def test_head_sizes_that_the_kernel_has_not_are_filled_up(tmp_path: Path, head_dim: int, kv: dict[str, Any]) -> None:
    """GroupQueryAttention rotates heads of multiples of 16; OpenLLaMA's has 100."""
    job = make_job(ministral(head_dim=head_dim), tmp_path / "weights", HALF, accuracy_level=0, **kv)
    manifest = packed(job, "onnx", tmp_path / "onnx")
    ids = np.random.default_rng(5).integers(0, 160, 60)
    expected = reference(job, ids[None])[0]
    for exact in (True, False):
        decoder = Decoder(opened(tmp_path / "onnx", exact=exact), manifest.components[0], 256)
        found = [decoder.prefill(ids[:30]), *(decoder.decode(int(token)) for token in ids[30:])]
        worst = np.abs(np.stack(found) - expected[29:]).max()
        assert worst <= 1e-4 if exact or not kv else 1e-4 < worst < 0.5


DECODERS: dict[str, dict[str, Any]] = {
    "qwen2": {"head_dim": 16},  # biases, which the kernels add
    "qwen3": {"attention_bias": False},  # norms of queries and keys
    "smollm3": {"no_rope_layers": [1, 0], "attention_bias": False},  # a layer without rotary positions
}


@pytest.mark.parametrize("kind", DECODERS)
def test_other_decoders_are_the_same_kernels_and_genai_continues_them(tmp_path: Path, kind: str) -> None:
    config = {k: v for k, v in MINISTRAL3.items() if k not in ("rope_parameters", "architectures")}
    model = read_model({**config, "model_type": kind, "rope_theta": 10000.0, **DECODERS[kind]}, None, 256)
    job = make_job(model, tmp_path / "weights", Scheme(4, 16))
    manifest = packed(job, "onnx", tmp_path / "onnx")
    ids = np.random.default_rng(5).integers(3, 160, 60)
    decoder = Decoder(opened(tmp_path / "onnx"), manifest.components[0], 256)
    expected = reference(job, ids[None])[0]
    np.testing.assert_allclose(decoder.logits(ids), expected, atol=1e-4)
    rows = [decoder.prefill(ids[:30]), *(decoder.decode(int(token)) for token in ids[30:])]
    np.testing.assert_allclose(np.stack(rows), expected[29:], atol=1e-4)
    nodes = onnx.load(tmp_path / "onnx" / "model.onnx", load_external_data=False).graph.node
    kinds = [node.op_type for node in nodes]
    assert (kinds.count("MatMulNBits"), kinds.count("GroupQueryAttention"), kinds.count("Add")) == (9, 2, 0)
    turning = [a.i for node in nodes for a in node.attribute if a.name == "do_rotary"]
    assert turning == ([1, 0] if kind == "smollm3" else [1, 1])
    plain = Decoder(opened(tmp_path / "onnx", exact=False), manifest.components[0], 256).greedy(ids[:20], 8)
    found = generate(tmp_path / "onnx", None, ids[:20].tolist(), {}, 8)["continuation"]
    assert found == plain[: len(found)] and (len(found) == 8 or found[-1] == 2)


def test_the_estimate_is_what_is_written(tmp_path: Path) -> None:
    job = make_job(ministral(), tmp_path / "weights", Scheme(4, 32), {TABLE: Scheme(8, 64)})
    (estimate,) = load_target("onnx").estimate(job)
    folder = build(tmp_path / "onnx", job)
    tensors = onnx.load(folder / "model.onnx", load_external_data=False).graph.initializer
    data = (folder / "model.onnx.data").stat().st_size
    assert estimate.weight_bytes <= data + 65536
    written = data + sum(len(t.raw_data) for t in tensors)
    assert 0 <= written - estimate.file_bytes <= 64 * len(tensors)
    assert estimate.app_bytes == {"android": estimate.file_bytes, "ios": estimate.file_bytes}
    # key and value, layers, heads, positions, head_dim, float32; a quarter of it as INT8
    assert estimate.state_bytes == 2 * 2 * 2 * 256 * 32 * 4
    (small,) = load_target("onnx").estimate(replace(job, options=OnnxOptions(kv_bits=8)))
    assert small.state_bytes * 4 == estimate.state_bytes
    # the largest call is a prompt of all the context; its logits are those of one position, or of all
    (every,) = load_target("onnx").estimate(replace(job, options=OnnxOptions(logits="all")))
    assert every.activation_bytes - estimate.activation_bytes == 255 * 160 * 4
    # as the kernel packs the tied table and the projections: codes, a scale and a sum for each block
    matrices = [slot for slot in job.model.slots if not slot.is_vector]
    packed_bytes = sum(s.rows * (s.columns * b // 8 + 8 * s.columns // g) for s in matrices for b, g in [_form(job, s)])
    assert estimate.copied_bytes == packed_bytes


def _form(job: BuildJob, slot: Slot) -> tuple[int, int]:
    return job.schemes[slot.name].bits, job.schemes[slot.name].group


def test_an_app_ships_all_but_what_people_read(tmp_path: Path) -> None:
    job = make_job(ministral(), tmp_path / "weights", Scheme(4, 32))
    (job.source / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    runtime = packed(job, "onnx", tmp_path / "onnx").runtime
    files = {path.name: path.stat().st_size for path in (tmp_path / "onnx").iterdir() if path.name != MANIFEST}
    shipped = ["genai_config.json", "model.onnx", "model.onnx.data"]
    assert runtime["payload"] == {"android": shipped, "ios": shipped}
    assert runtime["genai_tokenizer_options"] == {"add_special_tokens": "true"}
    page = (tmp_path / "onnx" / "README.md").read_text()
    assert page.startswith("---\nlicense: apache-2.0\nlibrary_name: onnxruntime-genai\n")
    table = page.partition("## Files")[2].partition("\n## ")[0]
    listed = {name: int(size.replace(",", "")) for name, size in re.findall(r"\| `([^`]+)` \| ([\d,]+) \|", table)}
    assert listed == {name: files[name] for name in shipped}
    for words in ("for 256 tokens of context", "Its BOS token is 1", "an answer: 2.", "no `tokenizer.json`"):
        assert words in page
    for words in ("What was run, and what was not", "com.microsoft", 'update_options(add_special_tokens="true")'):
        assert words in page


def test_the_readme_is_a_program_that_runs(tmp_path: Path) -> None:
    """With the shipped tokenizer, whose vocabulary the model has."""
    job = make_job(ministral(max_tokens=32, vocab_size=4096), tmp_path / "weights", Scheme(4, 32))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(TINY / name, job.source / name)
    folder = build(tmp_path / "onnx", job)
    text = (folder / "README.md").read_text()
    code = text.split("```python\n")[1].split("```")[0].replace("path/to/this/folder", str(folder))
    found: dict[str, Any] = {}
    exec(code, found)
    assert found["generator"].token_count() == 32 or found["generator"].get_next_tokens()[0] == 2
    begin = found["tokenizer"].encode("def main").tolist()
    assert begin[0] == 1 and len(begin) > 1  # the token that begins a text
    for value in onnx.load(folder / "model.onnx", load_external_data=False).graph.input:
        assert f"`{value.name}`" in text or value.name.startswith("past_key_values.")
