"""Register tiles of the matmul kernels: (rows, tokens), by instruction set. Light.

One token is bound by memory. On x86 one row at a time won by far (25 GB/s a core against 11 with four rows): hardware
prefetchers follow one stream that never jumps. On ARM a second row hides the latency of in-order cores, which was not
measured on a phone. Many tokens are bound by registers: 32 vectors on AVX-512 and AArch64, 16 on AVX2.
`fitting` shrinks a tile to rows that it divides.
"""

from __future__ import annotations

Tile = tuple[int, int]

GEMV: dict[str, Tile] = {
    "avx512vnni": (1, 1),
    "avx2": (1, 1),
    "neon": (2, 1),
    "dotprod": (2, 1),
    "i8mm": (2, 1),
}
GEMM: dict[str, Tile] = {
    "avx512vnni": (4, 4),
    "avx2": (2, 2),
    "neon": (2, 2),
    "dotprod": (4, 4),
    "i8mm": (4, 8),
}
EXACT_GEMV: Tile = (1, 1)
EXACT_GEMM: dict[str, Tile] = {"avx512vnni": (4, 4), "avx2": (2, 2), "neon": (2, 4), "dotprod": (2, 4), "i8mm": (2, 4)}

# rows and vectors of pixels: as many sums as leave registers for what is multiplied
CONVOLUTION: dict[str, Tile] = {"avx512vnni": (4, 4), "avx2": (4, 2), "neon": (4, 2), "dotprod": (4, 2), "i8mm": (4, 2)}


def fitting(tile: Tile, rows: int) -> Tile:
    """The tile with the most rows, at most its own, that divides `rows`."""
    height = tile[0]
    while rows % height:
        height //= 2
    return height, tile[1]
