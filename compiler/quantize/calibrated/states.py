"""Hidden states of the calibration set, spilled to files; one sequence is in memory at a time.

Read and written, not mapped: a full disk is an error then, where a mapped page that finds no room kills the process.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from artifacts import EdgewrightError

if TYPE_CHECKING:
    from torch import Tensor


class Spill:
    """Float32 states of `shape`, [sequences, length, width], in a file."""

    def __init__(self, path: Path, shape: tuple[int, int, int]) -> None:
        sequences, length, width = shape
        self.path = path
        self._shape = (length, width)
        self.size = sequences * length * width * 4
        if not path.exists() or path.stat().st_size != self.size:
            with path.open("wb") as file:
                file.truncate(self.size)

    def read(self, sequence: int) -> Tensor:
        """One sequence, [1, length, width]."""
        import torch

        states = np.empty(self._shape, np.float32)
        with self.path.open("rb") as file:
            file.seek(sequence * states.nbytes)
            if file.readinto(states.data.cast("B")) != states.nbytes:
                raise EdgewrightError(f"{self.path}: cut short while it was in use; delete it and start again")
        return torch.from_numpy(states)[None]

    def write(self, sequence: int, states: Tensor) -> None:
        """Store [1, length, width]."""
        array = np.ascontiguousarray(states[0].numpy(), np.float32)
        with self.path.open("r+b") as file:
            file.seek(sequence * array.nbytes)
            file.write(array.data)

    def delete(self) -> None:
        self.path.unlink(missing_ok=True)
