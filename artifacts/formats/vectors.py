"""golden.safetensors: name, limits and bytes of the file with which an artifact proves itself.

What lives here: what the compiler, which writes the file, and the runtime tests, which distrust it, have to agree on.
What does not: computing vectors (`compiler/golden.py`) and checking them (`runtime_tests/golden.py`, whose docstring
describes the tensors).

Format: https://huggingface.co/docs/safetensors. Written here and not by that library, which puts metadata in an order
of its own and keeps the file to its owner (mode 0600): two runs must give the same bytes, and others must read them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

GOLDEN = "golden.safetensors"
VERSION = "1"
MAX_BYTES = 5_000_000
TOP = 64
_MOST_FULL = 4
FEWEST_POSITIONS = 1024
_SPARE_POSITIONS = 512  # of a last sequence that begins before FEWEST_POSITIONS and ends after
_HEADER_BYTES = 8192
_POSITION_BYTES = 4 + 2 * (4 + 4 + 8 * TOP)
_DTYPES = {np.dtype(np.float32): "F32", np.dtype(np.int32): "I32"}


@dataclass(frozen=True)
class Room:
    """How much fits: positions with their listed logits, and at how many of them all logits are kept."""

    positions: int
    full: int


def room(vocabulary: int) -> Room:
    """What MAX_BYTES hold for a vocabulary: at least FEWEST_POSITIONS, and full logits as far as room is left.

    A vocabulary below TOP makes a smaller file, not more positions. From 211,765 on fewer than four positions keep
    full logits, beyond 847,056 none does.
    """
    left = MAX_BYTES - _HEADER_BYTES
    full = min(_MOST_FULL, (left - (FEWEST_POSITIONS + _SPARE_POSITIONS) * _POSITION_BYTES) // (4 * vocabulary))
    return Room((left - full * 4 * vocabulary) // _POSITION_BYTES, full)


def write_vectors(path: Path, tensors: Mapping[str, NDArray[Any]], metadata: Mapping[str, str]) -> None:
    """Write float32 and int32 tensors as safetensors whose bytes depend on their content alone.

    Raises ValueError when the file would be larger than its reader takes.
    """
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))}
    blocks, end = [], 0
    for name, tensor in sorted(tensors.items()):
        block = np.ascontiguousarray(tensor)
        header[name] = {
            "dtype": _DTYPES[block.dtype],
            "shape": list(block.shape),
            "data_offsets": [end, end + block.nbytes],
        }
        end += block.nbytes
        blocks.append(block)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    if 8 + len(text) + end > MAX_BYTES:
        raise ValueError(f"{path}: {8 + len(text) + end} bytes of golden vectors, {MAX_BYTES} at most")
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for block in blocks:
            file.write(block.astype(block.dtype.newbyteorder("<"), copy=False).tobytes())
