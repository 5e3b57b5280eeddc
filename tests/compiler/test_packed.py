"""The packed form: bit for bit compressed-tensors' own, and loaded by transformers to the same numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32, unpack_from_int32
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from artifacts import EdgewrightError
from compiler.codes import Codes, dequantize, pack, pack_zeros, unpack, unpack_zeros
from compiler.quantize.methods import rtn
from compiler.quantize.packed import PackedWeights, PackedWriter
from compiler.slots import HALF, Scheme, Slot
from tests.compiler.conftest import MINISTRAL3, Quantizer, reference_logits

SCHEMES = [Scheme(4, 32), Scheme(8, 32), Scheme(4, 16, False), Scheme(8, 0), Scheme(8, 0, False)]


def codes_of(bits: int, rows: st.SearchStrategy[int], columns: st.SearchStrategy[int]) -> st.SearchStrategy[object]:
    half = 1 << (bits - 1)
    return st.tuples(rows, columns).flatmap(lambda s: arrays(np.int8, s, elements=st.integers(-half, half - 1)))


@pytest.mark.parametrize("bits", [4, 8])
@given(data=st.data())
def test_codes_are_packed_as_compressed_tensors_packs_them(bits: int, data: st.DataObject) -> None:
    codes = data.draw(codes_of(bits, st.integers(1, 9), st.integers(1, 50).map(lambda n: n * 8 // bits)))
    packed = pack(codes, bits)
    filled = np.pad(packed, ((0, 0), (0, -packed.shape[1] % 4)))  # as in a file
    np.testing.assert_array_equal(filled.view(np.int32), pack_to_int32(torch.from_numpy(codes), bits).numpy())
    np.testing.assert_array_equal(unpack(packed, bits), codes)


@pytest.mark.parametrize("bits", [4, 8])
@given(data=st.data())
def test_zero_points_are_packed_along_the_rows(bits: int, data: st.DataObject) -> None:
    zeros = data.draw(codes_of(bits, st.integers(1, 40), st.integers(1, 7)))
    words = pack_zeros(zeros, bits)
    expected = pack_to_int32(torch.from_numpy(zeros), bits, packed_dim=0).numpy()
    np.testing.assert_array_equal(words, expected)
    np.testing.assert_array_equal(unpack_zeros(words, bits, len(zeros)), zeros)


def test_rows_that_do_not_fill_bytes_are_refused() -> None:
    with pytest.raises(ValueError, match="rows of 9 codes of 4 bits do not fill bytes"):
        pack(np.zeros((2, 9), np.int8), 4)


def test_rows_of_nine_come_back_and_their_words_end_with_zeros(tmp_path: Path) -> None:
    """As compressed-tensors packs and unpacks them."""
    codes = np.random.default_rng(0).integers(-128, 128, (70000, 9)).astype(np.int8)
    writer = PackedWriter(tmp_path, [slot := Slot("a", "a", 70000, 9, "convolution", (3, 3))], {"a": Scheme(8, 0)}, {})
    scales = np.full((70000, 1), 0.5, np.float32)
    for start, stop in ((0, 40000), (40000, 70000)):
        writer.write("a", start, Codes(codes[start:stop], scales[start:stop]))
    writer.close({})
    found = PackedWeights(tmp_path)
    np.testing.assert_array_equal(found.packed("a", 39999, 40001), pack(codes[39999:40001], 8))
    np.testing.assert_array_equal(found.rows("a"), codes * np.float32(0.5))
    words = load_file(tmp_path / "model.safetensors")["a.weight_packed"]
    torch.testing.assert_close(unpack_from_int32(words, 8, torch.Size((slot.rows, 9))), torch.from_numpy(codes))
    np.testing.assert_array_equal(words.numpy(), pack_to_int32(torch.from_numpy(codes), 8).numpy())


@pytest.mark.parametrize("scheme", SCHEMES)
@given(data=st.data())
def test_rounding_errs_by_at_most_half_a_step(scheme: Scheme, data: st.DataObject) -> None:
    floats = st.floats(-100, 100, width=32)
    rows = torch.from_numpy(data.draw(arrays(np.float32, (3, 64), elements=floats)))
    codes = rtn.quantize(rows, scheme)
    half = 1 << (scheme.bits - 1)
    assert codes.codes.min() >= -half
    assert codes.codes.max() < half
    step = np.abs(codes.scales).repeat(64 // codes.scales.shape[1], 1)
    # the far end of the range loses up to a step (one code fewer on the positive side), and up to half a step more
    # where rounding the zero point moved the range
    error = np.abs(dequantize(codes) - rows.numpy())
    assert (error <= step * 1.01).all()
    inner = np.abs(codes.codes + 0.5) < half - 1
    assert (error[inner] <= step[inner] * 0.501).all()


def test_scales_are_normal_fp16_values() -> None:
    rows = torch.cat([torch.randn(4, 32), torch.randn(4, 32) * 1e-7, torch.zeros(1, 32)])
    for scheme in SCHEMES[:3]:
        scales = rtn.quantize(rows, scheme).scales
        np.testing.assert_array_equal(scales, scales.astype(np.float16).astype(np.float32))
        assert (np.abs(scales) >= 2.0**-14).all()


def test_a_tensor_of_zeros_stays_zero() -> None:
    for scheme in SCHEMES:
        assert not dequantize(rtn.quantize(torch.zeros(8, 32), scheme)).any()


def test_scales_beyond_fp16_are_refused() -> None:
    with pytest.raises(OverflowError, match="does not fit in fp16"):
        rtn.quantize(torch.full((1, 32), 1e7), Scheme(4, 32))


def test_zero_points_shift_codes() -> None:
    codes = Codes(np.asarray([[3, -2]], np.int8), np.asarray([[0.5]], np.float32), np.asarray([[1]], np.int8))
    np.testing.assert_array_equal(dequantize(codes), [[1.0, -1.5]])


@pytest.mark.parametrize("scheme", SCHEMES)
def test_transformers_loads_the_folder_to_the_same_logits(
    ministral: Path, quantized: Quantizer, scheme: Scheme
) -> None:
    model, _, weights = quantized(ministral, scheme)
    theirs = AutoModelForCausalLM.from_pretrained(weights.path, dtype=torch.float32).eval()
    loaded = theirs.state_dict()["model.layers.1.mlp.down_proj.weight"].numpy()
    np.testing.assert_array_equal(loaded, weights.rows("model.layers.1.mlp.down_proj"))
    ids = np.random.default_rng(1).integers(0, MINISTRAL3["vocab_size"], (2, 40))
    with torch.no_grad():
        expected = theirs(torch.from_numpy(ids)).logits.numpy()
    np.testing.assert_allclose(reference_logits(model, weights, ids), expected, atol=2e-5)


def test_transformers_loads_mixed_schemes_when_the_table_is_in_half_precision(
    ministral: Path, quantized: Quantizer
) -> None:
    others = {"model.embed_tokens": HALF, "model.layers.0.mlp.up_proj": Scheme(8, 64)}
    model, _, weights = quantized(ministral, Scheme(4, 32), others)
    theirs = AutoModelForCausalLM.from_pretrained(weights.path, dtype=torch.float32).eval()
    ids = np.random.default_rng(1).integers(0, MINISTRAL3["vocab_size"], (1, 40))
    with torch.no_grad():
        expected = theirs(torch.from_numpy(ids)).logits.numpy()
    np.testing.assert_allclose(reference_logits(model, weights, ids), expected, atol=2e-5)


def test_values_beyond_half_precision_are_refused_by_name(tmp_path: Path) -> None:
    writer = PackedWriter(tmp_path, [Slot("lm_head", "lm_head.weight", 2, 4, "linear")], {}, {"lm_head": "F16"})
    writer.write_half("lm_head", 0, np.full((1, 4), 65504, np.float32))
    with pytest.raises(EdgewrightError, match=r"lm_head\.weight holds values beyond 65504, which fp16 does not"):
        writer.write_half("lm_head", 1, np.full((1, 4), 7e4, np.float32))


def test_blocks_of_rows_are_the_rows(ministral: Path, quantized: Quantizer) -> None:
    for scheme in SCHEMES:
        model, _, weights = quantized(ministral, scheme)
        for slot in model.slots:
            whole = weights.rows(slot.name)
            assert weights.shape(slot.name) == whole.shape
            if not slot.is_vector:
                blocks = [weights.rows(slot.name, r, min(r + 24, slot.rows)) for r in range(0, slot.rows, 24)]
                np.testing.assert_array_equal(np.concatenate(blocks), whole)
