"""Checkpoints that come quantized: integer weights of compressed-tensors, read as codes or as float rows.

`pack-quantized` (int32 words `X.weight_packed`, as `quantize/packed.py` writes them) and `int-quantized` (int8
`X.weight`), with scales in any float dtype. What a tensor is follows from what is stored beside it; of the config
only the number of bits of int-quantized weights. Activation quantization is not carried over: activations stay as the
target has them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from compiler.checkpoint import CheckpointError, Float32, TensorFiles, to_float32
from compiler.quantize.packed import LARGEST_SCALE, SMALLEST_SCALE, Codes, dequantize, unpack, unpack_zeros
from compiler.slots import Scheme


class CompressedTensors:
    """The quantized matrices among a checkpoint's tensors; names are those of the float weights, `X.weight`."""

    def __init__(self, tensors: TensorFiles, config: Mapping[str, Any]) -> None:
        self._tensors = tensors
        self._section = config.get("quantization_config") or {}

    def __contains__(self, name: str) -> bool:
        return name + "_packed" in self._tensors or (
            name + "_scale" in self._tensors and name in self._tensors and self._tensors.info(name).dtype == "I8"
        )

    def names(self) -> list[str]:
        """Float names of all packed matrices (int8 ones go by their own)."""
        suffix = "_packed"
        return [n.removesuffix(suffix) for n in self._tensors.names() if n.endswith(".weight" + suffix)]

    def shape(self, name: str) -> tuple[int, ...]:
        if name + "_packed" not in self._tensors:
            return self._tensors.info(name).shape
        if name + "_shape" in self._tensors:
            raw = self._tensors.raw(name + "_shape")
            return tuple(int(v) for v in raw.view(np.int64 if raw.size == 16 else np.int32))
        raise CheckpointError(f"{self._file(name + '_packed')}: {name}_shape is missing beside {name}_packed")

    def scheme(self, name: str) -> Scheme:
        """How a matrix is stored. Raises CheckpointError when it is stored in a way that is not supported."""
        rows, columns = self.shape(name)
        if name + "_g_idx" in self._tensors:
            raise CheckpointError(
                f"{self._file(name + '_g_idx')}: {name} has its groups in activation order (g_idx), which no target "
                "can hold; requantize the original checkpoint"
            )
        scale = self._tensors.info(name + "_scale")
        groups = scale.shape[1] if len(scale.shape) == 2 else 1
        if scale.shape[0] != rows or columns % groups:
            raise CheckpointError(
                f"{scale.file}: {name}_scale has shape {list(scale.shape)}, which does not fit {rows} x {columns}; "
                "scales per group or per output channel are supported"
            )
        if name + "_packed" in self._tensors:
            bits = self._tensors.info(name + "_packed").shape[1] * 32 // columns
        else:
            bits = self._stored_bits()
        if bits not in (4, 8):
            raise CheckpointError(f"{scale.file}: {name} is stored in {bits} bits; 4 and 8 are supported")
        return Scheme(bits, columns // groups if groups > 1 else 0, name + "_zero_point" not in self._tensors)

    def _stored_bits(self) -> int:
        found = {g["weights"]["num_bits"] for g in self._section.get("config_groups", {}).values()}
        return 4 if found == {4} else 8

    def codes(self, name: str, start: int = 0, stop: int | None = None) -> Codes:
        """Codes of rows, to be lowered as they are.

        Raises CheckpointError when a scale is not an fp16 value of normal magnitude, which targets could not hold.
        """
        found = self._codes(name, start, self.shape(name)[0] if stop is None else stop)
        magnitude = np.abs(found.scales)
        exact = (found.scales.astype(np.float16).astype(np.float32) == found.scales).all()
        if not exact or magnitude.min() < SMALLEST_SCALE or magnitude.max() > LARGEST_SCALE:
            raise CheckpointError(
                f"{self._file(name + '_scale')}: {name}_scale holds values in rows {start}:{stop} that fp16 does not: "
                "its codes cannot be lowered as they are; requantize with a rule whose method is not keep"
            )
        return found

    def rows(self, name: str, start: int, stop: int) -> Float32:
        """Float rows, whatever their scales: what a requantization starts from."""
        return dequantize(self._codes(name, start, stop))

    def _codes(self, name: str, start: int, stop: int) -> Codes:
        scheme, columns = self.scheme(name), self.shape(name)[1]
        if name + "_packed" in self._tensors:
            packed = self._tensors.raw(name + "_packed", start, stop).reshape(stop - start, -1)
            codes = unpack(packed[:, : columns * scheme.bits // 8], scheme.bits)
        else:
            codes = self._tensors.raw(name, start, stop).view(np.int8).reshape(stop - start, columns)
        info = self._tensors.info(name + "_scale")
        scales = to_float32(self._tensors.raw(name + "_scale", start, stop), info.dtype).reshape(stop - start, -1)
        return Codes(codes, scales, None if scheme.symmetric else self._zeros(name, scheme, start, stop))

    def _zeros(self, name: str, scheme: Scheme, start: int, stop: int) -> Any:
        info = self._tensors.info(name + "_zero_point")
        if info.dtype == "I8":
            return self._tensors.raw(name + "_zero_point", start, stop).view(np.int8).reshape(stop - start, -1)
        words = self._tensors.raw(name + "_zero_point").view(np.int32).reshape(info.shape)
        return unpack_zeros(words, scheme.bits, self.shape(name)[0])[start:stop]

    def _file(self, tensor: str) -> Any:
        return self._tensors.info(tensor).file
