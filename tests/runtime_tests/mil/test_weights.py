"""Constants of a program: packed bits, entries of the weight file, and the constexpr operations over them."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from runtime_tests.mil import PackageError, ops
from runtime_tests.mil.blob import KINDS, BlobFile
from runtime_tests.mil.values import LazyTensor, from_bytes, unpack_bits

WIDTHS = {"uint1": 1, "uint2": 2, "uint3": 3, "uint4": 4, "uint6": 6, "int4": 4}


@given(st.sampled_from(sorted(WIDTHS)), st.integers(1, 80), st.integers(0, 2**31))
def test_narrow_values_are_those_that_coremltools_packed(dtype: str, count: int, seed: int) -> None:
    from coremltools.optimize._utils import pack_elements_into_bits

    bits = WIDTHS[dtype]
    low, high = (-8, 8) if dtype == "int4" else (0, 1 << bits)
    values = np.random.default_rng(seed).integers(low, high, count).astype(np.int8 if dtype == "int4" else np.uint8)
    packed = pack_elements_into_bits(values, bits)
    found = from_bytes(np.asarray(packed).view(np.uint8), dtype, count)
    np.testing.assert_array_equal(found.numpy(), values)


@given(hnp.arrays(np.uint8, st.integers(1, 60)))
def test_nibbles_of_both_signs(data: np.ndarray[Any, Any]) -> None:
    unsigned = unpack_bits(data, 4, 2 * data.size, signed=False)
    signed = unpack_bits(data, 4, 2 * data.size, signed=True)
    np.testing.assert_array_equal((signed.astype(int)) % 16, unsigned)
    assert signed.min() >= -8 and signed.max() <= 7


@pytest.fixture
def weight_file(tmp_path: Path) -> Path:
    """One entry of 8 float16 values at offset 64, written by coremltools."""
    from coremltools.libmilstoragepython import _BlobStorageWriter

    path = tmp_path / "weight.bin"
    writer = _BlobStorageWriter(str(path))
    assert writer.write_fp16_data(np.arange(8, dtype=np.float16).view(np.uint16)) == 64
    del writer
    return path


def test_an_entry_is_read(weight_file: Path) -> None:
    data = BlobFile(weight_file).payload(64, "fp16", 8)
    assert from_bytes(data, "fp16", 8).tolist() == list(range(8))


def damage(path: Path, offset: int, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(content)


@pytest.mark.parametrize(
    ("at", "content", "offset", "dtype", "count", "message"),
    [
        (0, b"", 128, "fp16", 8, "not in the file|does not begin"),
        (0, b"", 65, "fp16", 8, "offset was edited"),
        (0, b"", 1 << 40, "fp16", 8, "not in the file"),
        (0, b"", 64, "fp32", 8, "holds type 1"),
        (0, b"", 64, "fp16", 9, "holds 16 bytes"),
        (0, b"", 64, "string", 8, "not kept in weight files"),
        (4, struct.pack("<I", 1), 64, "fp16", 8, "storage version 1"),
        (64, b"\0\0\0\0", 64, "fp16", 8, "does not begin with a record"),
        (80, struct.pack("<Q", 1 << 30), 64, "fp16", 8, "reaches to byte"),
        (80, struct.pack("<Q", 64), 64, "fp16", 8, "cut short or edited"),
        (88, struct.pack("<Q", 4), 64, "fp16", 8, "holds 16 bytes"),
    ],
)
def test_a_damaged_entry_is_reported(
    weight_file: Path, at: int, content: bytes, offset: int, dtype: str, count: int, message: str
) -> None:
    damage(weight_file, at, content)
    with pytest.raises(PackageError, match=message):
        BlobFile(weight_file).payload(offset, dtype, count)


@given(st.integers(0, 143))
def test_a_file_cut_anywhere_is_reported(length: int) -> None:
    import tempfile

    content = struct.pack("<II56x", 1, 2) + struct.pack("<IIQQQ32x", 0xDEADBEEF, 1, 16, 128, 0) + bytes(16)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weight.bin"
        path.write_bytes(content[:length])
        with pytest.raises(PackageError):
            BlobFile(path).payload(64, "fp16", 8)


def test_every_dtype_of_the_storage_format_is_known() -> None:
    assert {kind for kind, _ in KINDS.values()} == {1, 2, 3, 4, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}


def lazy(values: np.ndarray[Any, Any]) -> LazyTensor:
    tensor = torch.from_numpy(values)
    return LazyTensor(tensor.shape, lambda start, stop: tensor[start:stop])


def materialized(operation: str, **inputs: Any) -> np.ndarray[Any, Any]:
    """coremltools' own decompression."""
    import coremltools as ct
    from coremltools.converters.mil import Builder as mb
    from coremltools.converters.mil.mil import Function

    with Function({}, opset_version=ct.target.iOS18):
        return np.asarray(getattr(mb, operation)(**inputs).op.materialized_val_inference())


RNG = np.random.default_rng(5)


@pytest.mark.parametrize("with_offset", [False, True])
@pytest.mark.parametrize("scales", [(6, 4), (6, 1), (3, 2), (1, 1)])
def test_blockwise_shift_scale(scales: tuple[int, int], with_offset: bool) -> None:
    inputs = {
        "data": RNG.integers(-128, 128, (6, 8)).astype(np.int8),
        "scale": RNG.uniform(0.1, 1, scales).astype(np.float32),
    }
    if with_offset:
        inputs["offset"] = RNG.integers(-128, 128, scales).astype(np.int8)
    expected = materialized("constexpr_blockwise_shift_scale", **inputs)
    operation = ops.table()["constexpr_blockwise_shift_scale"]
    whole = operation(**{k: torch.from_numpy(v) for k, v in inputs.items()})
    np.testing.assert_allclose(whole.numpy(), expected, rtol=1e-6)
    later = operation(**{k: lazy(v) for k, v in inputs.items()})
    later = later.tensor() if isinstance(later, LazyTensor) else later
    np.testing.assert_allclose(later.numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("per_axis", [True, False])
def test_affine_dequantize(axis: int, per_axis: bool) -> None:
    data = RNG.integers(-128, 128, (6, 8)).astype(np.int8)
    size = data.shape[axis]
    zero = RNG.integers(-9, 9, size).astype(np.int8) if per_axis else np.int8(3)
    scale = RNG.uniform(0.1, 1, size).astype(np.float32) if per_axis else np.float32(0.3)
    expected = materialized("constexpr_affine_dequantize", quantized_data=data, zero_point=zero, scale=scale, axis=axis)
    operation = ops.table()["constexpr_affine_dequantize"]
    rest = {"zero_point": torch.as_tensor(zero), "scale": torch.as_tensor(scale), "axis": torch.tensor(axis)}
    np.testing.assert_allclose(operation(torch.from_numpy(data), **rest).numpy(), expected, rtol=1e-6)
    np.testing.assert_allclose(operation(lazy(data), **rest).rows(1, 4).numpy(), expected[1:4], rtol=1e-6)


@pytest.mark.parametrize("blocks", [(1, 1), (3, 1), (1, 2)])
def test_palettes(blocks: tuple[int, int]) -> None:
    from coremltools.converters.mil.mil import types

    indices = RNG.integers(0, 16, (6, 8)).astype(np.uint8)
    lut = RNG.uniform(-1, 1, (*blocks, 16, 1)).astype(np.float32)
    typed = indices.astype(types.np_uint4_dtype)
    expected = materialized("constexpr_lut_to_dense", indices=typed, lut=lut)
    found = ops.table()["constexpr_lut_to_dense"](torch.from_numpy(indices), torch.from_numpy(lut))
    np.testing.assert_allclose(found.numpy(), expected)


def test_vector_palettes() -> None:
    from coremltools.converters.mil.mil import types

    indices = RNG.integers(0, 4, (3, 8)).astype(np.uint8)
    lut = RNG.uniform(-1, 1, (1, 1, 4, 2)).astype(np.float32)
    typed = indices.astype(types.np_uint2_dtype)
    expected = materialized("constexpr_lut_to_dense", indices=typed, lut=lut, vector_axis=0)
    found = ops.table()["constexpr_lut_to_dense"](torch.from_numpy(indices), torch.from_numpy(lut), torch.tensor(0))
    np.testing.assert_allclose(found.numpy(), expected)


def test_sparse() -> None:
    from coremltools.converters.mil.mil import types

    mask = RNG.integers(0, 2, (4, 6)).astype(np.uint8)
    values = RNG.uniform(-1, 1, int(mask.sum())).astype(np.float32)
    expected = materialized("constexpr_sparse_to_dense", nonzero_data=values, mask=mask.astype(types.np_uint1_dtype))
    found = ops.table()["constexpr_sparse_to_dense"](torch.from_numpy(values), torch.from_numpy(mask))
    np.testing.assert_allclose(found.numpy(), expected)


def test_cast() -> None:
    half = RNG.uniform(-1, 1, 9).astype(np.float16)
    found = ops.table()["constexpr_cast"](torch.from_numpy(half), "fp32")
    np.testing.assert_array_equal(found.numpy(), half.astype(np.float32))
