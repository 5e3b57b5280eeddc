"""The tensors of an ONNX graph: which there are, how ONNX Runtime's kernels want them, and each of them once.

Codes and scales stream from the packed checkpoint into the external-data file; what is small stays in the graph.
MatMulNBits and GatherBlockQuantized know groups of 16 to 256 columns: one scale per row, or a larger group, becomes
the largest of them that divides it, with its scale repeated. Knows no node.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto

from compiler.codes import Int8
from compiler.quantize.packed import PackedWeights
from compiler.targets.onnx.external import ExternalData
from compiler.targets.onnx.geometry import block_size
from compiler.tensors import row_blocks

_INLINE_BYTES = 65536


class Initializers:
    """The tensors by name, in the order in which they were asked for first. progress: told of weights written."""

    def __init__(self, weights: PackedWeights, data: ExternalData, progress: Callable[[int], None]) -> None:
        self.made: dict[str, TensorProto] = {}
        self._weights, self._data, self._progress = weights, data, progress

    def constant(self, name: str, value: NDArray[Any]) -> str:
        if name not in self.made:
            self.made[name] = onnx.numpy_helper.from_array(value, name)
        return name

    def floats(self, name: str, value: NDArray[np.float32]) -> str:
        """A float32 tensor: in the graph when small, else in the external-data file."""
        if value.nbytes <= _INLINE_BYTES:
            return self.constant(name, value)
        if name not in self.made:
            self.made[name] = self._data.add(name, TensorProto.FLOAT, list(value.shape), [value])
        return name

    def norm(self, slot: str) -> str:
        return self.floats(slot, self._weights.rows(slot))

    def half(self, name: str, slots: list[str], rows: int, columns: int) -> str:
        """A matrix at 16 bits as float32: ONNX Runtime's CPU kernels would copy half-precision weights to it."""
        if name not in self.made:
            blocks = (block for slot in slots for block in self._blocks(slot, columns, self._weights.rows))
            self.made[name] = self._data.add(name, TensorProto.FLOAT, [rows, columns], blocks)
        return name

    def quantized(
        self, name: str, slots: list[str], rows: int, columns: int, bits: int, group: int, symmetric: bool
    ) -> list[str]:
        """One or more slots, stacked: codes uint8 [rows, blocks, bytes], scales [rows, blocks] and any zero points."""
        packed, scales, zeros = f"{name}.q{bits}", f"{name}.scales", f"{name}.zeros"
        if packed not in self.made:
            weights, size = self._weights, block_size(columns, group)
            assert size is not None, "refused when planning"
            groups, repeated = columns // size, (group or columns) // size
            blocks = (block for slot in slots for block in self._blocks(slot, columns, weights.packed))
            shape = [rows, groups, size * bits // 8]
            self.made[packed] = self._data.add(packed, TensorProto.UINT8, shape, blocks)

            def read(slot: str, start: int, stop: int) -> NDArray[Any]:
                return np.repeat(weights.scales(slot, start, stop), repeated, 1)

            blocks = (block for slot in slots for block in self._blocks(slot, columns, read, count=False))
            self.made[scales] = self._data.add(scales, TensorProto.FLOAT, [rows, groups], blocks)
            if not symmetric:
                points = [pack_zero_points(np.repeat(_zeros(weights, slot), repeated, 1), bits) for slot in slots]
                shape = [rows, points[0].shape[1]]
                self.made[zeros] = self._data.add(zeros, TensorProto.UINT8, shape, points)
        return [packed, scales] if symmetric else [packed, scales, zeros]

    def by_rows(self, name: str, packed: str, rows: int, row_bytes: int) -> str:
        """The codes of `packed` a second time, as [rows, bytes] over the same part of the file."""
        self.made[name] = self._data.alias(name, TensorProto.UINT8, [rows, row_bytes], self.made[packed])
        return name

    def _blocks(
        self, slot: str, columns: int, read: Callable[[str, int, int], NDArray[Any]], count: bool = True
    ) -> Iterator[NDArray[Any]]:
        for start, stop in row_blocks(self._weights.shape(slot)[0], columns):
            yield read(slot, start, stop)
            if count:
                self._progress((stop - start) * columns)


def _zeros(weights: PackedWeights, slot: str) -> Int8:
    zeros = weights.zeros(slot)
    assert zeros is not None
    return zeros


def pack_zero_points(zeros: Int8, bits: int) -> NDArray[np.uint8]:
    """Zero points [rows, groups] in MatMulNBits' layout: offset codes packed along the groups, rows byte-padded."""
    offset = zeros.view(np.uint8) + np.uint8(1 << (bits - 1))
    if bits == 8:
        return offset
    if offset.shape[1] % 2:
        offset = np.pad(offset, ((0, 0), (0, 1)))
    return (offset[:, 0::2] & np.uint8(15)) | (offset[:, 1::2] << np.uint8(4))
