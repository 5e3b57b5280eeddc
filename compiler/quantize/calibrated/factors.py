"""Factors between the channels of a segment's values: what is divided by them, and what takes them up.

Found from the unquantized stream before anything of the segment is quantized; nothing changes in the checkpoint.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from compiler.graph import Node, slots_of
from compiler.quantize.calibrated.folding import Place, place_of
from compiler.quantize.calibrated.segments import Point, Program, Segment
from compiler.quantize.calibrated.task import Quantized, Task
from compiler.tensors import from_float32, to_float32

if TYPE_CHECKING:
    from torch import Tensor


class Factors:
    """Of one segment. columns: by which the columns are multiplied of what reads a value. rows: by which those of a
    slot are divided. Divided norms are in `quantized`."""

    def __init__(self, task: Task, program: Program, segment: Segment, quantized: Quantized) -> None:
        self._task, self._program, self._segment, self._quantized = task, program, segment, quantized
        self.columns: dict[Node, Tensor] = {}
        self.rows: dict[str, Tensor] = {}

    def place(self, point: Point) -> Place | None:
        """Where factors for a point's inputs go, if all of its methods search some and each slot is read once."""
        names = [slot for op in point.ops for slot in slots_of(op)]
        treated = [self._task.treatments.get(slot) for slot in names]
        if any(treatment is None or treatment.folding is None for treatment in treated):
            return None
        found = place_of(point.value, point.ops)
        if found is None or any(len(self._program.readers[slot]) > 1 for slot in (found.slot, *names)):
            return None
        if not found.norm and found.slot not in self._task.treatments:
            return None  # a rescaled matrix that is not quantized here would have to be rounded again
        return found if self._program.segment_of(found.node) is self._segment else None

    def search(self, point: Point, hessian: Tensor) -> None:
        """Search the factors of a point that has a place for them, and note where they go."""
        treated = [(slot, self._task.treatments[slot]) for slot in point.slots]
        place, search = self.place(point), treated[0][1].folding
        assert place is not None and search is not None
        rows, channels = place.rows.unique(return_inverse=True)
        factors = search([(self._task.rows(slot), treatment.scheme) for slot, treatment in treated], hessian, channels)
        if place.norm:
            factors = self._divide_norm(place.slot, rows, factors)
        else:
            divided = self.rows.setdefault(place.slot, torch.ones(self._task.slots[place.slot].rows))
            divided[rows] *= factors
        self.columns[point.value] = factors[channels]

    def _divide_norm(self, slot: str, rows: Tensor, factors: Tensor) -> Tensor:
        """The divided norm is rounded to its dtype first, and the factors follow it: the fold stays exact."""
        norm, dtype = torch.from_numpy(self._quantized.rows(slot).copy()), self._task.half_dtypes[slot]
        old = norm[rows]
        new = torch.from_numpy(to_float32(from_float32((old / factors).numpy(), dtype).view(np.uint8), dtype))
        factors = torch.where((old == 0) | (new == 0), 1.0, old / new)
        norm[rows] = torch.where(factors == 1, old, new)
        self._quantized.norms[slot] = norm.numpy()
        return factors
