"""Safetensors files: their headers, checked, and their bytes, read row block by row block.

Nothing here knows what a checkpoint is, nor how weights are quantized. Memory is set by the largest block asked for.

Format: https://huggingface.co/docs/safetensors (8-byte little-endian header length, JSON header, data).
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from artifacts import EdgewrightError
from artifacts.documents import DocumentError, open_regular, parse_json

Float32 = NDArray[np.float32]

FLOATS = ("BF16", "F16", "F32", "F64", "F8_E4M3")
_ITEM_BYTES = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "U32": 4, "BF16": 2, "F16": 2, "I16": 2, "I8": 1, "U8": 1}
_ITEM_BYTES |= {"F8_E4M3": 1, "F8_E5M2": 1, "BOOL": 1}
_MAX_HEADER = 32 << 20
_MAX_DIMENSIONS = 16
_MAX_SIZE = 1 << 63
_MAX_NAME = 512
_BLOCK_BYTES = 1 << 23


class CheckpointError(EdgewrightError):
    """A checkpoint that cannot be read: what is wrong, in which file, and what to do."""


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies. `start` is its absolute byte offset in `file`."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    size: int


def read_header(path: Path) -> dict[str, TensorInfo]:
    """Parse and check the header of one safetensors file.

    Raises EdgewrightError when it is no regular file, the header is not JSON, an offset lies outside the file, two
    tensors overlap, there are holes, or a size does not match its shape and dtype.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        head = file.read(8)
        length = int.from_bytes(head, "little")
        if len(head) < 8 or length > min(_MAX_HEADER, size - 8):
            raise CheckpointError(f"{path}: not a safetensors file, or cut short: download it again")
        try:
            header = parse_json(file.read(length), f"{path}: the safetensors header")
        except DocumentError as error:
            raise CheckpointError(f"{error}; download it again") from error
    data = 8 + length
    tensors: dict[str, TensorInfo] = {}
    for name, entry in header.items():
        if name != "__metadata__":
            tensors[name] = _tensor_info(path, name, entry, data)
    end = 0
    for name, info in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].size)):
        if info.start - data != end:
            raise CheckpointError(f"{path}: tensor {name!r} overlaps or leaves a hole before it: the header lies")
        end = info.start - data + info.size
    if data + end != size:
        raise CheckpointError(f"{path}: {size} bytes on disk, {data + end} by its header: cut short or damaged")
    return tensors


def _tensor_info(path: Path, name: str, entry: Any, data: int) -> TensorInfo:
    try:
        dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        valid = isinstance(dtype, str) and isinstance(shape, list) and len(shape) <= _MAX_DIMENSIONS and begin <= end
        valid = valid and len(name) <= _MAX_NAME
        valid = valid and all(type(v) is int and 0 <= v < _MAX_SIZE for v in (*shape, begin, end))
    except (TypeError, KeyError, ValueError):
        valid = False
    if not valid:
        raise CheckpointError(f"{path}: tensor {name[:80]!r} has a malformed header entry: download it again")
    if dtype not in _ITEM_BYTES:
        raise CheckpointError(f"{path}: tensor {name!r} has dtype {dtype[:20]!r}, which is not supported")
    count = 1
    for dim in shape:
        count *= dim
    if count * _ITEM_BYTES[dtype] != end - begin:
        raise CheckpointError(f"{path}: tensor {name!r} of shape {shape} and {dtype} does not fill its offsets")
    return TensorInfo(path, dtype, tuple(shape), data + begin, end - begin)


class TensorFiles:
    """The tensors of a set of safetensors files, read a block at a time.

    Read, not mapped: a page fault in a file whose page cache is in large folios maps megabytes around it, which then
    count as this process's memory.
    """

    def __init__(self, files: list[Path]) -> None:
        self.files = files
        self._tensors: dict[str, TensorInfo] = {}
        self._open: dict[Path, int] = {}
        for file in files:
            for name, info in read_header(file).items():
                if name in self._tensors:
                    raise CheckpointError(f"{file}: tensor {name!r} is also in {self._tensors[name].file.name}")
                self._tensors[name] = info

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def names(self) -> Iterator[str]:
        return iter(self._tensors)

    def info(self, name: str) -> TensorInfo:
        try:
            return self._tensors[name]
        except KeyError:
            where = self.files[0].parent if self.files else "the checkpoint"
            raise CheckpointError(f"{where}: tensor {name!r} is missing from the checkpoint") from None

    def raw(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[np.uint8]:
        """Bytes of rows `start:stop`, all rows by default. Raises CheckpointError when the file ends before them."""
        info = self.info(name)
        rows = info.shape[0] if info.shape else 1
        stop = rows if stop is None else stop
        if not 0 <= start <= stop <= rows:
            raise IndexError(f"rows {start}:{stop} of {name!r}, which has {rows}")
        row = info.size // rows if rows else 0
        block = np.empty((stop - start) * row, np.uint8)
        handle, at = self._descriptor(info.file), 0
        while at < block.size:
            count = os.preadv(handle, [block.data[at:]], info.start + start * row + at)
            if not count:
                raise CheckpointError(f"{info.file}: cut short while it was read, in tensor {name!r}; fetch it again")
            at += count
        return block

    def _descriptor(self, file: Path) -> int:
        if file not in self._open:
            self._open[file] = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
            weakref.finalize(self, os.close, self._open[file])
        return self._open[file]


def to_float32(raw: NDArray[np.uint8], dtype: str) -> Float32:
    """Decode bytes of BF16, F16, F32, F64 or F8_E4M3 (OCP FP8, no infinities) to a new float32 vector.

    Values of F64 are rounded; those beyond float32 become infinite.
    """
    if dtype == "BF16":
        wide = raw.view(np.uint16).astype(np.uint32)
        wide <<= 16
        return wide.view(np.float32)
    if dtype == "F16":
        return raw.view(np.float16).astype(np.float32)
    if dtype == "F32":
        return raw.view(np.float32)
    if dtype == "F64":
        with np.errstate(over="ignore"):
            return raw.view(np.float64).astype(np.float32)
    if dtype == "F8_E4M3":
        return _e4m3_table()[raw]
    raise CheckpointError(f"dtype {dtype} cannot be read as float")


def _e4m3_table() -> Float32:
    code = np.arange(256)
    exponent, mantissa = (code >> 3) & 15, code & 7
    value = np.where(exponent == 0, mantissa * 2.0**-9, (1 + mantissa / 8) * 2.0 ** (exponent - 7.0))
    value = np.where((code & 127) == 127, np.nan, value)
    return np.where(code & 128, -value, value).astype(np.float32)


def from_float32(values: Float32, dtype: str) -> NDArray[Any]:
    """Round float32 to F32, F16 (infinite beyond its range) or BF16 (as uint16), ties to even."""
    if dtype == "F32":
        return values
    if dtype == "F16":
        with np.errstate(over="ignore"):
            return values.astype(np.float16)
    bits = np.ascontiguousarray(values).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def row_blocks(rows: int, columns: int, block_bytes: int = _BLOCK_BYTES) -> Iterator[tuple[int, int]]:
    """Split `rows` of `columns` float32 values into ranges of about `block_bytes`, in multiples of eight rows."""
    step = max(8, block_bytes // (4 * max(columns, 1)) // 8 * 8)
    for start in range(0, rows, step):
        yield start, min(rows, start + step)
