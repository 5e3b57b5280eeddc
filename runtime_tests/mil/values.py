"""MIL's types and constants as torch's: dtypes, packed bits, and weights that are decoded when they are used.

Values narrower than a byte, and unsigned ones that torch does not compute in, are held in the next wider integer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from runtime_tests.mil import PackageError
from runtime_tests.mil.blob import BlobFile

DTYPES = {
    "fp16": torch.float16,
    "fp32": torch.float32,
    "bool": torch.bool,
    "int8": torch.int8,
    "uint8": torch.uint8,
    "int16": torch.int16,
    "uint16": torch.int32,
    "int32": torch.int32,
    "uint32": torch.int64,
    "int4": torch.int8,
    "uint1": torch.uint8,
    "uint2": torch.uint8,
    "uint3": torch.uint8,
    "uint4": torch.uint8,
    "uint6": torch.uint8,
}
_NAMES = {"float16": "fp16", "float32": "fp32"}


def type_name(data_type: int) -> str:
    """MIL's name of a DataType of the protobuf ("fp16", "int32", "string"…)."""
    from coremltools.proto import MIL_pb2

    name: str = MIL_pb2.DataType.Name(data_type).lower()
    return _NAMES.get(name, name)


def unpack_bits(data: NDArray[np.uint8], bits: int, count: int, signed: bool) -> NDArray[Any]:
    """`count` values of `bits` bits each, filled into bytes low bits first, as int8 or uint8."""
    if bits == 4:
        values = np.empty(data.size * 2, np.uint8)
        values[0::2], values[1::2] = data & 15, data >> 4
        values = values[:count]
    else:
        flat = np.unpackbits(data, bitorder="little")[: count * bits].reshape(count, bits)
        values = (flat << np.arange(bits, dtype=np.uint8)).sum(1, dtype=np.uint8)
    if not signed:
        return values
    half = np.uint8(1 << (bits - 1))
    return ((values ^ half).view(np.int8) - np.int8(half)) if bits < 8 else values.view(np.int8)


def from_bytes(data: NDArray[np.uint8], dtype: str, count: int) -> Tensor:
    """A flat tensor from little-endian bytes in MIL's layout (a copy)."""
    if dtype in ("int4", "uint1", "uint2", "uint3", "uint4", "uint6"):
        return torch.from_numpy(unpack_bits(data, int(dtype[-1]), count, dtype == "int4").copy())
    numpy_name = _NUMPY.get(dtype, dtype)
    values = np.frombuffer(np.ascontiguousarray(data), numpy_name, count)
    if dtype in ("uint16", "uint32"):
        values = values.astype(np.int32 if dtype == "uint16" else np.int64)
    return torch.from_numpy(values.copy())


_NUMPY = {"fp16": "float16", "fp32": "float32"}


class LazyTensor:
    """A constant that is decoded when asked for: whole, or a range of rows along the first axis."""

    def __init__(self, shape: Sequence[int], decode: Callable[[int, int], Tensor]) -> None:
        """decode(start, stop) gives rows of the final dtype."""
        self.shape = tuple(shape)
        self._decode = decode
        self._kept: Tensor | None = None

    @property
    def numel(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))

    def keep(self) -> None:
        """Decode once and for all."""
        self._kept = self.rows(0, self.shape[0])

    def rows(self, start: int, stop: int) -> Tensor:
        return self._decode(start, stop) if self._kept is None else self._kept[start:stop]

    def tensor(self) -> Tensor:
        return self.rows(0, self.shape[0])


def tensor_type(value_type: Any) -> tuple[str, tuple[int | None, ...]]:
    """dtype name and shape of a MIL tensor type; None for a size that is only known when running."""
    found = value_type.tensorType
    sizes = tuple(d.constant.size if d.WhichOneof("dimension") == "constant" else None for d in found.dimensions)
    return type_name(found.dataType), sizes


def decode(value: Any, blobs: Callable[[str], BlobFile]) -> Any:
    """A MIL Value as a tensor, LazyTensor (large ones), str, or list of these.

    blobs: opens a weight file by its name in the program.
    """
    kind = value.WhichOneof("value")
    if kind == "blobFileValue":
        dtype, shape = tensor_type(value.type)
        sizes = [0 if size is None else size for size in shape]
        count = int(np.prod(sizes, dtype=np.int64))
        data = blobs(value.blobFileValue.fileName).payload(value.blobFileValue.offset, dtype, count)
        return _rows(data, dtype, sizes)
    if kind != "immediateValue":
        raise PackageError("a constant of the program has no value")
    immediate = value.immediateValue
    if immediate.WhichOneof("value") == "list":
        return [decode(item, blobs) for item in immediate.list.values]
    if immediate.WhichOneof("value") != "tensor":
        raise PackageError(f"a constant of kind {immediate.WhichOneof('value')} is beyond this executor")
    return _immediate(value.type, immediate.tensor)


def _rows(data: NDArray[np.uint8], dtype: str, shape: list[int]) -> Tensor | LazyTensor:
    count = int(np.prod(shape, dtype=np.int64))
    row = count // shape[0] if shape and shape[0] else 0
    row_bits = row * (len(data) * 8 // count) if count else 0
    if len(shape) < 2 or row_bits % 8 or data.size < 1 << 12:
        return from_bytes(data, dtype, count).reshape(shape)

    def rows(start: int, stop: int) -> Tensor:
        part = data[start * row_bits // 8 : stop * row_bits // 8]
        return from_bytes(part, dtype, (stop - start) * row).reshape(stop - start, *shape[1:])

    return LazyTensor(shape, rows)


def _immediate(value_type: Any, tensor: Any) -> Any:
    dtype, shape = tensor_type(value_type)
    field = tensor.WhichOneof("value")
    if field == "strings":
        texts = [str(text) for text in tensor.strings.values]
        return texts if shape else texts[0]
    if dtype not in DTYPES:
        raise PackageError(f"a constant of {dtype} is beyond this executor")
    sizes = [0 if size is None else size for size in shape]
    count = int(np.prod(sizes, dtype=np.int64))
    if field == "bytes":
        return from_bytes(np.frombuffer(tensor.bytes.values, np.uint8), dtype, count).reshape(sizes)
    values = list(getattr(tensor, field).values) if field else []
    if len(values) != count:
        raise PackageError(f"a constant of shape {sizes} has {len(values)} values: the program is damaged")
    return torch.tensor(values, dtype=DTYPES[dtype]).reshape(sizes)
