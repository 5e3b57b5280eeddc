"""The external-data file of an ONNX model: tensors streamed in, large ones page-aligned, none held in memory."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

from compiler.targets.tensors import Blocks

# A large tensor starts on a page of its own (16 KiB covers new Android and iOS), so that nothing else is read or kept
# with it. ONNX Runtime maps a tensor from any offset; the threshold is that of onnx.save's align_threshold.
_ALIGN, _LARGE_BYTES = 16384, 1 << 20
# what kernels load by: the widest vector register
_SMALL_ALIGN = 64


class ExternalData:
    """Appends tensors to one file and gives the initializers that point at them."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("wb")
        self._places: dict[Hashable, int] = {}

    def add(
        self, key: Hashable, name: str, dtype: ir.DataType, shape: Sequence[int], blocks: Blocks
    ) -> ir.ExternalTensor:
        """Stream `blocks` (in order, C-contiguous) as the tensor's bytes; those added before under `key` are given
        again, under any shape of the same size.

        Raises ValueError when they do not fill dtype and shape.
        """
        size = -(-math.prod(shape) * dtype.bitwidth // 8)
        if key not in self._places:
            self._file.write(b"\0" * (-self._file.tell() % (_ALIGN if size >= _LARGE_BYTES else _SMALL_ALIGN)))
            self._places[key] = offset = self._file.tell()
            for block in blocks():
                self._file.write(np.ascontiguousarray(block).data.cast("B"))
            if (length := self._file.tell() - offset) != size:
                raise ValueError(f"{name}: {length} bytes for {list(shape)} of {dtype.bitwidth}-bit items")
        return ir.ExternalTensor(self._path.name, self._places[key], size, dtype, shape=ir.Shape(shape), name=name)

    def flush(self) -> None:
        """For who reads the file before it is closed."""
        self._file.flush()

    def close(self) -> None:
        self._file.close()
