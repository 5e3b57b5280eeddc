"""The external-data file of an ONNX model: tensors streamed in, large ones page-aligned, none held in memory."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto

# A large tensor starts on a page of its own (16 KiB covers new Android and iOS), so that nothing else is read or kept
# with it. ONNX Runtime maps a tensor from any offset; the threshold is that of onnx.save's align_threshold.
_ALIGN, _LARGE_BYTES = 16384, 1 << 20
# what kernels load by: the widest vector register
_SMALL_ALIGN = 64


class ExternalData:
    """Appends tensors to one file and gives the TensorProtos that point at them."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("wb")

    def add(self, name: str, dtype: int, shape: list[int], blocks: Iterable[NDArray[Any]]) -> TensorProto:
        """Stream `blocks` (in order, C-contiguous) as the tensor's bytes.

        Raises ValueError when they do not fill dtype and shape.
        """
        itemsize = onnx.helper.tensor_dtype_to_np_dtype(dtype).itemsize
        expected = int(np.prod(shape)) * itemsize
        align = _ALIGN if expected >= _LARGE_BYTES else _SMALL_ALIGN
        self._file.write(b"\0" * (-self._file.tell() % align))
        offset = self._file.tell()
        for block in blocks:
            self._file.write(np.ascontiguousarray(block).data.cast("B"))
        length = self._file.tell() - offset
        if length != expected:
            raise ValueError(f"{name}: {length} bytes for shape {shape} of {itemsize}-byte items")
        return self._tensor(name, dtype, shape, offset, length)

    def alias(self, name: str, dtype: int, shape: list[int], of: TensorProto) -> TensorProto:
        """A second tensor over the bytes of an earlier one, under another shape of the same size."""
        entries = {e.key: int(e.value) for e in of.external_data if e.key in ("offset", "length")}
        return self._tensor(name, dtype, shape, entries["offset"], entries["length"])

    def _tensor(self, name: str, dtype: int, shape: list[int], offset: int, length: int) -> TensorProto:
        tensor = TensorProto(name=name, data_type=dtype, dims=shape, data_location=TensorProto.EXTERNAL)
        for key, value in (("location", self._path.name), ("offset", offset), ("length", length)):
            tensor.external_data.add(key=key, value=str(value))
        return tensor

    def close(self) -> None:
        self._file.close()
