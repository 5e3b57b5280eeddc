"""Reading safetensors: what is read is what was written, and what lies is refused by name."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from artifacts import EdgewrightError
from compiler.checkpoint import Checkpoint, listed
from compiler.tensors import CheckpointError, TensorFiles, row_blocks, to_float32
from tests.compiler.conftest import MINISTRAL3, random_tensors, save


def write_raw(path: Path, header: object, data: bytes) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def one(dtype: str, shape: list[int], begin: int, end: int) -> dict[str, object]:
    return {"t": {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_rows_are_the_tensor_in_float32(tmp_path: Path, dtype: torch.dtype) -> None:
    tensor = torch.randn(37, 20).to(dtype)
    checkpoint = Checkpoint(save(tmp_path / "c", MINISTRAL3, {"w": tensor, "v": tensor[0].clone()}))
    np.testing.assert_array_equal(checkpoint.rows("w"), tensor.float().numpy())
    np.testing.assert_array_equal(checkpoint.rows("w", 5, 23), tensor[5:23].float().numpy())
    np.testing.assert_array_equal(checkpoint.rows("v"), tensor[0].float().numpy())


def test_float64_is_read_and_rounded(tmp_path: Path) -> None:
    tensor = torch.randn(37, 20, dtype=torch.float64)
    big = torch.full((2, 2), 1e300, dtype=torch.float64)
    checkpoint = Checkpoint(save(tmp_path / "c", MINISTRAL3, {"w": tensor, "big": big}))
    np.testing.assert_array_equal(checkpoint.rows("w", 5, 23), tensor[5:23].float().numpy())
    assert checkpoint.dtype("w") == "F32"
    with pytest.raises(CheckpointError, match="'big' has 4 NaN or infinite values"):
        checkpoint.rows("big")


@pytest.mark.parametrize("dtype", [torch.int32, torch.float8_e5m2, torch.bool])
def test_weights_of_a_dtype_that_is_none_of_theirs_are_refused_before_they_are_read(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    checkpoint = Checkpoint(save(tmp_path / "c", MINISTRAL3, {"w": torch.ones(4, 4).to(dtype)}))
    with pytest.raises(CheckpointError, match=r"tensor 'w' has dtype \w+; weights are read as BF16"):
        checkpoint.check("w", (4, 4))


def test_what_belongs_to_a_weight_that_is_read_is_not_left_over(tmp_path: Path) -> None:
    names = ["a.0.q.weight", "a.0.q.weight_scale", "a.0.q.input_scale", "a.0.rotary_emb.inv_freq"]
    stray = ["a.1.q.weight", "a.2.q.weight", "b.weight_scale", "a.0.q.bias", "visual.patch"]
    tensors = {name: torch.ones(2) for name in names + stray}
    checkpoint = Checkpoint(save(tmp_path / "c", MINISTRAL3, tensors))
    left = checkpoint.unread(["a.0.q.weight"])
    assert sorted(left) == sorted(stray)
    shown = "'a.*.q.weight' (2), 'b.weight_scale', 'a.0.q.bias', 'visual.patch'"
    assert sorted(listed(left).split(", ")) == sorted(shown.split(", "))
    assert listed(str(n) + "x" for n in range(10)).endswith("'7x' and 2 more")
    assert listed(["\x1b[31m"]) == "'\\x1b[31m'"


def test_every_fp8_code_is_what_torch_reads() -> None:
    codes = torch.arange(256, dtype=torch.uint8)
    expected = codes.view(torch.float8_e4m3fn).float().numpy()
    np.testing.assert_array_equal(to_float32(codes.numpy(), "F8_E4M3"), expected)


@pytest.mark.parametrize(
    ("name", "scale_shape"), [("w_scale_inv", (1,)), ("w_scale", (24, 1)), ("w_scale_inv", (3, 2))]
)
def test_fp8_is_multiplied_by_its_scales(tmp_path: Path, name: str, scale_shape: tuple[int, ...]) -> None:
    weight = torch.randn(24, 16).to(torch.float8_e4m3fn)
    scale = torch.rand(scale_shape) + 0.5
    block = {"weight_block_size": [8, 8]} if scale_shape == (3, 2) else {}
    config = {**MINISTRAL3, "quantization_config": {"quant_method": "fp8", **block}}
    checkpoint = Checkpoint(save(tmp_path / "c", config, {"w": weight, name: scale}))
    full = scale if scale.numel() == 1 else scale.repeat_interleave(24 // scale_shape[0], 0)
    full = full if full.ndim == 1 else full.repeat_interleave(16 // scale_shape[1], 1)
    expected = (weight.float() * full).numpy()
    np.testing.assert_allclose(checkpoint.rows("w"), expected, rtol=1e-6)
    np.testing.assert_allclose(checkpoint.rows("w", 5, 19), expected[5:19], rtol=1e-6)


def test_fp8_without_scales_is_refused(tmp_path: Path) -> None:
    checkpoint = Checkpoint(save(tmp_path / "c", MINISTRAL3, {"w": torch.ones(4, 4).to(torch.float8_e4m3fn)}))
    with pytest.raises(CheckpointError, match="'w' has neither w_scale_inv nor w_scale"):
        checkpoint.rows("w")


@pytest.mark.parametrize(
    ("scale", "block", "message"),
    [
        (torch.ones(3, 2), "8", r"quantization_config\.weight_block_size must be two whole numbers from 1 up, not '8'"),
        (torch.ones(3, 2), [8], "weight_block_size must be two"),
        (torch.ones(3, 2), [0, 8], "weight_block_size must be two"),
        (torch.ones(3, 2), [16, 8], "does not cover"),
        (torch.ones(3, 2, 1), None, "does not cover"),
        (torch.ones(0, 2), None, "does not cover"),
        (torch.ones(3, 2).int(), None, "'w_scale_inv' has dtype I32; a scale is floating"),
    ],
)
def test_fp8_scales_that_do_not_fit_are_refused_before_a_weight_is_read(
    tmp_path: Path, scale: torch.Tensor, block: object, message: str
) -> None:
    tensors = {"w": torch.ones(24, 16).to(torch.float8_e4m3fn), "w_scale_inv": scale}
    config = {**MINISTRAL3, "quantization_config": {"weight_block_size": block}}
    with pytest.raises(CheckpointError, match=message):
        Checkpoint(save(tmp_path / "c", config, tensors)).check("w", (24, 16))


def test_a_quantization_config_that_is_no_object_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"quantization_config must be an object, not \['fp8'\]"):
        Checkpoint(save(tmp_path / "c", {**MINISTRAL3, "quantization_config": ["fp8"]}, {"w": torch.ones(2)}))


def test_shards_are_read_as_one(tmp_path: Path) -> None:
    first, second = torch.randn(4, 8), torch.randn(5, 8)
    save(tmp_path, MINISTRAL3, {"unused": first})
    save_file({"a": first}, tmp_path / "model-00001-of-00002.safetensors")
    save_file({"b": second}, tmp_path / "model-00002-of-00002.safetensors")
    table = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": table}))
    checkpoint = Checkpoint(tmp_path)
    np.testing.assert_array_equal(checkpoint.rows("b"), second.numpy())
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model-00002-of-00002.safetensors: this shard .* is missing"):
        Checkpoint(tmp_path)


@pytest.mark.parametrize("shard", ["../model.safetensors", "/etc/passwd", "pytorch_model.bin", 7, ["a"], "x" * 5000])
def test_an_index_cannot_leave_its_folder(tmp_path: Path, shard: object) -> None:
    save(tmp_path, MINISTRAL3, {"w": torch.ones(2, 2)})
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": shard}}))
    with pytest.raises(CheckpointError, match=r"index.json"):
        Checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        (one("F32", [2], 0, 8), b"\0" * 4, "cut short or damaged"),
        (one("F32", [2], 0, 8), b"\0" * 12, "cut short or damaged"),
        (one("F32", [3], 0, 8), b"\0" * 8, "does not fill its offsets"),
        (one("F32", [2], 4, 12), b"\0" * 12, "overlaps or leaves a hole"),
        (one("F32", [-2], 0, 8), b"\0" * 8, "malformed"),
        (one("F32", [2], 8, 0), b"\0" * 8, "malformed"),
        (one("Q3", [2], 0, 8), b"\0" * 8, "'Q3', which is not supported"),
        ({"t": 3}, b"", "malformed"),
        ([], b"", "header: not a JSON object"),
        (b"{not json", b"", "header: not valid JSON"),
        (b"[" * 50000, b"", "header: not valid JSON: nested deeper"),
        (one("F32", [1] * 17, 0, 4), b"\0" * 4, "malformed"),
        (one("F32", [2**64, 0], 0, 0), b"", "malformed"),
        ({"x" * 600: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, b"\0" * 4, "malformed"),
    ],
)
def test_a_header_that_lies_is_refused(tmp_path: Path, header: object, data: bytes, message: str) -> None:
    path = write_raw(tmp_path / "model.safetensors", header, data)
    with pytest.raises(CheckpointError, match=message):
        TensorFiles([path])


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200), st.integers(0, 2**64 - 1))
def test_no_bytes_make_the_reader_do_anything_but_refuse(
    tmp_path_factory: pytest.TempPathFactory, tail: bytes, length: int
) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "model.safetensors"
    for content in (tail, struct.pack("<Q", length) + tail, struct.pack("<Q", len(tail)) + tail):
        path.write_bytes(content)
        try:
            files = TensorFiles([path])
        except EdgewrightError as error:
            assert str(path) in str(error)
        else:
            assert list(files.names()) == []


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 400), st.integers(1, 400))
def test_truncation_anywhere_is_noticed(tmp_path_factory: pytest.TempPathFactory, keep: int, rows: int) -> None:
    folder = tmp_path_factory.mktemp("cut")
    path = folder / "model.safetensors"
    save_file({"w": torch.ones(rows, 1)}, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: min(keep, len(whole) - 1)])
    with pytest.raises(CheckpointError):
        TensorFiles([path])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_not_finite_are_named(tmp_path: Path, value: float) -> None:
    tensor = torch.ones(4, 4)
    tensor[2, 1] = value
    checkpoint = Checkpoint(save(tmp_path / "c", MINISTRAL3, {"model.layers.0.w": tensor}))
    with pytest.raises(CheckpointError, match=r"'model.layers.0.w' has 1 NaN or infinite values"):
        checkpoint.rows("model.layers.0.w")


def test_a_pickle_is_refused_unread(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(CheckpointError, match=r"pytorch_model.bin, a pickle.*save_pretrained"):
        Checkpoint(tmp_path)


def test_missing_things_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such checkpoint folder"):
        Checkpoint(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"no config.json"):
        Checkpoint(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(EdgewrightError, match=r"config\.json: not valid JSON"):
        Checkpoint(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"neither model.safetensors"):
        Checkpoint(tmp_path)
    checkpoint = Checkpoint(save(tmp_path, MINISTRAL3, random_tensors(MINISTRAL3)))
    with pytest.raises(CheckpointError, match=r"'lm_head.weight' is missing"):
        checkpoint.rows("lm_head.weight")


@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(1, 10**6))
def test_row_blocks_cover_all_rows_once_in_words_of_zero_points(rows: int, columns: int, size: int) -> None:
    blocks = list(row_blocks(rows, columns, size))
    assert [b[0] for b in blocks] == [0, *(b[1] for b in blocks[:-1])]
    assert blocks[-1][1] == rows
    assert all(start % 8 == 0 for start, _ in blocks)


def test_a_file_that_is_cut_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"whole": torch.ones(4, 8), "zcut": torch.ones(4, 8)}, path)
    files = TensorFiles([path])
    with path.open("r+b") as handle:
        handle.truncate(files.info("zcut").start + 33)
    assert files.raw("whole").size == files.raw("zcut", 0, 1).size * 4
    with pytest.raises(CheckpointError, match="cut short while it was read, in tensor 'zcut'"):
        files.raw("zcut", 1)
