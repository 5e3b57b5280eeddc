"""MLX packages: the same bytes, read by mlx-lm as its own, and refused before work where MLX cannot hold them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from artifacts import EdgewrightError
from compiler.models.base import read_model
from compiler.quantize.methods import mlx_affine
from compiler.slots import HALF, Scheme
from compiler.targets import load_target, target_options
from compiler.targets.base import BuildJob, Job
from compiler.targets.mlx import shards
from compiler.targets.mlx.options import MlxOptions
from compiler.tensors import read_header
from tests.compiler.conftest import MINISTRAL3, Jobs, packed, random_tensors, save

TABLE = "model.embed_tokens"
TARGET = load_target("mlx")
WRAPPED = {
    "architectures": ["Mistral3ForConditionalGeneration"],
    "model_type": "mistral3",
    "text_config": MINISTRAL3,
    "vision_config": {"model_type": "pixtral"},
}


def build(folder: Path, job: BuildJob) -> Path:
    packed(job, "mlx", folder)
    return folder


def plan(config: dict[str, Any], scheme: Scheme = HALF, columns: int = 0, **options: Any) -> Job:
    """A job without weights: all slots of a scheme, or those of so many columns and the others at 16 bits."""
    model = read_model({**MINISTRAL3, **config}, None, 256)
    schemes = {s.name: scheme for s in model.slots if not s.is_vector and columns in (0, s.columns)}
    return Job("t", model, schemes, MlxOptions(**options))


def converted(source: Path, folder: Path, bits: int | None = None, group: int = 32) -> Path:
    """What `mlx_lm.convert --dtype float16` makes of a checkpoint without a tokenizer, by its own functions."""
    from mlx.utils import tree_map
    from mlx_lm.utils import load_model, quantize_model, save_config, save_model

    model, config = load_model(source)
    model.update(tree_map(lambda p: p.astype(mx.float16), model.parameters()))
    if bits is not None:
        model, config = quantize_model(model, config, group, bits)
    save_model(folder, model)
    save_config(config, folder / "config.json")
    return folder


def tensors(folder: Path) -> dict[str, mx.array]:
    found: dict[str, mx.array] = {}
    for file in sorted(folder.glob("model*.safetensors")):
        found |= mx.load(str(file))
    return found


def dequantized(found: Mapping[str, mx.array], name: str, scheme: Scheme) -> np.ndarray[Any, Any]:
    if scheme.bits == 16:
        return np.array(found[f"{name}.weight"].astype(mx.float32))
    words, *parts = (found[f"{name}.weight"], *(found[f"{name}.{p}"].astype(mx.float32) for p in ("scales", "biases")))
    group = words.shape[1] * 32 // scheme.bits // parts[0].shape[1]
    return np.array(mx.dequantize(words, *parts, group_size=group, bits=scheme.bits))


@pytest.mark.parametrize(
    "scheme", [Scheme(4, 32), Scheme(4, 64), Scheme(4, 0), Scheme(8, 0), Scheme(8, 32), HALF], ids=str
)
def test_mlx_dequantizes_to_the_shared_weights(ministral: Path, jobs: Jobs, tmp_path: Path, scheme: Scheme) -> None:
    """Exactly: scales are float16 values already and 8 or 128 times one is another. One scale per row is repeated."""
    others = {f"model.layers.{i}.mlp.down_proj": Scheme(scheme.bits, 32) for i in (0, 1) if scheme.bits != 16}
    job = jobs(ministral, MlxOptions(), scheme, others, max_tokens=256)
    found = tensors(build(tmp_path / "mlx", job))
    weights = job.weights
    for slot in job.model.slots:
        if slot.is_vector:
            np.testing.assert_array_equal(np.array(found[f"{slot.name}.weight"]), weights.rows(slot.name))
        else:
            own = dequantized(found, slot.name, job.schemes[slot.name])
            np.testing.assert_array_equal(own, weights.rows(slot.name).astype(np.float16 if scheme.bits == 16 else "f"))
    assert {a.dtype for n, a in found.items() if not n.endswith(".weight")} <= {mx.float16}
    (estimate,) = TARGET.estimate(job)
    assert estimate.file_bytes == sum(array.nbytes for array in found.values())
    assert estimate.app_bytes == {"ios": estimate.file_bytes}, "MLX has no runtime for Android"


@pytest.mark.parametrize("bits", [4, 8])
def test_asymmetric_weights_differ_by_the_rounding_of_a_float16_bias(
    ministral: Path, jobs: Jobs, tmp_path: Path, bits: int
) -> None:
    job = jobs(ministral, MlxOptions(), Scheme(bits, 32, symmetric=False), max_tokens=256)
    found = tensors(build(tmp_path / "mlx", job))
    for slot in job.model.slots:
        if not slot.is_vector:
            own, shared = dequantized(found, slot.name, Scheme(bits, 32)), job.weights.rows(slot.name)
            largest = np.abs(shared).reshape(len(shared), -1, 32).max(-1).repeat(32, -1)
            assert (np.abs(own - shared) <= largest * 2.0**-10).all()


@pytest.mark.parametrize("config", [MINISTRAL3, WRAPPED], ids=["plain", "wrapped"])
@pytest.mark.parametrize("bits", [None, 4])
def test_the_layout_is_that_of_mlx_lm_convert(
    tmp_path: Path, jobs: Jobs, config: dict[str, Any], bits: int | None
) -> None:
    weights = random_tensors(MINISTRAL3)
    if config is WRAPPED:
        weights = {f"language_model.{name}": tensor for name, tensor in weights.items()}
    source = save(tmp_path / "source", config, weights)
    job = jobs(source, MlxOptions(), HALF if bits is None else Scheme(bits, 32), max_tokens=256)
    ours, theirs = build(tmp_path / "mlx", job), converted(source, tmp_path / "theirs", bits)
    for reader in (lambda f: {n: (a.shape, a.dtype) for n, a in tensors(f).items()}, _index):
        assert reader(ours) == reader(theirs)
    own, other = (json.loads((folder / "config.json").read_text()) for folder in (ours, theirs))
    assert set(other) - set(own) == set(), "every key that mlx-lm writes"
    assert own.get("quantization") == other.get("quantization")
    assert own["model_type"] == other["model_type"] and "vision_config" not in own


def _index(folder: Path) -> Any:
    return json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]


@pytest.fixture
def anchored(ministral: Path, jobs: Jobs) -> BuildJob:
    """The checkpoint quantized by MLX's own rule at 4 bits."""
    scheme = Scheme(4, 32, symmetric=False)
    return jobs(ministral, MlxOptions(), scheme, max_tokens=256, quantize=mlx_affine.quantize)


def test_edge_anchored_weights_equal_those_of_mlx_lm_convert_bit_by_bit(
    ministral: Path, tmp_path: Path, anchored: BuildJob
) -> None:
    ours = tensors(build(tmp_path / "mlx", anchored))
    theirs = tensors(converted(ministral, tmp_path / "theirs", 4))
    assert ours.keys() == theirs.keys()
    for name, array in theirs.items():
        assert array.dtype == ours[name].dtype, name
        np.testing.assert_array_equal(np.array(ours[name]), np.array(array), err_msg=name)


def groups(draw: Any) -> np.ndarray[Any, Any]:
    """Rows of 64 bfloat16 values of any spread, offset, and with groups that do not reach zero."""
    seed, spread = draw(st.integers(0, 2**32 - 1)), draw(st.sampled_from([0.01, 0.1, 1.0, 50.0]))
    values = np.random.default_rng(seed).standard_normal((4, 64)).astype(np.float32) * np.float32(spread)
    values += np.float32(draw(st.sampled_from([0.0, 0.5, -0.5])) * spread)
    if draw(st.booleans()):
        values[0, :32] = 0
    return shards.bfloat16(values)


@settings(max_examples=60)
@given(data=st.data())
def test_the_edge_rule_is_mlx_quantize(data: Any) -> None:
    import torch

    rows = groups(data.draw)
    codes = mlx_affine.quantize(torch.from_numpy(rows), Scheme(4, 32, symmetric=False))
    words, scales, biases = mx.quantize(mx.array(rows).astype(mx.float16), group_size=32, bits=4)
    wanted = np.array(words).view(np.uint8)
    unsigned = np.stack([wanted & 15, wanted >> 4], -1).reshape(4, 64)
    for row in range(4):
        for group in range(2):
            part = slice(group * 32, group * 32 + 32)
            if not rows[row, part].any() or rows[row, part].min() > 0 or rows[row, part].max() < 0:
                continue
            np.testing.assert_array_equal(codes.codes[row, part] + 8, unsigned[row, part])
            if abs(codes.scales[row, group]) > 2.0**-14:
                assert np.float16(codes.scales[row, group]) == np.array(scales)[row, group]
                zero = np.float32(codes.zeros[row, group] + 8)  # type: ignore[index]
                restored = shards.bfloat16(np.float32([-codes.scales[row, group] * zero]))[0]
                assert restored == float(np.array(biases)[row, group])


def test_groups_that_do_not_reach_zero_are_widened_to_it() -> None:
    import torch

    rows = torch.linspace(5, 6, 64)[None]
    codes = mlx_affine.quantize(rows, Scheme(4, 64, symmetric=False))
    values = (codes.codes - codes.zeros[..., None].reshape(1, 1)) * codes.scales  # type: ignore[index]
    assert np.abs(values - rows.numpy()).max() <= 0.5 * 6 / 15 + 1e-3


def test_edge_anchoring_refuses_symmetric_rules() -> None:
    import torch

    with pytest.raises(EdgewrightError, match="symmetric: false"):
        mlx_affine.quantize(torch.ones(1, 32), Scheme(4, 32))


def test_shards_hold_the_same_and_are_aligned(
    ministral: Path, jobs: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = jobs(ministral, MlxOptions(), Scheme(4, 32), max_tokens=256)
    whole = tensors(build(tmp_path / "whole", job))
    folder = tmp_path / "shards"
    folder.mkdir()
    written = 0

    def advance(count: int) -> None:
        nonlocal written
        written += count

    shards.write_shards(shards.package_tensors(job.model.slots, job.weights), folder, 1, advance, limit=20_000)
    files = sorted(folder.glob("model-*-of-*.safetensors"))
    assert len(files) > 2 and all(f.stat().st_size < 24_000 for f in files)
    assert written == sum(a.nbytes for a in whole.values())
    split = tensors(folder)
    assert split.keys() == whole.keys() == _index(folder).keys()
    for name, array in whole.items():
        assert np.array_equal(np.array(array), np.array(split[name])), name
    for file in files:
        for name, info in read_header(file).items():  # the strict reader of our own checkpoints
            assert info.start % (4 if info.dtype == "U32" else 2) == 0, name


def test_a_scale_beyond_float16_names_the_tensor(
    ministral: Path, jobs: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = jobs(ministral, MlxOptions(), Scheme(8, 32), max_tokens=256)
    monkeypatch.setattr(job.weights, "scales", lambda name, a, b: np.full((b - a, 2), 600, np.float32))
    with pytest.raises(EdgewrightError, match=r"mlx: model\.embed_tokens needs 76800, float16 ends at 65504"):
        build(tmp_path / "mlx", job)


@pytest.mark.parametrize(
    ("scheme", "columns", "message"),
    [
        (Scheme(4, 16), 64, "MLX has no groups of 16, only groups of 32, 64 and 128; use group: 32"),
        (Scheme(8, 0), 48, "48 columns divide into none of MLX's groups of 32, 64 or 128; keep it at bits: 16"),
        (Scheme(4, 128), 64, "groups of 128 do not divide 64 columns; use group: 64"),
        (Scheme(4, 32), 40, "40 columns divide into none of MLX's groups of 32, 64 or 128; keep it at bits: 16"),
        (Scheme(3, 32), 64, "3 bits cannot be lowered to MLX; use 4"),
    ],
)
def test_what_mlx_has_not_is_refused_with_the_nearest_choice(scheme: Scheme, columns: int, message: str) -> None:
    job = plan({"hidden_size": columns}, scheme, columns)
    (found,) = TARGET.refusals(job)
    names = list(job.schemes)
    assert found == f"mlx: {', '.join(names[:3])} and {len(names) - 3} more: {message}"


def test_a_quantized_cache_needs_a_head_that_divides() -> None:
    (found,) = TARGET.refusals(plan({"head_dim": 48}, kv_bits=8))
    assert found == "mlx: kv_bits 8 needs a head_dim that 32 divides, this model's is 48; use kv_bits: 16"


def test_the_estimate_counts_a_quantized_cache() -> None:
    full, quarter = (TARGET.estimate(plan({}, kv_bits=bits))[0].state_bytes for bits in (16, 4))
    assert full == 2 * 2 * 2 * 32 * 256 * 2 and quarter == full // 4 + full // 2 // 32 * 4


def test_the_card_says_what_each_loader_needs(ministral: Path, jobs: Jobs, tmp_path: Path) -> None:
    job = jobs(ministral, MlxOptions(), Scheme(4, 32), {TABLE: Scheme(8, 32)}, max_tokens=256)
    plain = (build(tmp_path / "plain", job) / "README.md").read_text()
    assert "license: unknown\nlibrary_name: mlx\npipeline_tag: text-generation\n" in plain
    assert "tags:\n- mlx\n- edgewright\n- 4-bit\n- 8-bit\n" in plain and "base_model" not in plain
    assert "mlx-swift-lm does not load this package as it is" in plain and 'registerModelType("ministral3")' in plain

    (ministral / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    source = tmp_path / "wrapped"
    source.mkdir()
    (source / "config.json").write_text(json.dumps(WRAPPED))
    manifest = {
        "schema_version": 2,
        "created_by": {},
        "recipe": {"name": "t", "digest": "0" * 64},
        "target": "checkpoint",
        "family": "decoder",
        "checkpoint": {"source": "mistralai/Ministral-3-3B-Instruct-2512-BF16", "revision": "a" * 40},
        "files": [],
        "quantization": [],
        "runtime": {},
        "figures": [],
        "weights_digest": "0" * 64,
    }
    (job.weights.path / "edgewright.json").write_text(json.dumps(manifest))
    published = (build(tmp_path / "published", replace(job, source=source)) / "README.md").read_text()
    assert "base_model: mistralai/Ministral-3-3B-Instruct-2512-BF16\nbase_model_relation: quantized\n" in published
    assert f"at commit `{'a' * 40}`" in published
    assert "`Mistral3TextModel`" in published and "does not load" not in published
    config = json.loads((tmp_path / "published" / "config.json").read_text())
    eight = {"group_size": 32, "bits": 8, "mode": "affine"}
    names = [TABLE, f"language_model.{TABLE}"]
    assert {k: v for k, v in config["quantization"].items() if k in names} == dict.fromkeys(names, eight)


def test_options_are_discovered() -> None:
    assert target_options()["mlx"] is MlxOptions
