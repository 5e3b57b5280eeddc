"""The weight file of an ML Program (`weights/weight.bin`), written by streaming.

Layout (coremltools `mlmodel/src/MILBlob/Blob/StorageFormat.hpp`, storage version 2), little-endian: a 64-byte header
(entry count uint32, version uint32, zeros); then for each entry a 64-byte record (sentinel 0xDEADBEEF, data type,
payload bytes uint64, payload offset uint64, padding bits uint64, zeros) and its payload, both at multiples of 64.
A program refers to an entry by the offset of its record. Sub-byte values fill bytes low bits first; padding bits
are the unused high bits of the last byte. Knows no slot, no tensor and no quantization.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from enum import IntEnum
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ALIGN = 64
SENTINEL = 0xDEADBEEF
VERSION = 2
_HEADER = struct.Struct("<II56x")
_RECORD = struct.Struct("<IIQQQ32x")


class BlobType(IntEnum):
    """Data types of entries (`BlobDataType.hpp`) that this project writes."""

    FLOAT16 = 1
    FLOAT32 = 2
    UINT8 = 3
    INT8 = 4
    INT16 = 6
    UINT16 = 7
    INT4 = 8
    UINT4 = 11
    INT32 = 14
    UINT32 = 15


class BlobWriter:
    """Appends entries to a new weight file; `close` writes the header, without which the file is empty."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")
        self._file.write(_HEADER.pack(0, VERSION))
        self._count = 0

    def add(self, kind: BlobType, size: int, blocks: Iterable[NDArray[Any] | bytes], padding_bits: int = 0) -> int:
        """Stream one entry of `size` bytes and return the offset of its record.

        Raises ValueError when the blocks do not add up to `size`.
        """
        self._align()
        record = self._file.tell()
        payload = record + ALIGN
        self._file.write(_RECORD.pack(SENTINEL, kind, size, payload, padding_bits))
        for block in blocks:
            self._file.write(block if isinstance(block, bytes) else np.ascontiguousarray(block).data.cast("B"))
        written = self._file.tell() - payload
        if written != size:
            raise ValueError(f"{written} bytes for an entry of {size}")
        self._count += 1
        return record

    def _align(self) -> None:
        self._file.write(b"\0" * (-self._file.tell() % ALIGN))

    def close(self) -> None:
        """Write the entry count and close the file."""
        self._file.seek(0)
        self._file.write(_HEADER.pack(self._count, VERSION))
        self._file.close()
