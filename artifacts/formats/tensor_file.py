"""Safetensors files of our own that others compare by digest.

Format: https://huggingface.co/docs/safetensors. Written here and not by that library, which puts metadata in an order
of its own and keeps the file to its owner (mode 0600): two runs must give the same bytes, and others must read them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_DTYPES = {"float32": "F32", "int16": "I16", "int32": "I32", "int64": "I64", "uint8": "U8"}


def write_tensors(
    path: Path, tensors: Mapping[str, NDArray[Any]], metadata: Mapping[str, str], most_bytes: int
) -> None:
    """Write tensors as safetensors whose bytes depend on their content alone.

    Raises ValueError when the file would be larger than its reader takes.
    """
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))}
    blocks, end = [], 0
    for name, tensor in sorted(tensors.items()):
        block = np.ascontiguousarray(tensor)
        header[name] = {
            "dtype": _DTYPES[block.dtype.name],
            "shape": list(block.shape),
            "data_offsets": [end, end + block.nbytes],
        }
        end += block.nbytes
        blocks.append(block)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    if 8 + len(text) + end > most_bytes:
        raise ValueError(f"{path}: {8 + len(text) + end} bytes, {most_bytes} at most")
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for block in blocks:
            file.write(block.astype(block.dtype.newbyteorder("<"), copy=False).tobytes())
