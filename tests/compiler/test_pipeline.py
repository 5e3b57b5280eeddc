"""The compiler as one page: plans without weights, quantized weights used again, refusals before a weight is read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from artifacts import EdgewrightError, read_manifest, silent, verify
from compiler import pipeline
from compiler.checkpoint import Checkpoint
from compiler.plan import plan
from compiler.quantize.methods import method_options
from compiler.quantized import Quantized
from compiler.targets import target_options
from recipes.schema import Recipe, recipe_model
from tests.artifacts.conftest import of_schema_1
from tests.compiler.conftest import MINISTRAL3, random_tensors, save


def recipe(*rules: dict[str, Any], targets: dict[str, Any] | None = None, max_tokens: int = 64) -> Recipe:
    return recipe_model(target_options(), method_options()).model_validate(
        {
            "name": "t",
            "checkpoint": {"path": "."},
            "quantize": {"rules": rules or [{"match": "*", "bits": 4, "group": 32}]},
            "context": {"max_tokens": max_tokens},
            "targets": targets or {"onnx": {}},
        }
    )


def quantize(folder: Path, out: Path, used: Recipe) -> Quantized:
    return pipeline.quantize(used, Checkpoint(folder), "test", None, out, silent)


def test_a_plan_needs_the_config_alone() -> None:
    (found,) = plan(recipe(), MINISTRAL3)
    assert found.refused is None
    assert found.state_bytes == 2 * 2 * 2 * 32 * 64 * 4  # key and value, layers, heads, head_dim, tokens, float32
    assert found.weight_bytes < found.file_bytes
    assert [part.component for part in found.components] == ["decoder"]


def test_quantized_weights_are_used_again_until_something_changes(ministral: Path, tmp_path: Path) -> None:
    first = quantize(ministral, tmp_path / "q", recipe())
    stamp = (tmp_path / "q" / "model.safetensors").stat().st_mtime_ns
    again = quantize(ministral, tmp_path / "q", recipe())
    assert (tmp_path / "q" / "model.safetensors").stat().st_mtime_ns == stamp
    assert again.digest == first.digest
    other = quantize(ministral, tmp_path / "q", recipe({"match": "*", "bits": 8, "group": 32}))
    assert other.digest != first.digest
    (tmp_path / "q" / "model.safetensors").write_bytes(b"cut short")
    assert quantize(ministral, tmp_path / "q", recipe()).digest == first.digest


def test_quantized_weights_of_an_older_schema_are_made_anew(ministral: Path, tmp_path: Path) -> None:
    first = quantize(ministral, tmp_path / "q", recipe())
    stamp = (tmp_path / "q" / "model.safetensors").stat().st_ino
    of_schema_1(tmp_path / "q")
    again = quantize(ministral, tmp_path / "q", recipe())
    assert (tmp_path / "q" / "model.safetensors").stat().st_ino != stamp
    assert again.digest == first.digest and verify(tmp_path / "q") == []
    assert [path.name for path in tmp_path.glob("*q*")] == ["q"]


def test_the_manifest_names_every_file_of_the_checkpoint(ministral: Path, tmp_path: Path) -> None:
    quantize(ministral, tmp_path / "q", recipe())
    files = read_manifest(tmp_path / "q").checkpoint.files
    assert [f.path for f in files] == ["config.json", "model.safetensors"]
    assert files[1].size == (ministral / "model.safetensors").stat().st_size


def test_groups_say_what_was_stored(ministral: Path, tmp_path: Path) -> None:
    rules = [{"match": "model.embed_tokens", "bits": 8, "group": 64}, {"match": "*", "bits": 4, "group": 32}]
    groups = quantize(ministral, tmp_path / "q", recipe(*rules)).groups
    found = {(g.bits, g.group, g.tensors) for g in groups}
    assert found == {(8, 64, 1), (4, 32, 14), (16, None, 5)}
    assert sum(g.parameters for g in groups) == sum(t.numel() for t in random_tensors(MINISTRAL3).values())


@pytest.mark.parametrize(
    ("used", "message"),
    [
        (
            recipe({"match": "*", "bits": 4, "group": 32, "symmetric": False}, targets={"tvm": {}}),
            "tvm: model.embed_tokens has zero points",
        ),
        (recipe({"match": "*", "bits": 4, "group": 64}), "'model.layers.0.mlp.down_proj' has 96 columns"),
        (recipe(max_tokens=512), "context.max_tokens is 512, the checkpoint knows 256 positions"),
    ],
)
def test_what_cannot_be_built_is_refused_before_a_weight_is_read(
    ministral: Path, tmp_path: Path, used: Recipe, message: str
) -> None:
    tensors = random_tensors(MINISTRAL3)
    tensors["model.norm.weight"][:] = torch.nan
    save_file(tensors, ministral / "model.safetensors")
    with pytest.raises(EdgewrightError, match=message):
        quantize(ministral, tmp_path / "q", used)
    assert not (tmp_path / "q").exists()


def test_projections_that_rules_tear_apart_are_known(ministral: Path, tmp_path: Path) -> None:
    rules = [{"match": "model.layers.1.*.k_proj", "bits": 8, "group": 32}, {"match": "*", "bits": 4, "group": 32}]
    assert quantize(ministral, tmp_path / "q", recipe(*rules)).unfused == [
        tuple(f"model.layers.1.self_attn.{m}_proj" for m in "qkv")
    ]


def test_weights_that_are_not_finite_leave_nothing_behind(ministral: Path, tmp_path: Path) -> None:
    tensors = random_tensors(MINISTRAL3)
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = torch.inf
    save_file(tensors, ministral / "model.safetensors")
    with pytest.raises(EdgewrightError, match=r"'model.layers.1.mlp.up_proj.weight' has 1 NaN or infinite"):
        quantize(ministral, tmp_path / "q", recipe())
    assert list(tmp_path.iterdir()) == [ministral]


def test_a_shape_that_is_not_the_configs_is_named(tmp_path: Path) -> None:
    folder = save(tmp_path / "m", {**MINISTRAL3, "intermediate_size": 128}, random_tensors(MINISTRAL3))
    with pytest.raises(
        EdgewrightError, match=r"'model.layers.0.mlp.gate_proj.weight' has shape \[96, 64\].*\[128, 64\]"
    ):
        quantize(folder, tmp_path / "q", recipe())


def test_a_wrapped_checkpoint_becomes_a_text_checkpoint(tmp_path: Path) -> None:
    wrapped = {"model_type": "mistral3", "text_config": MINISTRAL3, "vision_config": {}}
    tensors = {f"model.language_model.{k.removeprefix('model.')}": v for k, v in random_tensors(MINISTRAL3).items()}
    quantized = quantize(save(tmp_path / "w", wrapped, tensors), tmp_path / "q", recipe())
    config = json.loads((tmp_path / "q" / "config.json").read_text())
    assert (config["model_type"], config["architectures"]) == ("ministral3", ["Ministral3ForCausalLM"])
    plain = quantize(save(tmp_path / "p", MINISTRAL3, random_tensors(MINISTRAL3)), tmp_path / "q2", recipe())
    name = "model.layers.1.mlp.down_proj"
    np.testing.assert_array_equal(quantized.weights.rows(name), plain.weights.rows(name))


def test_norms_of_a_float32_checkpoint_are_what_every_target_holds(tmp_path: Path) -> None:
    """MLX packages hold float16: norms kept wider in the reference would be another model's."""
    tensors = {name: tensor.float() * 1.0001 for name, tensor in random_tensors(MINISTRAL3).items()}
    source = save(tmp_path / "wide", MINISTRAL3, tensors)
    quantize(source, tmp_path / "quantized", recipe())
    with safe_open(tmp_path / "quantized" / "model.safetensors", "pt") as file:
        norms = {name: file.get_tensor(name) for name in file.keys() if "norm" in name}  # noqa: SIM118  # no mapping
    assert len(norms) == 5 and {norm.dtype for norm in norms.values()} == {torch.float16}
    for name, norm in norms.items():
        torch.testing.assert_close(norm, tensors[name].half(), rtol=0, atol=0)
