"""The checkpoint folder that holds quantized weights: reading it slot by slot, and writing it.

It is a `pack-quantized` checkpoint of compressed-tensors, with float32 scales of fp16-representable values. Its words
(`compiler/codes.py`) lie as ONNX Runtime's MatMulNBits and MLX have them, so targets copy them.

Source: compressed-tensors, `compressors/pack_quantized` (v0.20). Knows no method and no target.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compiler.codes import LARGEST_SCALE, Bytes, Codes, Int8, dequantize, pack, pack_zeros, unpack, unpack_zeros
from compiler.config import Keys, read_config
from compiler.slots import HALF, Scheme, Schemes, Slot
from compiler.tensors import CheckpointError, Float32, TensorFiles, from_float32, to_float32

_STEP_ALIGN = 64


class PackedWeights:
    """A quantized checkpoint folder: the packed bytes of every slot, and float rows dequantized from them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = read_config(path)
        self.tensors = TensorFiles([path / "model.safetensors"])
        self.schemes: Schemes = read_schemes(self.config)

    def _float(self, name: str) -> str:
        """The tensor of a slot's float values: a bias goes by its own name, see `Slot.key`."""
        return name if name in self.tensors else f"{name}.weight"

    def scheme(self, name: str) -> Scheme:
        return self.schemes.get(name, HALF)

    def half_dtype(self, name: str) -> str:
        """How a 16-bit slot or a norm is stored: F32, F16 or BF16."""
        return self.tensors.info(self._float(name)).dtype

    def shape(self, name: str) -> tuple[int, ...]:
        """[rows, columns] of a matrix slot, [columns] of a norm."""
        if self.scheme(name).bits == 16:
            return self.tensors.info(self._float(name)).shape
        shape = self.tensors.raw(name + ".weight_shape").view(np.int64)
        return tuple(int(v) for v in shape)

    def packed(self, name: str, start: int = 0, stop: int | None = None) -> Bytes:
        """Packed bytes of rows, uint8 [rows, columns * bits / 8], without what fills up a row's last word."""
        tensor = name + ".weight_packed"
        words = self.tensors.info(tensor).shape[1]
        used = self.shape(name)[1] * self.scheme(name).bits // 8
        return self.tensors.raw(tensor, start, stop).reshape(-1, words * 4)[:, :used]

    def scales(self, name: str, start: int = 0, stop: int | None = None) -> Float32:
        """Scales of rows, float32 [rows, groups]."""
        tensor = name + ".weight_scale"
        info = self.tensors.info(tensor)
        return to_float32(self.tensors.raw(tensor, start, stop), info.dtype).reshape(-1, info.shape[1])

    def zeros(self, name: str, start: int = 0, stop: int | None = None) -> Int8 | None:
        """Zero points of rows, int8 [rows, groups]; None for a symmetric slot."""
        scheme = self.scheme(name)
        if scheme.symmetric:
            return None
        tensor = name + ".weight_zero_point"
        per_word = 32 // scheme.bits
        stop = self.shape(name)[0] if stop is None else stop
        first = start // per_word
        groups = self.tensors.info(tensor).shape[1]
        words = self.tensors.raw(tensor, first, -(-stop // per_word)).view(np.int32).reshape(-1, groups)
        return unpack_zeros(words, scheme.bits, stop - first * per_word)[start - first * per_word :]

    def rows(self, name: str, start: int = 0, stop: int | None = None) -> Float32:
        """Float rows of a slot (16 bits: the stored values)."""
        scheme = self.scheme(name)
        if scheme.bits == 16:
            tensor = self._float(name)
            info = self.tensors.info(tensor)
            return to_float32(self.tensors.raw(tensor, start, stop), info.dtype).reshape(-1, *info.shape[1:])
        codes = unpack(self.packed(name, start, stop), scheme.bits)
        return dequantize(Codes(codes, self.scales(name, start, stop), self.zeros(name, start, stop)))


class PackedWriter:
    """Writes a quantized checkpoint in any order of slots and row blocks; `close` makes it complete.

    Every size is known from the schemes, so the file is laid out first and blocks are written in place, by any number
    of threads at once.
    Float tensors (16 bits, norms) keep the dtype given in `half_dtypes` (BF16, F16 or F32).
    """

    def __init__(self, folder: Path, slots: list[Slot], schemes: Schemes, half_dtypes: Mapping[str, str]) -> None:
        self.folder = folder
        self._schemes = dict(schemes)
        self._slots = {s.name: s for s in slots}
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        offset = 0
        for name, dtype, shape in self._layout(half_dtypes):
            count = int(np.prod(shape))
            size = count * {"I32": 4, "F32": 4, "I64": 8, "BF16": 2, "F16": 2}[dtype]
            header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + size]}
            offset += size
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-(8 + len(text)) % _STEP_ALIGN)
        self._header = header
        self._data = 8 + len(text)
        self._file = (folder / "model.safetensors").open("w+b")
        self._file.write(len(text).to_bytes(8, "little") + text)
        self._file.truncate(self._data + offset)  # flushes the header too
        for slot in slots:
            if self._schemes.get(slot.name, HALF).bits != 16:
                self._put(slot.name + ".weight_shape", 0, np.asarray([slot.rows, slot.columns], np.int64))

    def _layout(self, half_dtypes: Mapping[str, str]) -> list[tuple[str, str, tuple[int, ...]]]:
        # widest items first, so that every tensor is aligned to its own item size
        wide: list[tuple[str, str, tuple[int, ...]]] = []
        words: list[tuple[str, str, tuple[int, ...]]] = []
        halves: list[tuple[str, str, tuple[int, ...]]] = []
        for slot in self._slots.values():
            scheme = self._schemes.get(slot.name, HALF)
            if scheme.bits == 16:
                shape = (slot.columns,) if slot.is_vector else (slot.rows, slot.columns)
                dtype = half_dtypes[slot.name]
                (words if dtype == "F32" else halves).append((slot.key, dtype, shape))
                continue
            groups = scheme.groups(slot.columns)
            wide.append((slot.name + ".weight_shape", "I64", (2,)))
            words.append((slot.name + ".weight_packed", "I32", (slot.rows, -(-slot.columns * scheme.bits // 32))))
            words.append((slot.name + ".weight_scale", "F32", (slot.rows, groups)))
            if not scheme.symmetric:
                zero_words = -(-slot.rows * scheme.bits // 32)
                words.append((slot.name + ".weight_zero_point", "I32", (zero_words, groups)))
        return wide + words + halves

    def _put(self, name: str, row: int, values: NDArray[Any]) -> None:
        entry = self._header[name]
        begin, end = entry["data_offsets"]
        row_bytes = (end - begin) // max(entry["shape"][0], 1)
        at, left = self._data + begin + row * row_bytes, np.ascontiguousarray(values).data.cast("B")
        while left:
            count = os.pwrite(self._file.fileno(), left, at)
            at, left = at + count, left[count:]

    def write(self, name: str, start: int, codes: Codes) -> None:
        """Write quantized rows of a slot from row `start` on.

        Zero points share words between rows: with them, `start` must be a multiple of 32 / bits.
        """
        bits = self._schemes[name].bits
        packed = pack(codes.codes, bits)
        if rest := -packed.shape[1] % 4:
            packed = np.pad(packed, ((0, 0), (0, rest)))
        self._put(name + ".weight_packed", start, packed)
        self._put(name + ".weight_scale", start, codes.scales.astype(np.float32))
        if codes.zeros is not None:
            if start * bits % 32:
                raise ValueError(f"row {start} of {name} does not start a word of zero points")
            self._put(name + ".weight_zero_point", start * bits // 32, pack_zeros(codes.zeros, bits))

    def write_half(self, name: str, start: int, values: Float32) -> None:
        """Write float rows of a 16-bit slot or a vector, rounded to the dtype it is stored in.

        Raises CheckpointError for values that fp16 does not reach.
        """
        key = self._slots[name].key
        rounded = from_float32(values, self._header[key]["dtype"])
        if rounded.dtype == np.float16 and np.isinf(rounded).any():
            raise CheckpointError(f"{key} holds values beyond {LARGEST_SCALE:g}, which fp16 does not; give it bits: 8")
        self._put(key, start, rounded)

    def close(self, config: Mapping[str, Any]) -> None:
        """Flush the weights and write config.json with its quantization_config."""
        self._file.flush()
        self._file.close()
        write_config(self.folder, config, self._schemes)


def write_config(folder: Path, config: Mapping[str, Any], schemes: Schemes) -> None:
    """config.json of a quantized checkpoint, with its quantization_config."""
    quantized = {n: s for n, s in schemes.items() if s.bits != 16}
    full = {**config, "quantization_config": quantization_config(quantized)} if quantized else dict(config)
    (folder / "config.json").write_text(json.dumps(full, indent=2) + "\n", encoding="utf-8")


def quantization_config(schemes: Schemes) -> dict[str, Any]:
    """The `quantization_config` of config.json: one group for each scheme, its modules named.

    `dequantize` lets transformers load a quantized embedding, but it then applies one scheme to every tensor
    (`get_dense_scheme` of its 5.23), silently wrong for a mixed checkpoint: it is set for uniform ones only.
    """
    groups: dict[str, Any] = {}
    for scheme in sorted(set(schemes.values()), key=lambda s: (s.bits, s.group, s.symmetric)):
        groups[f"group_{len(groups)}"] = {
            "targets": [name for name, s in schemes.items() if s == scheme],
            "format": "pack-quantized",
            "input_activations": None,
            "output_activations": None,
            "weights": {
                "num_bits": scheme.bits,
                "type": "int",
                "symmetric": scheme.symmetric,
                "strategy": "group" if scheme.group else "channel",
                "group_size": scheme.group or None,
                "dynamic": False,
            },
        }
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "dequantize": len(groups) == 1,
        "config_groups": groups,
        "ignore": [],
        "kv_cache_scheme": None,
    }


def read_schemes(config: Mapping[str, Any]) -> dict[str, Scheme]:
    """Schemes by module name from a `quantization_config` that names its modules. Raises CheckpointError."""
    groups = Keys(config).section("quantization_config").section("config_groups")
    schemes: dict[str, Scheme] = {}
    for key in groups.values:
        group = groups.section(key)
        weights = group.section("weights")
        weights.word("type", ("int",))
        if (bits := weights.integer("num_bits", 4, 8)) not in (4, 8):
            raise weights.error("num_bits", "must be 4 or 8")
        targets = group.values.get("targets")
        if not isinstance(targets, list) or not all(isinstance(name, str) for name in targets):
            raise group.error("targets", "must be a list of module names")
        scheme = Scheme(bits, weights.integer("group_size", 0, 1 << 20, 0), weights.flag("symmetric", True))
        schemes |= dict.fromkeys(targets, scheme)
    return schemes
