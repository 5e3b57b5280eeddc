"""Writing the parameter file of a TVM artifact; its layout is that of `artifacts/formats/tvm.py`.

Knows slots only by the names given to it; what the tensors mean to a kernel is `lower.py`'s.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from artifacts.formats.tvm import ALIGN, DIGEST_AT, DIMENSIONS, HEADER, KINDS, MAGIC, PAGE, RECORD
from compiler.targets.tensors import Tensor


def write(path: Path, tensors: list[Tensor]) -> str:
    """Stream the tensors into `path` and return the digest in hex. Raises ValueError when blocks do not fill one."""
    names = b"".join(t.name.encode() + b"\0" for t in tensors)
    offset = -(-(HEADER.size + RECORD.size * len(tensors) + len(names)) // PAGE) * PAGE
    records = []
    for t in tensors:
        shape = [*t.shape, *[0] * DIMENSIONS][:DIMENSIONS]
        records.append(RECORD.pack(offset, t.size, KINDS.index(t.dtype), len(t.shape), *shape, 0))
        offset = -(-(offset + t.size) // ALIGN) * ALIGN
    digest = hashlib.sha256()
    with path.open("wb") as file:
        file.write(HEADER.pack(MAGIC, len(tensors), len(names), bytes(32)))

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
        file.seek(DIGEST_AT)
        file.write(digest.digest())
    return digest.hexdigest()
