"""The weight file is, byte for byte, what coremltools' own storage writer makes, and its reader reads it."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compiler.targets.coreml.blob import BlobType, BlobWriter

WRITERS = {
    BlobType.FLOAT16: ("write_fp16_data", np.uint16),
    BlobType.FLOAT32: ("write_float_data", np.float32),
    BlobType.UINT8: ("write_uint8_data", np.uint8),
    BlobType.INT8: ("write_int8_data", np.int8),
    BlobType.INT16: ("write_int16_data", np.int16),
    BlobType.UINT16: ("write_uint16_data", np.uint16),
    BlobType.INT4: ("write_int4_data", np.int8),
    BlobType.UINT4: ("write_uint4_data", np.uint8),
    BlobType.INT32: ("write_int32_data", np.int32),
    BlobType.UINT32: ("write_uint32_data", np.uint32),
}


def nibbles(values: np.ndarray[Any, Any]) -> bytes:
    padded = np.append(values, np.zeros(values.size % 2, values.dtype)).view(np.uint8) & 15
    return bytes(padded[0::2] | padded[1::2] << 4)


entries = st.lists(st.tuples(st.sampled_from(sorted(WRITERS)), st.integers(1, 300), st.integers(0, 2**32)), max_size=12)


@given(entries)
def test_bytes_and_offsets_equal_those_of_coremltools(content: list[tuple[BlobType, int, int]]) -> None:
    from coremltools.libmilstoragepython import _BlobStorageReader, _BlobStorageWriter

    with tempfile.TemporaryDirectory() as folder:
        official, own = Path(folder) / "official.bin", Path(folder) / "own.bin"
        theirs = _BlobStorageWriter(str(official))
        ours = BlobWriter(own)
        written = []
        for kind, count, seed in content:
            name, dtype = WRITERS[kind]
            low, high = (-8, 8) if kind is BlobType.INT4 else (0, 16) if kind is BlobType.UINT4 else (0, 120)
            values = np.random.default_rng(seed).integers(low, high, count).astype(dtype)
            narrow = kind in (BlobType.INT4, BlobType.UINT4)
            raw = nibbles(values) if narrow else values.tobytes()
            cut = len(raw) // 2
            offset = ours.add(kind, len(raw), [raw[:cut], raw[cut:]], padding_bits=4 * (count % 2) if narrow else 0)
            assert offset == getattr(theirs, name)(values)
            written.append((name.replace("write", "read"), offset, values))
        del theirs
        ours.close()
        assert own.read_bytes() == official.read_bytes()
        reader = _BlobStorageReader(str(own))
        for name, offset, values in written:
            np.testing.assert_array_equal(np.asarray(getattr(reader, name)(offset)), values)


def test_an_entry_of_another_size_than_announced_is_refused(tmp_path: Path) -> None:
    writer = BlobWriter(tmp_path / "weight.bin")
    with pytest.raises(ValueError, match="3 bytes for an entry of 4"):
        writer.add(BlobType.INT8, 4, [b"abc"])
