"""What a calibrated run is given, and the table of weights that it turns, slot by slot, into quantized ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from compiler.codes import dequantize
from compiler.graph import Node, slots_of
from compiler.models.base import Component
from compiler.quantize.calibrated.files import PackedMatrix, SegmentFile
from compiler.quantize.calibrated.kinds import Lookup, kind_of
from compiler.quantize.interface import Treatment
from compiler.slots import Slot, Weights
from compiler.tensors import row_blocks

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

BLOCK_BYTES = 1 << 25

Inputs = Sequence[tuple["Tensor", ...]]
"""For each calibration sample the inputs of a module; all samples have the same shapes."""

Weighting = Callable[[Callable[[int], "Tensor"], int], Sequence["Tensor"]]
"""From the inputs of a matrix, [positions, columns] by sample, and how many samples there are: how much each position
counts, [positions] for every sample."""


@dataclass(frozen=True)
class Samples:
    """What one component is calibrated on. module: of edge ops, over `inputs` of a sample."""

    component: Component
    module: torch.nn.Module
    inputs: Inputs
    weightings: Mapping[str, Weighting] = field(default_factory=dict)


@dataclass(frozen=True)
class Task:
    """What to quantize, and how.

    module: of edge ops, without weights, over one sample's inputs. samples: what it is calibrated on.
    cuts: prefixes of slots' names, where the graph is cut, in order.
    slots, table: all slots by name, and their unquantized rows. half_dtypes: in which dtype a folded norm is stored.
    treatments: of the slots to quantize. weightings: of positions, for the matrix of a slot; others weigh them alike.
    """

    module: torch.nn.Module
    samples: Inputs
    cuts: Sequence[str]
    slots: Mapping[str, Slot]
    table: Weights
    half_dtypes: Mapping[str, str]
    treatments: Mapping[str, Treatment]
    weightings: Mapping[str, Weighting] = field(default_factory=dict)

    def rows(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        return torch.from_numpy(self.table.rows(name, start, stop))

    def matrix(self, node: Node) -> Tensor | Lookup:
        """What a node that reads a matrix computes with, unquantized; see `Kind`."""
        return _matrix(self, node, lambda slot: None)


class Quantized:
    """What is quantized so far: of the segment at work in memory, of finished ones in their files."""

    def __init__(self, task: Task, files: Sequence[SegmentFile]) -> None:
        self._task = task
        self._files = {slot: file for file in files if file.done for slot in file.slots()}
        self.matrices: dict[str, PackedMatrix] = {}
        self.norms: dict[str, NDArray[Any]] = {}

    def rows(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        """Of a slot that is no matrix, folded or as it was. Norms are read in the segment that they are folded in."""
        folded = self.norms.get(name)
        return self._task.table.rows(name, start, stop) if folded is None else folded

    def packed(self, name: str) -> PackedMatrix | None:
        """A quantized matrix; None while it is not."""
        if name in self.matrices:
            return self.matrices[name]
        return self._files[name].matrix(name) if name in self._files else None

    def matrix(self, node: Node) -> Tensor | Lookup:
        """What a node that reads a matrix computes with, dequantized where it is quantized; see `Kind`."""
        return _matrix(self._task, node, self.packed)

    def finish(self, file: SegmentFile) -> None:
        """The segment is in its file: memory lets go of it."""
        self._files |= dict.fromkeys(self.matrices, file)
        self.matrices, self.norms = {}, {}


def _matrix(task: Task, node: Node, packed: Callable[[str], PackedMatrix | None]) -> Tensor | Lookup:
    kind, names = kind_of(node), slots_of(node)
    if kind is not None and not kind.dense:
        return _lookup(task, names[0], packed(names[0]))
    rows = [task.slots[name].rows for name in names]
    out = torch.empty(sum(rows), task.slots[names[0]].columns)
    for name, part in zip(names, out.split(rows), strict=True):
        matrix = packed(name)
        for start, stop in row_blocks(len(part), part.shape[1], BLOCK_BYTES):
            if matrix is None:
                part[start:stop] = task.rows(name, start, stop)
            else:
                part[start:stop] = torch.from_numpy(dequantize(matrix.codes(slice(start, stop))))
    return out


def _lookup(task: Task, name: str, matrix: PackedMatrix | None) -> Lookup:
    def rows(numbers: Tensor) -> Tensor:
        if matrix is not None:
            return torch.from_numpy(dequantize(matrix.codes(numbers.numpy())))
        return torch.cat([task.rows(name, int(i), int(i) + 1) for i in numbers])

    return rows
