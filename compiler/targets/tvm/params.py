"""The parameter file of a TVM artifact: every tensor of the model, aligned, for mapping into memory as it is.

Layout, little-endian (the C++ loader `native/edgewright.cc` and the Python runner read the same):

    0   magic  8 bytes  "EDGEPAR1"
    8   u32 tensors, u32 bytes of names
    16  sha256 of everything after the header, 32 bytes: the digest that the library repeats
    48  zeros to 64
    64  a record of 64 bytes per tensor: u64 offset in file, u64 bytes, u32 kind, u32 dimensions, u64 shape[4], u64 0
        then the names in order, each ended by a zero byte; then zeros to a page
        then the tensors, each at a multiple of 64 bytes

Kinds: see `KINDS`. The order of tensors is the order in which the library's functions take them.
Knows slots only by the names given to it; what the tensors mean to a kernel is `lower.py`'s.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAGIC = b"EDGEPAR1"
KINDS = ("uint8", "float16", "float32", "uint16")
ALIGN = 64
PAGE = 16384
_HEADER = struct.Struct("<8sII32s16x")
_RECORD = struct.Struct("<QQIIQQQQQ")
_DIGEST_AT = 16


@dataclass(frozen=True)
class Tensor:
    """One parameter: its name, dtype (of KINDS) and shape, and its rows, streamed."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    blocks: Callable[[], Iterable[NDArray[Any]]]

    @property
    def size(self) -> int:
        """Bytes."""
        return int(np.prod(self.shape)) * np.dtype(self.dtype).itemsize


def write(path: Path, tensors: list[Tensor]) -> str:
    """Stream the tensors into `path` and return the digest in hex. Raises ValueError when blocks do not fill one."""
    names = b"".join(t.name.encode() + b"\0" for t in tensors)
    offset = -(-(_HEADER.size + _RECORD.size * len(tensors) + len(names)) // PAGE) * PAGE
    records = []
    for t in tensors:
        shape = [*t.shape, 0, 0, 0, 0][:4]
        records.append(_RECORD.pack(offset, t.size, KINDS.index(t.dtype), len(t.shape), *shape, 0))
        offset = -(-(offset + t.size) // ALIGN) * ALIGN
    digest = hashlib.sha256()
    with path.open("wb") as file:
        file.write(_HEADER.pack(MAGIC, len(tensors), len(names), bytes(32)))

        def put(data: bytes | memoryview) -> None:
            file.write(data)
            digest.update(data)

        put(b"".join(records) + names)
        put(bytes(-file.tell() % PAGE))
        for t in tensors:
            begin = file.tell()
            for block in t.blocks():
                put(np.ascontiguousarray(block, t.dtype).data.cast("B"))
            if file.tell() - begin != t.size:
                raise ValueError(f"{t.name}: {file.tell() - begin} bytes for {t.dtype} {list(t.shape)}")
            put(bytes(-file.tell() % ALIGN))
        file.seek(_DIGEST_AT)
        file.write(digest.digest())
    return digest.hexdigest()
