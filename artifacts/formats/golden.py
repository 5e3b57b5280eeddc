"""golden.safetensors: name, limits and bytes of the file with which an artifact proves itself.

What lives here: what the compiler, which writes the file, and the runtime tests, which distrust it, have to agree on.
What does not: computing vectors (`compiler/golden.py`) and checking them (`runtime_tests/golden.py`, whose docstring
describes the tensors).
"""

from __future__ import annotations

from dataclasses import dataclass

GOLDEN = "golden.safetensors"
RANDOM = "random token ids (the checkpoint has no tokenizer)"
VERSION = "1"
MAX_BYTES = 5_000_000
TOP = 64
_MOST_FULL = 4
FEWEST_POSITIONS = 1024
_SPARE_POSITIONS = 512  # of a last sequence that begins before FEWEST_POSITIONS and ends after
_HEADER_BYTES = 8192
_POSITION_BYTES = 4 + 2 * (4 + 4 + 8 * TOP)


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
