"""Hidden states of the calibration set, spilled to memory-mapped files; one sequence is in memory at a time."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor


class Spill:
    """Float32 states of `shape`, [sequences, length, width], in a file. Pages are unmapped after every access."""

    def __init__(self, path: Path, shape: tuple[int, int, int]) -> None:
        sequences, length, width = shape
        self.path = path
        self._shape = (length, width)
        self.size = sequences * length * width * 4
        if not path.exists() or path.stat().st_size != self.size:
            with path.open("wb") as file:
                file.truncate(self.size)

    def _map(self, sequence: int) -> np.memmap[tuple[int, ...], np.dtype[np.float32]]:
        offset = sequence * self._shape[0] * self._shape[1] * 4
        return np.memmap(self.path, np.float32, "r+", offset, self._shape)

    def read(self, sequence: int) -> Tensor:
        """A copy of one sequence, [1, length, width]."""
        import torch

        return torch.from_numpy(np.array(self._map(sequence)))[None]

    def write(self, sequence: int, states: Tensor) -> None:
        """Store [1, length, width]."""
        self._map(sequence)[:] = states[0].numpy()

    def delete(self) -> None:
        self.path.unlink(missing_ok=True)
