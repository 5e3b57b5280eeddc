"""Codes of quantized weights: what they are, how they lie in bytes, and what they stand for.

The packed form is that of compressed-tensors: int32 words, lowest bits first, values stored with an offset of
2**(bits - 1), zero points packed along the rows. As bytes on a little-endian machine the words of 4-bit codes are
nibbles, low first, and those of 8-bit codes one byte each: the block layout of ONNX Runtime's MatMulNBits and of MLX.

Source: compressed-tensors, `compressors/pack_quantized` (v0.20). Knows no file, no method and no target.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Float32 = NDArray[np.float32]
Int8 = NDArray[np.int8]

# the smallest scale that every target holds exactly: below it fp16 is subnormal, which kernels flush
SMALLEST_SCALE = 2.0**-14
LARGEST_SCALE = 65504.0


@dataclass(frozen=True)
class Codes:
    """Quantized rows: codes int8 [rows, columns], scales float32 [rows, groups], zeros int8 [rows, groups] or None."""

    codes: Int8
    scales: Float32
    zeros: Int8 | None = None


def pack(codes: Int8, bits: int) -> Bytes:
    """Codes [rows, columns] in [-2**(bits-1), 2**(bits-1)) to bytes [rows, columns * bits / 8].

    In a file a row that does not fill its last word ends with zeros. Raises ValueError when one does not fill bytes.
    """
    if codes.shape[1] * bits % 8:
        raise ValueError(f"rows of {codes.shape[1]} codes of {bits} bits do not fill bytes")
    unsigned = codes.view(np.uint8) + np.uint8(1 << (bits - 1))
    if bits == 8:
        return unsigned
    low, high = unsigned[:, 0::2], unsigned[:, 1::2]
    return (low & np.uint8(15)) | (high << np.uint8(4))


def unpack(packed: Bytes, bits: int) -> Int8:
    """The inverse of `pack`."""
    if bits == 8:
        return (packed - np.uint8(128)).view(np.int8)
    out = np.empty((packed.shape[0], packed.shape[1] * 2), np.uint8)
    out[:, 0::2] = packed & 15
    out[:, 1::2] = packed >> 4
    out -= np.uint8(8)
    return out.view(np.int8)


def dequantize(codes: Codes) -> Float32:
    """(code - zero) * scale as float32 [rows, columns]."""
    rows, columns = codes.codes.shape
    values = codes.codes.reshape(rows, codes.scales.shape[1], -1).astype(np.float32)
    if codes.zeros is not None:
        values -= codes.zeros[:, :, None]
    values *= codes.scales[:, :, None]
    return values.reshape(rows, columns)


def pack_zeros(zeros: Int8, bits: int) -> NDArray[np.int32]:
    """Zero points [rows, groups] to int32 [ceil(rows * bits / 32), groups], packed along the rows."""
    rows, groups = zeros.shape
    padded = np.zeros((-(-rows * bits // 32) * 32 // bits, groups), np.int8)
    padded[:rows] = zeros
    words = pack(np.ascontiguousarray(padded.T), bits).view(np.int32).T.copy()
    # padding rows must be zero bits, as the format's own packer leaves them
    if rows * bits % 32:
        words[-1] &= np.int32((1 << rows * bits % 32) - 1)
    return words


def unpack_zeros(words: NDArray[np.int32], bits: int, rows: int) -> Int8:
    """The inverse of `pack_zeros`."""
    return np.ascontiguousarray(unpack(np.ascontiguousarray(words.T).view(np.uint8), bits).T[:rows])
