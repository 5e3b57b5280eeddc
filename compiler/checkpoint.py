"""Reading a checkpoint: safetensors files, row block by row block, in float32.

Nothing here knows a model family or a quantization method. Memory is set by the largest block asked for. Pickles
are refused and no code of the checkpoint is ever run.

Format: https://huggingface.co/docs/safetensors (8-byte little-endian header length, JSON header, data).
"""

from __future__ import annotations

import json
import os
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from artifacts import EdgewrightError

Float32 = NDArray[np.float32]

_ITEM_BYTES = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "U32": 4, "BF16": 2, "F16": 2, "I16": 2, "I8": 1, "U8": 1}
_ITEM_BYTES |= {"F8_E4M3": 1, "F8_E5M2": 1, "BOOL": 1}
_FLOATS = {"F32", "BF16", "F16", "F8_E4M3"}
_MAX_HEADER = 100_000_000
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

    Raises CheckpointError when the header is not JSON, an offset lies outside the file, two tensors overlap,
    there are holes, or a size does not match its shape and dtype.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(8)
            length = int.from_bytes(head, "little")
            if len(head) < 8 or length > min(_MAX_HEADER, size - 8):
                raise CheckpointError(f"{path}: not a safetensors file, or cut short: download it again")
            header = json.loads(file.read(length))
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: the safetensors header is not valid JSON: download it again") from error
    if not isinstance(header, dict):
        raise CheckpointError(f"{path}: the safetensors header is not an object: download it again")
    data = 8 + length
    tensors: dict[str, TensorInfo] = {}
    for name, entry in header.items():
        if name != "__metadata__":
            tensors[name] = _tensor_info(path, name, entry, data)
    end = 0
    for name, info in sorted(tensors.items(), key=lambda item: item[1].start):
        if info.start - data != end:
            raise CheckpointError(f"{path}: tensor {name!r} overlaps or leaves a hole before it: the header lies")
        end = info.start - data + info.size
    if data + end != size:
        raise CheckpointError(f"{path}: {size} bytes on disk, {data + end} by its header: cut short or damaged")
    return tensors


def _tensor_info(path: Path, name: str, entry: Any, data: int) -> TensorInfo:
    try:
        dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        valid = all(type(v) is int and v >= 0 for v in (*shape, begin, end)) and begin <= end
    except (TypeError, KeyError, ValueError):
        valid = False
    if not valid:
        raise CheckpointError(f"{path}: tensor {name!r} has a malformed header entry: download it again")
    if dtype not in _ITEM_BYTES:
        raise CheckpointError(f"{path}: tensor {name!r} has dtype {dtype!r}, which is not supported")
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


class Checkpoint:
    """A Hugging Face checkpoint folder: its config and its float tensors.

    `rows` gives float32 blocks of any floating tensor; FP8 tensors are multiplied by their scales
    (`weight_scale_inv` of the fine-grained format, `weight_scale` of compressed-tensors), integer weights of
    compressed-tensors are dequantized. Those go by the name of the float weight.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = read_config(path)
        self.tensors = TensorFiles(_weight_files(path))
        from compiler.compressed import CompressedTensors

        self.compressed = CompressedTensors(self.tensors, self.config)

    def __contains__(self, name: str) -> bool:
        return name in self.tensors or name in self.compressed

    def names(self) -> list[str]:
        """Names of all tensors, and of the float weights that packed ones stand for."""
        return [*self.tensors.names(), *self.compressed.names()]

    def shape(self, name: str) -> tuple[int, ...]:
        return self.compressed.shape(name) if name in self.compressed else self.tensors.info(name).shape

    def dtype(self, name: str) -> str:
        """The dtype in which a tensor's float values would be stored: of quantized ones, BF16."""
        if name in self.compressed or self.tensors.info(name).dtype == "F8_E4M3":
            return "BF16"
        return self.tensors.info(name).dtype

    def rows(self, name: str, start: int = 0, stop: int | None = None) -> Float32:
        """Rows `start:stop` of a tensor in float32, shape [stop - start, ...].

        Raises CheckpointError when the tensor is missing, not floating, or holds NaN or infinity.
        """
        if name in self.compressed:
            return self.compressed.rows(name, start, self.shape(name)[0] if stop is None else stop)
        info = self.tensors.info(name)
        if info.dtype not in _FLOATS:
            raise CheckpointError(f"{info.file}: tensor {name!r} has dtype {info.dtype}; floating weights expected")
        stop = info.shape[0] if stop is None else stop
        values = to_float32(self.tensors.raw(name, start, stop), info.dtype).reshape(stop - start, *info.shape[1:])
        if info.dtype == "F8_E4M3":
            values *= self._fp8_scale(name, start, stop)
        if not np.isfinite(values).all():
            bad = int((~np.isfinite(values)).sum())
            raise CheckpointError(
                f"{info.file}: tensor {name!r} has {bad} NaN or infinite values in rows {start}:{stop}; "
                "the checkpoint is damaged or its training diverged: no artifact is built from it"
            )
        return values

    def _fp8_scale(self, name: str, start: int, stop: int) -> Float32:
        info = self.tensors.info(name)
        for suffix in ("_scale_inv", "_scale"):
            scale_name = name + suffix
            if scale_name in self.tensors:
                break
        else:
            raise CheckpointError(f"{info.file}: FP8 tensor {name!r} has neither {name}_scale_inv nor {name}_scale")
        scale_info = self.tensors.info(scale_name)
        scale = to_float32(self.tensors.raw(scale_name), scale_info.dtype).reshape(scale_info.shape)
        if scale.size == 1:
            return scale.reshape(1, 1)
        if scale.ndim == 1 or scale.shape == (info.shape[0], 1):  # per output channel
            return scale.reshape(-1, 1)[start:stop]
        rows, columns = info.shape
        block_rows, block_columns = -(-rows // scale.shape[0]), -(-columns // scale.shape[1])
        quantization = self.config.get("quantization_config") or {}
        if size := quantization.get("weight_block_size"):
            block_rows, block_columns = size
        if -(-rows // block_rows) != scale.shape[0] or -(-columns // block_columns) != scale.shape[1]:
            raise CheckpointError(f"{scale_info.file}: {scale_name!r} of {scale.shape} does not cover {info.shape}")
        wide = np.repeat(scale, block_columns, axis=1)[:, :columns]
        return np.asarray(wide[np.arange(start, stop) // block_rows], np.float32)


def to_float32(raw: NDArray[np.uint8], dtype: str) -> Float32:
    """Decode bytes of BF16, F16, F32 or F8_E4M3 (OCP FP8, no infinities) to a new float32 vector."""
    if dtype == "BF16":
        wide = raw.view(np.uint16).astype(np.uint32)
        wide <<= 16
        return wide.view(np.float32)
    if dtype == "F16":
        return raw.view(np.float16).astype(np.float32)
    if dtype == "F32":
        return raw.view(np.float32)
    if dtype == "F8_E4M3":
        return _e4m3_table()[raw]
    raise CheckpointError(f"dtype {dtype} cannot be read as float")


def _e4m3_table() -> Float32:
    code = np.arange(256)
    exponent, mantissa = (code >> 3) & 15, code & 7
    value = np.where(exponent == 0, mantissa * 2.0**-9, (1 + mantissa / 8) * 2.0 ** (exponent - 7.0))
    value = np.where((code & 127) == 127, np.nan, value)
    return np.where(code & 128, -value, value).astype(np.float32)


def read_config(path: Path) -> dict[str, Any]:
    """The checkpoint's config.json as a dict; special tokens it leaves out come from generation_config.json.

    Raises CheckpointError.
    """
    if not path.is_dir():
        raise CheckpointError(f"{path}: no such checkpoint folder")
    config = _read_object(path / "config.json")
    if (path / "generation_config.json").exists():
        generation = _read_object(path / "generation_config.json")
        for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
            if config.get(key) is None and generation.get(key) is not None:
                config[key] = generation[key]
    return config


def _read_object(file: Path) -> dict[str, Any]:
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{file.parent}: no {file.name}: is this a Hugging Face checkpoint folder?") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file}: cannot be read as JSON: {error}") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{file}: an object is expected")
    return config


def _weight_files(path: Path) -> list[Path]:
    index = path / "model.safetensors.index.json"
    single = path / "model.safetensors"
    if index.exists():
        try:
            table: Mapping[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            shards = sorted(set(table.values()))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise CheckpointError(f"{index}: not a safetensors index: {error!r}") from error
        files = []
        for shard in shards:
            if not isinstance(shard, str) or Path(shard).name != shard or not shard.endswith(".safetensors"):
                raise CheckpointError(f"{index}: {shard!r} is not a safetensors file name of this folder")
            if not (path / shard).is_file():
                raise CheckpointError(f"{path / shard}: this shard of the checkpoint is missing: download it again")
            files.append(path / shard)
        return files
    if single.is_file():
        return [single]
    pickles = sorted(p.name for p in path.glob("*") if p.suffix in {".bin", ".pt", ".pth", ".ckpt", ".pkl"})
    if pickles:
        raise CheckpointError(
            f"{path}: holds {pickles[0]}, a pickle, which can run code when it is read; only safetensors are. "
            "Save it again with transformers: model.save_pretrained(folder)"
        )
    raise CheckpointError(f"{path}: neither model.safetensors nor model.safetensors.index.json is there")


def row_blocks(rows: int, columns: int, block_bytes: int = _BLOCK_BYTES) -> Iterator[tuple[int, int]]:
    """Split `rows` of `columns` float32 values into ranges of about `block_bytes`, in multiples of eight rows."""
    step = max(8, block_bytes // (4 * max(columns, 1)) // 8 * 8)
    for start in range(0, rows, step):
        yield start, min(rows, start + step)
