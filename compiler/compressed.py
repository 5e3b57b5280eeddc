"""Checkpoints that come quantized: integer weights of compressed-tensors, read as codes or as float rows.

`pack-quantized` (int32 words `X.weight_packed`, as `quantize/packed.py` writes them) and `int-quantized` (int8
`X.weight`), with scales in any float dtype. What a tensor is follows from what is stored beside it; of the config
only the number of bits of int-quantized weights. Activation quantization is not carried over: activations stay as the
target has them.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from compiler.codes import LARGEST_SCALE, SMALLEST_SCALE, Codes, Int8, dequantize, unpack, unpack_zeros
from compiler.config import Keys
from compiler.slots import Scheme
from compiler.tensors import FLOATS, CheckpointError, Float32, TensorFiles, to_float32

_MAX_DIMENSION = 1 << 31


class CompressedTensors:
    """The quantized matrices among a checkpoint's tensors; names are those of the float weights, `X.weight`.

    section: the config's `quantization_config`.
    """

    def __init__(self, tensors: TensorFiles, section: Keys) -> None:
        self._tensors = tensors
        self._section = section

    def __contains__(self, name: str) -> bool:
        return name + "_packed" in self._tensors or (
            name + "_scale" in self._tensors and name in self._tensors and self._tensors.info(name).dtype == "I8"
        )

    def names(self) -> list[str]:
        """Float names of all packed matrices (int8 ones go by their own)."""
        suffix = "_packed"
        return [n.removesuffix(suffix) for n in self._tensors.names() if n.endswith(".weight" + suffix)]

    def file(self, name: str) -> Path:
        """The file that holds a matrix's codes."""
        return self._tensors.info(name + "_packed" if name + "_packed" in self._tensors else name).file

    def shape(self, name: str) -> tuple[int, ...]:
        """[rows, columns]. Raises CheckpointError."""
        if name + "_packed" not in self._tensors:
            shape = self._tensors.info(name).shape
        elif name + "_shape" in self._tensors:
            info, item = self._tensors.info(name + "_shape"), {"I64": np.int64, "I32": np.int32}
            if info.dtype not in item or info.shape != (2,):
                raise CheckpointError(f"{info.file}: {name}_shape must be two integers, not {info.dtype} {info.shape}")
            shape = tuple(int(v) for v in self._tensors.raw(name + "_shape").view(item[info.dtype]))
        else:
            raise CheckpointError(f"{self.file(name)}: {name}_shape is missing beside {name}_packed")
        if len(shape) != 2 or not all(0 < size < _MAX_DIMENSION for size in shape):
            raise CheckpointError(f"{self.file(name)}: {name} has shape {list(shape)}; a matrix is expected")
        return shape

    def scheme(self, name: str) -> Scheme:
        """How a matrix is stored. Raises CheckpointError when it is stored in a way that is not supported."""
        rows, columns = self.shape(name)
        if name + "_g_idx" in self._tensors:
            raise CheckpointError(
                f"{self._tensors.info(name + '_g_idx').file}: {name} has its groups in activation order (g_idx), which "
                "no target can hold; requantize the original checkpoint"
            )
        scale = self._tensors.info(name + "_scale")
        groups = scale.shape[1] if len(scale.shape) == 2 else 1
        if scale.shape not in ((rows,), (rows, groups)) or not groups or columns % groups or scale.dtype not in FLOATS:
            raise CheckpointError(
                f"{scale.file}: {name}_scale has shape {list(scale.shape)} and dtype {scale.dtype}, which does not fit "
                f"{rows} x {columns}; floating scales per group or per output channel are supported"
            )
        bits = self._bits(name, rows, columns)
        return Scheme(bits, columns // groups if groups > 1 else 0, self._symmetric(name, bits, rows, groups))

    def _bits(self, name: str, rows: int, columns: int) -> int:
        if name + "_packed" not in self._tensors:
            groups = self._section.section("config_groups")
            stored = {groups.section(key).section("weights").integer("num_bits", 1, 16) for key in groups.values}
            return 4 if stored == {4} else 8
        packed = self._tensors.info(name + "_packed")
        words = packed.shape[1] if len(packed.shape) == 2 else 0
        bits = words * 32 // columns
        if bits not in (4, 8) or packed.shape != (rows, -(-columns * bits // 32)) or packed.dtype != "I32":
            raise CheckpointError(
                f"{packed.file}: {name}_packed has shape {list(packed.shape)} and dtype {packed.dtype}, which does not "
                f"hold {rows} x {columns} codes of 4 or 8 bits in int32 words"
            )
        return bits

    def _symmetric(self, name: str, bits: int, rows: int, groups: int) -> bool:
        """Whether a matrix has no zero points. Raises CheckpointError for zero points that do not fit its scales."""
        if name + "_zero_point" not in self._tensors:
            return True
        info = self._tensors.info(name + "_zero_point")
        per_group = {"I8": (rows, groups), "I32": (-(-rows * bits // 32), groups)}.get(info.dtype)
        per_row = info.dtype == "I8" and groups == 1 and info.shape == (rows,)
        if info.shape != per_group and not per_row:
            raise CheckpointError(
                f"{info.file}: {name}_zero_point has shape {list(info.shape)} and dtype {info.dtype}, which does not "
                f"fit {rows} rows of {groups} groups; int8, or int32 words packed along the rows, are supported"
            )
        return False

    def codes(self, name: str, start: int = 0, stop: int | None = None) -> Codes:
        """Codes of rows, to be lowered as they are.

        Raises CheckpointError when a scale is not an fp16 value of normal magnitude, which targets could not hold.
        """
        found = self._codes(name, start, self.shape(name)[0] if stop is None else stop)
        magnitude = np.abs(found.scales)
        exact = (found.scales.astype(np.float16).astype(np.float32) == found.scales).all()
        if not exact or magnitude.min() < SMALLEST_SCALE or magnitude.max() > LARGEST_SCALE:
            raise CheckpointError(
                f"{self._tensors.info(name + '_scale').file}: {name}_scale holds values in rows {start}:{stop} that "
                "fp16 does not: its codes cannot be lowered as they are; requantize with a method other than keep"
            )
        half = 1 << (self.scheme(name).bits - 1)
        for values in (found.codes, found.zeros):
            if values is not None and (values.min() < -half or values.max() >= half):
                raise CheckpointError(f"{self.file(name)}: {name} holds codes beyond its bits, {-half} to {half - 1}")
        return found

    def rows(self, name: str, start: int, stop: int) -> Float32:
        """Float rows, whatever their scales: what a requantization starts from."""
        return dequantize(self._codes(name, start, stop))

    def _codes(self, name: str, start: int, stop: int) -> Codes:
        scheme, columns = self.scheme(name), self.shape(name)[1]
        if name + "_packed" in self._tensors:
            packed = self._tensors.raw(name + "_packed", start, stop).reshape(stop - start, -1)
            codes = unpack(packed[:, : -(-columns * scheme.bits // 8)], scheme.bits)[:, :columns]
        else:
            codes = self._tensors.raw(name, start, stop).view(np.int8).reshape(stop - start, columns)
        info = self._tensors.info(name + "_scale")
        scales = to_float32(self._tensors.raw(name + "_scale", start, stop), info.dtype).reshape(stop - start, -1)
        return Codes(codes, scales, None if scheme.symmetric else self._zeros(name, scheme, start, stop))

    def _zeros(self, name: str, scheme: Scheme, start: int, stop: int) -> Int8:
        info = self._tensors.info(name + "_zero_point")
        if info.dtype == "I8":
            return self._tensors.raw(name + "_zero_point", start, stop).view(np.int8).reshape(stop - start, -1)
        words = self._tensors.raw(name + "_zero_point").view(np.int32).reshape(info.shape)
        return unpack_zeros(words, scheme.bits, self.shape(name)[0])[start:stop]
