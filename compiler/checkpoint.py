"""A checkpoint: a Hugging Face folder's config and its float tensors, row block by row block, in float32.

Nothing here knows a model family or a quantization method. Memory is set by the largest block asked for. Pickles
are refused and no code of the checkpoint is ever run. What is below it stands in `tensors.py` (files), `config.py`
(config.json) and `compressed.py` (weights that come quantized).
"""

from __future__ import annotations

import os
import re
import reprlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from artifacts.documents import read_json
from compiler.compressed import CompressedTensors
from compiler.config import Keys, adapter, adapter_alone, read_config
from compiler.tensors import FLOATS, CheckpointError, Float32, TensorFiles, row_blocks, to_float32

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "Float32",
    "TensorFiles",
    "listed",
    "read_config",
    "row_blocks",
    "to_float32",
]

_INDEX = "model.safetensors.index.json"
_SHARD = re.compile(r".{1,240}\.safetensors", re.DOTALL)
_SHOWN = 8
_PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl"}
# computed from the config by everyone; old Llama checkpoints still carry it
_COMPUTED = ".rotary_emb.inv_freq"
# what stands beside a quantized weight, or scales activations, which stay as the target has them
_BESIDE = re.compile(r"(weight)_\w+|(?:input|output|activation)_(?:scale|zero_point|global_scale)")


class Checkpoint:
    """A Hugging Face checkpoint folder: its config and its float tensors.

    `rows` gives float32 blocks of any floating tensor; FP8 tensors are multiplied by their scales
    (`weight_scale_inv` of the fine-grained format, `weight_scale` of compressed-tensors), integer weights of
    compressed-tensors are dequantized. Those go by the name of the float weight.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = read_config(path)
        self._section = Keys(self.config).section("quantization_config")
        self.tensors = TensorFiles(_weight_files(path))
        self.compressed = CompressedTensors(self.tensors, self._section)

    def __reduce__(self) -> tuple[type[Checkpoint], tuple[Path]]:
        return Checkpoint, (self.path,)  # another process opens its files anew

    def __contains__(self, name: str) -> bool:
        return name in self.tensors or name in self.compressed

    def names(self) -> list[str]:
        """Names of all tensors, and of the float weights that packed ones stand for."""
        return [*self.tensors.names(), *self.compressed.names()]

    def unread(self, read: Iterable[str]) -> list[str]:
        """Names of the tensors that are left when those of `read` are taken, with what belongs to them."""
        taken = set(read)
        modules = {name.rpartition(".")[0] for name in taken}

        def belongs(name: str) -> bool:
            module, _, own = name.rpartition(".")
            beside = _BESIDE.fullmatch(own)
            return beside is not None and (f"{module}.weight" in taken if beside[1] else module in modules)

        left = (name for name in self.tensors.names() if name not in taken and not name.endswith(_COMPUTED))
        return [name for name in left if not belongs(name)]

    def shape(self, name: str) -> tuple[int, ...]:
        return self.compressed.shape(name) if name in self.compressed else self.tensors.info(name).shape

    def dtype(self, name: str) -> str:
        """The dtype in which a tensor's float values would be stored: of quantized ones BF16, of F64 F32."""
        if name in self.compressed or self.tensors.info(name).dtype == "F8_E4M3":
            return "BF16"
        dtype = self.tensors.info(name).dtype
        return "F32" if dtype == "F64" else dtype

    def check(self, name: str, shape: tuple[int, ...]) -> None:
        """Raises CheckpointError unless `rows` can read a tensor and it has this shape; reads scales, no weights."""
        if name in self.compressed:
            self.compressed.scheme(name)
        else:
            info = self.tensors.info(name)
            if info.dtype not in FLOATS:
                raise CheckpointError(
                    f"{info.file}: tensor {name!r} has dtype {info.dtype}; weights are read as {', '.join(FLOATS)}, "
                    "or as integers of compressed-tensors with their scales"
                )
        if self.shape(name) != shape:
            raise CheckpointError(
                f"{self.path}: tensor {name!r} has shape {list(self.shape(name))}; config.json says {list(shape)}"
            )
        if name not in self.compressed and self.tensors.info(name).dtype == "F8_E4M3":
            self._fp8_scale(name, 0, 1)

    def rows(self, name: str, start: int = 0, stop: int | None = None) -> Float32:
        """Rows `start:stop` of a tensor in float32, shape [stop - start, ...].

        Raises CheckpointError when the tensor is missing, not floating, or holds NaN or infinity.
        """
        stop = self.shape(name)[0] if stop is None else stop
        if name in self.compressed:
            file, values = self.compressed.file(name), self.compressed.rows(name, start, stop)
        else:
            info = self.tensors.info(name)
            if info.dtype not in FLOATS:
                raise CheckpointError(f"{info.file}: tensor {name!r} has dtype {info.dtype}; floating weights expected")
            raw = self.tensors.raw(name, start, stop)
            file, values = info.file, to_float32(raw, info.dtype).reshape(stop - start, *info.shape[1:])
            if info.dtype == "F8_E4M3":
                values *= self._fp8_scale(name, start, stop)
        if not np.isfinite(values).all():
            bad = int((~np.isfinite(values)).sum())
            raise CheckpointError(
                f"{file}: tensor {name!r} has {bad} NaN or infinite values in rows {start}:{stop}; "
                "the checkpoint is damaged or its training diverged: no artifact is built from it"
            )
        return values

    def _fp8_scale(self, name: str, start: int, stop: int) -> Float32:
        """What rows of an FP8 tensor are multiplied by: [1], [rows, 1] or [rows, columns]."""
        info = self.tensors.info(name)
        scale_name = next((name + s for s in ("_scale_inv", "_scale") if name + s in self.tensors), None)
        if scale_name is None:
            raise CheckpointError(f"{info.file}: FP8 tensor {name!r} has neither {name}_scale_inv nor {name}_scale")
        found = self.tensors.info(scale_name)
        if found.dtype not in FLOATS:
            raise CheckpointError(f"{found.file}: tensor {scale_name!r} has dtype {found.dtype}; a scale is floating")
        scale = to_float32(self.tensors.raw(scale_name), found.dtype).reshape(found.shape)
        if scale.size == 1:
            return scale.reshape(1)
        if len(info.shape) == 2 and scale.shape in ((info.shape[0],), (info.shape[0], 1)):  # per output channel
            return scale.reshape(-1, 1)[start:stop]
        if len(info.shape) != 2 or scale.ndim != 2 or not scale.size:
            raise CheckpointError(f"{found.file}: {scale_name!r} of {scale.shape} does not cover {info.shape}")
        rows, columns = info.shape
        block_rows, block_columns = self._block_size() or (-(-rows // scale.shape[0]), -(-columns // scale.shape[1]))
        if (-(-rows // block_rows), -(-columns // block_columns)) != scale.shape:
            raise CheckpointError(f"{found.file}: {scale_name!r} of {scale.shape} does not cover {info.shape}")
        wide = np.repeat(scale, block_columns, axis=1)[:, :columns]
        return np.asarray(wide[np.arange(start, stop) // block_rows], np.float32)

    def _block_size(self) -> tuple[int, int] | None:
        size = self._section.values.get("weight_block_size")
        if size is None:
            return None
        if not isinstance(size, list) or len(size) != 2 or any(type(v) is not int or not 0 < v < 2**31 for v in size):
            raise self._section.error("weight_block_size", "must be two whole numbers from 1 up")
        return size[0], size[1]


def listed(names: Iterable[str]) -> str:
    """Tensors in few words: names that differ in a number only stand as one, with how many there are."""
    alike: dict[str, list[str]] = {}
    for name in names:
        alike.setdefault(re.sub(r"(?<=\.)\d+(?=\.)", "*", name), []).append(name)
    shown = [
        repr(found[0]) if len(found) == 1 else f"{pattern!r} ({len(found)})"
        for pattern, found in list(alike.items())[:_SHOWN]
    ]
    return ", ".join(shown) + (f" and {len(alike) - _SHOWN} more" if len(alike) > _SHOWN else "")


def _weight_files(path: Path) -> list[Path]:
    index, single = path / _INDEX, path / "model.safetensors"
    if os.path.lexists(index):
        table = read_json(index).get("weight_map")
        if not isinstance(table, dict) or not table:
            raise CheckpointError(
                f"{index}: not a safetensors index: its weight_map must name the file of every tensor"
            )
        for shard in table.values():
            if not isinstance(shard, str) or not _SHARD.fullmatch(shard) or Path(shard).name != shard:
                raise CheckpointError(f"{index}: {reprlib.repr(shard)} is not a safetensors file name of this folder")
        shards = sorted(set(table.values()))
        for shard in shards:
            if not os.path.lexists(path / shard):
                raise CheckpointError(f"{path / shard}: this shard of the checkpoint is missing: download it again")
        return [path / shard for shard in shards]
    if os.path.lexists(single):
        return [single]
    if adapter(path) is not None:
        raise CheckpointError(adapter_alone(path))
    pickles = sorted(p.name for p in path.glob("*") if p.suffix in _PICKLES)
    if pickles:
        raise CheckpointError(
            f"{path}: holds {pickles[0]}, a pickle, which can run code when it is read; only safetensors are. "
            "Save it again with transformers: model.save_pretrained(folder)"
        )
    raise CheckpointError(f"{path}: neither model.safetensors nor {_INDEX} is there")
