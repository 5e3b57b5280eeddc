"""Tensors to be written, and the row blocks of slots that fill them: shared by the four containers.

A container writes `Tensor`s in an order of its own and streams their blocks, so that one row block is in memory at a
time. Knows no file format and no target.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compiler.codes import Int8
from compiler.quantize.packed import PackedWeights
from compiler.slots import Slot
from compiler.tensors import row_blocks

Blocks = Callable[[], Iterator[NDArray[Any]]]
"""Gives a tensor's rows in order, each call from the start."""


@dataclass(frozen=True)
class Tensor:
    """A tensor to come. dtype: numpy's name of an item."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    blocks: Blocks

    @property
    def size(self) -> int:
        """Bytes."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


class SlotReader:
    """Row blocks of one or more slots of equal columns and scheme, one slot's rows after another's.

    progress: called with the number of weights of every block of codes or values that was read.
    """

    def __init__(self, weights: PackedWeights, progress: Callable[[int], None] = lambda count: None) -> None:
        self.weights = weights
        self._progress = progress

    def codes(self, slots: Sequence[Slot]) -> Blocks:
        """Packed codes, uint8 [rows, columns * bits / 8]."""
        return self._blocks(slots, self.weights.packed, counts=True)

    def scales(self, slots: Sequence[Slot]) -> Blocks:
        """Float32 [rows, groups]."""
        return self._blocks(slots, self.weights.scales, counts=False)

    def values(self, slots: Sequence[Slot]) -> Blocks:
        """Float32 [rows, columns] of slots at 16 bits, [columns] of vectors."""
        return self._blocks(slots, self.weights.rows, counts=True)

    def zeros(self, slots: Sequence[Slot]) -> Int8 | None:
        """Zero points of all rows, int8 [rows, groups]; None where symmetric."""
        found = [self.weights.zeros(slot.name) for slot in slots]
        kept = [zeros for zeros in found if zeros is not None]
        return np.concatenate(kept) if kept else None

    def _blocks(self, slots: Sequence[Slot], read: Callable[..., NDArray[Any]], counts: bool) -> Blocks:
        def blocks() -> Iterator[NDArray[Any]]:
            for slot in slots:
                if slot.is_vector:
                    yield read(slot.name)
                    continue
                for start, stop in row_blocks(slot.rows, slot.columns):
                    yield read(slot.name, start, stop)
                    if counts:
                        self._progress((stop - start) * slot.columns)

        return blocks
