"""Instruction sets, as the kernels see them: which integer dot product there is and how wide its vectors are.

A dot product takes two byte vectors and adds, into each 32-bit lane, the products of its four bytes. Codes of 4 bits
(0..15) fit every kind of byte; codes of 8 bits are stored with an offset of 128, as unsigned bytes.

Light: imports no framework. What a triple is made of lives in `triples.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Dot = Literal["vpdpbusd", "pmaddubsw", "sdot"]


@dataclass(frozen=True)
class Isa:
    """What kernels are scheduled for.

    dot: the integer dot product, or None where activations stay float32.
    dot_bytes: vector widths it comes in, widest first.
    matrix: whether `smmla` multiplies 2 x 8 by 8 x 2 bytes (AArch64 i8mm).
    float_lanes: float32 values of one vector of the exact kernels.
    signed: whether the dot product reads weights as signed bytes (8-bit codes then lose their offset first).
    """

    name: str
    dot: Dot | None
    dot_bytes: tuple[int, ...]
    matrix: bool
    float_lanes: int
    signed: bool


AVX512_VNNI = Isa("avx512vnni", "vpdpbusd", (64, 32, 16), False, 16, False)
AVX2 = Isa("avx2", "pmaddubsw", (32, 16), False, 8, True)
NEON = Isa("neon", None, (), False, 8, True)
NEON_DOTPROD = Isa("dotprod", "sdot", (16,), False, 8, True)
NEON_I8MM = Isa("i8mm", "sdot", (16,), True, 8, True)
