"""Reading the weight file of an ML Program, trusting nothing in it.

The layout is coremltools' `MILBlob/Blob/StorageFormat.hpp`: a 64-byte header (count, version 2) and entries of a
64-byte record (sentinel, data type, payload bytes, payload offset, padding bits) and a payload, both 64-byte aligned.
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from runtime_tests.mil import PackageError

_ALIGN = 64
_SENTINEL = 0xDEADBEEF
_HEADER = struct.Struct("<II56x")
_RECORD = struct.Struct("<IIQQQ32x")
# MIL data type -> (type in the file, bits of one value)
KINDS = {
    "fp16": (1, 16),
    "fp32": (2, 32),
    "uint8": (3, 8),
    "int8": (4, 8),
    "int16": (6, 16),
    "uint16": (7, 16),
    "int4": (8, 4),
    "uint1": (9, 1),
    "uint2": (10, 2),
    "uint4": (11, 4),
    "uint3": (12, 3),
    "uint6": (13, 6),
    "int32": (14, 32),
    "uint32": (15, 32),
}


class BlobFile:
    """A memory-mapped weight file; `payload` gives the checked bytes of one entry."""

    def __init__(self, path: Path) -> None:
        self.path = path
        size = path.stat().st_size
        if size < _HEADER.size:
            raise PackageError(f"{path}: {size} bytes, too short for a weight file")
        self._data: NDArray[np.uint8] = np.memmap(path, np.uint8, "r")
        self.count, version = _HEADER.unpack(self._data[: _HEADER.size].tobytes())
        if version != 2:
            raise PackageError(f"{path}: storage version {version}; 2 is what this executor reads")

    def payload(self, offset: int, dtype: str, count: int) -> NDArray[np.uint8]:
        """The bytes of the entry whose record is at `offset`, which must hold `count` values of a MIL dtype.

        Raises PackageError when the record is not there, says otherwise, or reaches beyond the file.
        """
        where = f"{self.path}: the weight at offset {offset}"
        size = self._data.size
        if offset % _ALIGN or not _HEADER.size <= offset <= size - _RECORD.size:
            raise PackageError(f"{where} is not in the file of {size} bytes: it is cut short, or an offset was edited")
        sentinel, kind, length, start, padding = _RECORD.unpack(self._data[offset : offset + _RECORD.size].tobytes())
        if sentinel != _SENTINEL:
            raise PackageError(f"{where} does not begin with a record: an offset or the file was edited")
        if dtype not in KINDS:
            raise PackageError(f"{where}: values of {dtype} are not kept in weight files")
        expected, bits = KINDS[dtype]
        if kind != expected:
            raise PackageError(f"{where} holds type {kind}; the program expects {dtype} (type {expected})")
        if length != -(-count * bits // 8) or padding != length * 8 - count * bits:
            raise PackageError(f"{where} holds {length} bytes; {count} values of {dtype} are {-(-count * bits // 8)}")
        if start % _ALIGN or start < offset + _ALIGN or start + length > size:
            raise PackageError(f"{where} reaches to byte {start + length} of {size}: the file is cut short or edited")
        return self._data[start : start + length]
