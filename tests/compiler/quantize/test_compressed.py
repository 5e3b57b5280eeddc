"""Checkpoints that come quantized: compressed-tensors' own compressors write them, and their codes arrive unchanged."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from safetensors.torch import save_file

from artifacts import EdgewrightError
from compiler.checkpoint import Checkpoint
from compiler.codes import Codes, dequantize
from compiler.quantize.methods import rtn
from compiler.slots import Scheme
from compiler.tensors import CheckpointError
from tests.compiler.conftest import MINISTRAL3, random_tensors

from .conftest import Quantize

SCHEMES = [Scheme(4, 32), Scheme(4, 0, False), Scheme(8, 32), Scheme(8, 0)]


def write(folder: Path, form: str, scheme: Scheme, scale_dtype: torch.dtype = torch.float16) -> dict[str, Codes]:
    """A checkpoint whose linears are quantized, the embedding is not; the codes that it holds."""
    arguments = QuantizationArgs(
        num_bits=scheme.bits,
        type="int",
        symmetric=scheme.symmetric,
        strategy="group" if scheme.group else "channel",
        group_size=scheme.group or None,
    )
    compressor = BaseCompressor.get_value_from_registry(form)
    tensors: dict[str, torch.Tensor] = {}
    expected: dict[str, Codes] = {}
    for name, values in random_tensors(MINISTRAL3).items():
        if values.ndim == 1 or "embed" in name:
            tensors[name] = values
            continue
        codes = rtn.quantize(values.float(), scheme)
        # positive scales: the format's own quantizer takes no others
        codes = Codes(codes.codes, np.abs(codes.scales), codes.zeros)
        values = torch.from_numpy(dequantize(codes))
        state = {"weight": values, "weight_scale": torch.from_numpy(codes.scales)}
        if codes.zeros is not None:
            state["weight_zero_point"] = torch.from_numpy(codes.zeros)
        found = compressor.compress(state, QuantizationScheme(targets=["Linear"], weights=arguments))
        found["weight_scale"] = found["weight_scale"].to(scale_dtype)
        tensors |= {name.removesuffix("weight") + k: v.contiguous() for k, v in found.items() if v is not None}
        expected[name] = codes
    config = {
        **MINISTRAL3,
        "quantization_config": {
            "quant_method": "compressed-tensors",
            "format": form,
            "config_groups": {"group_0": {"targets": ["Linear"], "weights": arguments.model_dump(mode="json")}},
            "ignore": ["lm_head"],
        },
    }
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors")
    return expected


@pytest.mark.parametrize("form", ["pack-quantized", "int-quantized"])
@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_codes_are_read_as_they_are(tmp_path: Path, form: str, scheme: Scheme) -> None:
    expected = write(tmp_path / "c", form, scheme)
    checkpoint = Checkpoint(tmp_path / "c")
    for name, codes in expected.items():
        assert name in checkpoint and checkpoint.shape(name) == codes.codes.shape
        assert checkpoint.compressed.scheme(name) == scheme
        found = checkpoint.compressed.codes(name, 8, 24)
        np.testing.assert_array_equal(found.codes, codes.codes[8:24])
        np.testing.assert_array_equal(found.scales, codes.scales[8:24])
        if codes.zeros is not None:
            assert found.zeros is not None
            np.testing.assert_array_equal(found.zeros, codes.zeros[8:24])
        np.testing.assert_array_equal(checkpoint.rows(name), dequantize(codes))


def test_kept_codes_reach_the_packed_checkpoint(tmp_path: Path, quantize: Quantize) -> None:
    expected = write(tmp_path / "c", "pack-quantized", Scheme(4, 32))
    packed, evidence = quantize(
        tmp_path / "c",
        {"match": "model.embed_tokens", "bits": 8, "group": 32},
        {"match": "*", "bits": 4, "group": 32, "method": "keep"},
    )
    for name, codes in expected.items():
        np.testing.assert_array_equal(packed.rows(name.removesuffix(".weight")), dequantize(codes))
    assert [t.slot for t in evidence.tensors] == ["model.embed_tokens"]
    assert packed.config["quantization_config"]["config_groups"].keys() == {"group_0", "group_1"}


def test_requantizing_and_undoing(tmp_path: Path, quantize: Quantize) -> None:
    expected = write(tmp_path / "c", "int-quantized", Scheme(8, 0))
    packed, _ = quantize(tmp_path / "c", {"match": "*.o_proj", "bits": 16}, {"match": "*", "bits": 4, "group": 16})
    for name, codes in expected.items():
        wrong = np.abs(packed.rows(name.removesuffix(".weight")) - dequantize(codes)).max()
        assert wrong < (2e-3 if "o_proj" in name else 0.06), name


@pytest.mark.parametrize("stored", [Scheme(8, 32), Scheme(4, 16), Scheme(4, 32, False)], ids=str)
def test_a_rule_that_does_not_fit_what_is_stored(tmp_path: Path, quantize: Quantize, stored: Scheme) -> None:
    write(tmp_path / "c", "pack-quantized", stored)
    message = rf"stored with {stored.bits} bits, group {stored.group}, .*bits: {stored.bits}, group: {stored.group}"
    with pytest.raises(EdgewrightError, match=message):
        quantize(
            tmp_path / "c",
            {"match": "model.embed_tokens", "bits": 16},
            {"match": "*", "bits": 4, "group": 32, "method": "keep"},
        )


def test_what_cannot_be_kept(tmp_path: Path, quantize: Quantize) -> None:
    write(tmp_path / "c", "pack-quantized", Scheme(4, 32), torch.float32)
    with pytest.raises(EdgewrightError, match=r"embed_tokens.* is not stored quantized"):
        quantize(tmp_path / "c", {"match": "*", "bits": 4, "group": 32, "method": "keep"})

    from safetensors.torch import load_file

    tensors = load_file(tmp_path / "c" / "model.safetensors")
    name = "model.layers.0.self_attn.q_proj.weight"
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "config.json").write_text((tmp_path / "c" / "config.json").read_text())
    scales = tensors[f"{name}_scale"].clone()
    scales[3, 1] *= 1.0001
    save_file(tensors | {f"{name}_scale": scales}, tmp_path / "odd" / "model.safetensors")
    odd = Checkpoint(tmp_path / "odd")
    with pytest.raises(CheckpointError, match=r"q_proj\.weight_scale.*fp16"):
        odd.compressed.codes(name)
    assert odd.rows(name).shape == odd.shape(name)  # but it can be requantized

    indices = torch.arange(64, dtype=torch.int32)
    save_file(tensors | {f"{name}_g_idx": indices}, tmp_path / "odd" / "model.safetensors")
    with pytest.raises(CheckpointError, match="activation order"):
        Checkpoint(tmp_path / "odd").compressed.scheme(name)


NAME = "model.layers.0.self_attn.q_proj.weight"


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        ("_shape", torch.tensor([128, 64, 1]), "_shape must be two integers"),
        ("_shape", torch.tensor([128.0, 64.0]), "_shape must be two integers"),
        ("_shape", torch.tensor([-128, 64]), r"has shape \[-128, 64\]; a matrix"),
        ("_shape", torch.tensor([128, 0]), "a matrix is expected"),
        ("_shape", torch.tensor([2**40, 64]), "a matrix is expected"),
        ("_scale", torch.ones(128, 3), r"_scale has shape \[128, 3\]"),
        ("_scale", torch.ones(()), r"_scale has shape \[\]"),
        ("_scale", torch.ones(128, 0), r"_scale has shape \[128, 0\]"),
        ("_scale", torch.ones(128, 2).int(), "dtype I32"),
        ("_packed", torch.zeros(128, 3, dtype=torch.int32), "does not hold 128 x 64 codes"),
        ("_packed", torch.zeros(128 * 8, dtype=torch.int32), "does not hold 128 x 64 codes"),
        ("_packed", torch.zeros(128, 8), "dtype F32, which does not hold"),
        ("_zero_point", torch.zeros(128, 2), "_zero_point has shape"),
        ("_zero_point", torch.zeros(3, 2, dtype=torch.int32), "_zero_point has shape"),
    ],
)
def test_parts_of_a_packed_matrix_that_do_not_fit_are_refused_before_a_weight_is_read(
    tmp_path: Path, part: str, value: torch.Tensor, message: str
) -> None:
    from safetensors.torch import load_file

    write(tmp_path / "c", "pack-quantized", Scheme(4, 32))
    tensors = load_file(tmp_path / "c" / "model.safetensors")
    save_file(tensors | {NAME + part: value}, tmp_path / "c" / "model.safetensors")
    with pytest.raises(CheckpointError, match=rf"model\.safetensors: .*q_proj\.weight.*{message}"):
        Checkpoint(tmp_path / "c").check(NAME, (128, 64))


def test_scales_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    write(tmp_path / "c", "pack-quantized", Scheme(4, 32))
    tensors = load_file(tmp_path / "c" / "model.safetensors")
    tensors[NAME + "_scale"][3, 1] = torch.nan
    save_file(tensors, tmp_path / "c" / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"q_proj\.weight' has 32 NaN or infinite values"):
        Checkpoint(tmp_path / "c").rows(NAME)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (None, r"group_0\.weights\.num_bits must be"),
        ("int", r"config_groups\.group_0\.weights must be an object"),
        ({"num_bits": "8"}, r"num_bits must be a whole number from 1 to 16, not '8'"),
    ],
)
def test_a_config_that_does_not_say_how_many_bits(tmp_path: Path, weights: object, message: str) -> None:
    write(tmp_path / "c", "int-quantized", Scheme(8, 0))
    config = json.loads((tmp_path / "c" / "config.json").read_text())
    config["quantization_config"]["config_groups"]["group_0"]["weights"] = weights
    (tmp_path / "c" / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=message):
        Checkpoint(tmp_path / "c").check(NAME, (128, 64))


def test_codes_beyond_their_bits_are_not_kept(tmp_path: Path) -> None:
    write(tmp_path / "c", "int-quantized", Scheme(8, 32))  # codes of 8 bits, under a config that says 4
    config = json.loads((tmp_path / "c" / "config.json").read_text())
    config["quantization_config"]["config_groups"]["group_0"]["weights"]["num_bits"] = 4
    (tmp_path / "c" / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"q_proj\.weight holds codes beyond its bits, -8 to 7"):
        Checkpoint(tmp_path / "c").compressed.codes(NAME)
