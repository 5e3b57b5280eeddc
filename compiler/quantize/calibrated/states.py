"""Values of a graph for the calibration samples, spilled to files; one sample is in memory at a time.

Read and written, not mapped: a full disk is an error then, where a mapped page that finds no room kills the process.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from artifacts import EdgewrightError


class Spill:
    """One value, of `shape` and `dtype`, for each of `count` samples, in a file that `create` makes."""

    def __init__(self, path: Path, count: int, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        self.path = path
        self._shape, self._dtype = shape, dtype
        self._bytes = torch.Size(shape).numel() * dtype.itemsize
        self.size = count * self._bytes

    @property
    def exists(self) -> bool:
        return self.path.is_file() and self.path.stat().st_size == self.size

    def create(self) -> None:
        with self.path.open("wb") as file:
            file.truncate(self.size)

    def read(self, sample: int) -> Tensor:
        value = torch.empty(self._shape, dtype=self._dtype)
        with self.path.open("rb") as file:
            file.seek(sample * self._bytes)
            if file.readinto(_bytes(value)) != self._bytes:
                raise EdgewrightError(f"{self.path}: cut short while it was in use; delete it and start again")
        return value

    def write(self, sample: int, value: Tensor) -> None:
        with self.path.open("r+b") as file:
            file.seek(sample * self._bytes)
            file.write(_bytes(value.contiguous()))

    def delete(self) -> None:
        self.path.unlink(missing_ok=True)


def _bytes(value: Tensor) -> memoryview:
    return value.flatten().view(torch.uint8).numpy().data
