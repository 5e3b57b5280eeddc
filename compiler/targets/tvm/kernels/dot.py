"""Integer matmuls over packed weights: activations to int8, then dot products with the dequantization inside.

    y[s, n] = sum over groups g of  wscale[n, g] * xscale[s, g] * sum over k in g of (code[n, k] - offset) * xcode[s, k]

Codes are read as the compressed-tensors bytes lie in the file: a byte holds code 2j in its low and 2j + 1 in its high
nibble (4 bits), or one code plus 128 (8 bits). Activations are rounded per token and weight group, and laid out so
that a block of weight bytes meets them in order: first the partners of the low nibbles, then those of the high ones.
The offset never enters the loop: accumulators start at `start` = -offset * (sum of the activation codes of a lane).

Two layouts: rows (`vpdpbusd`, `pmaddubsw`, `sdot`), and pairs of tokens by eight bytes for `smmla`.
"""

from __future__ import annotations

from dataclasses import dataclass

from compiler.targets.tvm.isa import Isa
from compiler.targets.tvm.kernels.tir import (
    Expr,
    T,
    argument,
    bind,
    f32,
    intrinsic,
    local,
    prim_func,
    shuffle,
    span,
    splat,
    store,
    total,
    vector,
)

_LANES = 16
_CHUNK = 32
_LARGEST = 127.0


@dataclass(frozen=True)
class Layout:
    """How the bytes of a row of weights meet the vectors of an instruction set.

    group: columns of a scale. vector_bytes: weight bytes of a block; `codes` its columns; `lanes` its 32-bit sums.
    unit: columns after which sums are scaled, a whole number of blocks and of groups. offset: of the stored codes.
    paired: tokens lie in pairs, for `smmla`.
    """

    columns: int
    bits: int
    group: int
    vector_bytes: int
    unit: int
    offset: int
    paired: bool

    @property
    def codes(self) -> int:
        return self.vector_bytes * 8 // self.bits

    @property
    def lanes(self) -> int:
        return self.vector_bytes // 4

    @property
    def units(self) -> int:
        return self.columns // self.unit

    @property
    def blocks(self) -> int:
        """Blocks of a unit."""
        return self.unit // self.codes

    @property
    def groups(self) -> int:
        """Groups of a unit."""
        return self.unit // self.group

    @property
    def starts(self) -> int:
        """Start values of a unit and token; none where the dot product reads signed codes without an offset."""
        return 0 if not self.offset else 1 if self.paired else self.lanes


def layout(columns: int, bits: int, group: int, isa: Isa, paired: bool = False) -> Layout | None:
    """The widest layout that takes these weights, or None when none does."""
    offset = 8 if bits == 4 else 0 if isa.signed else 128
    for vector_bytes in isa.dot_bytes:
        codes = vector_bytes * 8 // bits
        unit = max(codes, group)
        if columns % unit == 0 and unit % codes == 0 and unit % group == 0 and group >= _CHUNK:
            return Layout(columns, bits, group, vector_bytes, unit, offset, paired)
    return None


def quantize(name: str, tokens: Expr, shape: Layout) -> Expr:
    """x float32 [1, tokens, columns] → codes int8, scales float32 [rows, groups of the row] and starts int32.

    Rows: codes [tokens, columns], starts [tokens, units, lanes]. Pairs: codes [pairs, columns, 2],
    scales [pairs, groups, 2], starts [pairs, units, 2]. tokens: a number, or None for any; an odd last token is its
    own pair. Scales map the largest magnitude of a group to 127; a group of zeros has scale 0.
    """
    k, g = shape.columns, shape.group

    def body() -> None:
        count = tokens if tokens is not None else T.int64()
        x = argument("x", (1, count, k), "float32")
        rows, width = (T.int64(), 2) if shape.paired else (count, 1)
        codes = argument("codes", (rows, k * width), "int8")
        scales = argument("scales", (rows, k // g * width), "float32")
        starts = (
            argument("starts", (rows, shape.units, max(shape.starts, 1) * width), "int32") if shape.starts else None
        )

        def token(s: Expr) -> None:
            row, of_pair = (T.floordiv(s, 2), T.floormod(s, 2)) if shape.paired else (s, 0)
            source = T.min(s, count - 1) if shape.paired else s
            with T.serial(0, k // g) as j:
                largest = local(_LANES)
                store(largest, (span(0, _LANES),), f32(0.0, _LANES))
                with T.serial(0, g // _LANES) as i:
                    values = x[0, source, span(j * g + i * _LANES, _LANES)]
                    store(largest, (span(0, _LANES),), T.max(largest[span(0, _LANES)], T.abs(values)))
                peak = total(largest[span(0, _LANES)], _LANES, T.max)
                store(scales, (row, j * width + of_pair), peak * T.float32(1.0 / _LARGEST))
            with T.serial(0, shape.units) as u:
                sums = local(max(shape.starts, 1), "int32")
                if starts is not None:
                    store(sums, (span(0, shape.starts),), splat(T.int32(0), shape.starts))
                with T.serial(0, shape.blocks) as b:
                    _encode_block(x, codes, scales, sums, source, row, of_pair, u, b, shape)
                if starts is not None:
                    first = of_pair if shape.paired else 0
                    negative = sums[span(0, shape.starts)] * splat(T.int32(-shape.offset), shape.starts)
                    store(starts, (row, u, span(first, shape.starts)), negative)

        if tokens == 1 and not shape.paired:
            token(0)
        else:
            with T.parallel(0, rows * 2 if shape.paired else count) as s:
                token(s)

    return prim_func(name, body)


def _encode_block(
    x: Expr, codes: Expr, scales: Expr, sums: Expr, source: Expr, row: Expr, of_pair: Expr, u: Expr, b: Expr, at: Layout
) -> None:
    """Round one block of one token and write it in the order in which the weights meet it."""
    width = 2 if at.paired else 1
    chunk = min(_CHUNK, at.codes)
    block = u * at.blocks + b
    for c in range(at.codes // chunk):
        first = block * at.codes + c * chunk
        scale = bind(scales[row, T.floordiv(first, at.group) * width + of_pair])
        inverse = bind(T.Select(scale > T.float32(0), T.float32(1) / scale, T.float32(0)))
        values = x[0, source, span(first, chunk)] * splat(inverse, chunk)
        wide = bind(T.cast(T.nearbyint(values), vector("int32", chunk)))
        narrow = bind(T.cast(wide, vector("int8", chunk)))
        parts = [narrow]
        if at.bits == 4:
            parts = [bind(shuffle(narrow, chunk, list(range(i, chunk, 2)))) for i in range(2)]
        size = chunk // len(parts)
        for i, part in enumerate(parts):
            if at.paired:  # eight bytes of this token, then eight of the other
                for h in range(size // 8):
                    eighth = (block * at.codes // 8 + i * (size // 8) + h) * 16 + of_pair * 8
                    store(codes, (row, span(eighth, 8)), shuffle(part, size, list(range(8 * h, 8 * h + 8))))
            else:
                byte = block * at.codes + i * at.vector_bytes + c * size
                store(codes, (row, span(byte, size)), part)
        if not at.offset:
            continue
        if at.paired:
            store(sums, (0,), sums[0] + total(wide, chunk))
            continue
        per_lane = 32 // at.bits
        lanes = chunk // per_lane
        found = shuffle(wide, chunk, list(range(0, chunk, per_lane)))
        for i in range(1, per_lane):
            found = found + shuffle(wide, chunk, list(range(i, chunk, per_lane)))
        where = span(c * lanes, lanes)
        store(sums, (where,), sums[where] + found)


def matmul(name: str, tokens: Expr, rows: int, shape: Layout, isa: Isa, tile: tuple[int, int], scale: str) -> Expr:
    """weights uint8 [rows, bytes], wscales [rows, groups] (float16 or float32), and what `quantize` gives
    → y float32 [1, tokens, rows], for layouts by rows. tile: rows and tokens of a register tile.
    """
    tile_rows, tile_tokens = tile
    lanes, size = shape.lanes, shape.vector_bytes

    def body() -> None:
        count = tokens if tokens is not None else T.int64()
        weights = argument("weights", (rows, shape.columns * shape.bits // 8), "uint8")
        wscales = argument("wscales", (rows, shape.columns // shape.group), scale)
        codes = argument("codes", (count, shape.columns), "int8")
        xscales = argument("xscales", (count, shape.columns // shape.group), "float32")
        starts = argument("starts", (count, shape.units, lanes), "int32") if shape.starts else None
        y = argument("y", (1, count, rows), "float32")
        every = span(0, lanes)

        def scaled(u: Expr, row: Expr, token: Expr) -> Expr:
            if shape.groups == 1:
                return splat(T.cast(wscales[row, u], "float32") * xscales[token, u], lanes)
            groups = span(u * shape.groups, shape.groups)
            factors = bind(T.cast(wscales[row, groups], vector("float32", shape.groups)) * xscales[token, groups])
            return shuffle(factors, shape.groups, [i * shape.groups // lanes for i in range(lanes)])

        def add_unit(u: Expr, first: Expr, ids: list[Expr], sums: list[list[Expr]]) -> None:
            parts = [local(lanes, "int32") for _ in range(tile_rows * len(ids))] if shape.blocks > 1 else []

            def begin(i: int) -> Expr:
                return splat(T.int32(0), lanes) if starts is None else starts[ids[i], u, every]

            def add_block(b: Expr, values: dict[tuple[int, int], Expr]) -> None:
                at = u * shape.blocks + b
                halves = 2 if shape.bits == 4 else 1
                xs = [[bind(codes[t, span(at * shape.codes + h * size, size)]) for h in range(halves)] for t in ids]
                for r in range(tile_rows):
                    packed = bind(weights[first + r, span(at * size, size)])
                    for h, part in enumerate(_unpacked(packed, size, shape, isa)):
                        for i in range(len(ids)):
                            values[r, i] = bind(_dot(isa, size, values[r, i], part, xs[i][h]))

            if shape.blocks == 1:
                values = {(r, i): begin(i) for r in range(tile_rows) for i in range(len(ids))}
                add_block(0, values)
            else:
                for r in range(tile_rows):
                    for i in range(len(ids)):
                        store(parts[r * len(ids) + i], (every,), begin(i))
                with T.serial(0, shape.blocks) as b:
                    values = {(r, i): parts[r * len(ids) + i][every] for r in range(tile_rows) for i in range(len(ids))}
                    add_block(b, values)
                    for (r, i), value in values.items():
                        store(parts[r * len(ids) + i], (every,), value)
                values = {(r, i): parts[r * len(ids) + i][every] for r in range(tile_rows) for i in range(len(ids))}
            for r in range(tile_rows):
                for i, token in enumerate(ids):
                    part = T.cast(values[r, i], vector("float32", lanes)) * scaled(u, first + r, token)
                    store(sums[r][i], (every,), sums[r][i][every] + part)

        def tile_of(first: Expr, ids: list[Expr]) -> None:
            sums = [[local(lanes) for _ in ids] for _ in range(tile_rows)]
            for row in sums:
                for cell in row:
                    store(cell, (every,), f32(0.0, lanes))
            with T.serial(0, shape.units) as u:
                add_unit(u, first, ids, sums)
            for r in range(tile_rows):
                for i, token in enumerate(ids):
                    store(y, (0, token, first + r), total(sums[r][i][every], lanes))

        with T.parallel(0, rows // tile_rows) as n:
            if tokens == 1:
                tile_of(n * tile_rows, [0])
            else:
                with T.serial(0, T.floordiv(count + (tile_tokens - 1), tile_tokens)) as m:
                    # a last tile that is not full computes its last token again
                    ids = [bind(T.min(m * tile_tokens + i, count - 1)) for i in range(tile_tokens)]
                    tile_of(n * tile_rows, ids)

    return prim_func(name, body)


def _unpacked(packed: Expr, size: int, shape: Layout, isa: Isa) -> list[Expr]:
    """The byte vectors of codes in a vector of packed weights, as the dot product reads them."""
    if shape.bits == 8:
        if not isa.signed:
            return [packed]
        return [bind(T.reinterpret(vector("int8", size), packed ^ splat(T.uint8(128), size)))]
    low = packed & splat(T.uint8(15), size)
    high = T.shift_right(packed, splat(T.uint8(4), size))
    if not isa.signed:
        return [bind(low), bind(high)]
    return [bind(T.reinterpret(vector("int8", size), part)) for part in (low, high)]


def _dot(isa: Isa, size: int, start: Expr, weights: Expr, codes: Expr) -> Expr:
    """start int32 [size / 4] + the products of weights and activation codes, four bytes to a lane."""
    dtype = vector("int32", size // 4)
    if isa.dot == "vpdpbusd":
        return intrinsic(dtype, f"llvm.x86.avx512.vpdpbusd.{size * 8}", start, weights, codes)
    if isa.dot == "sdot":
        return intrinsic(dtype, "llvm.aarch64.neon.sdot.v4i32.v16i8", start, weights, codes)
    # pmaddubsw wants unsigned by signed and saturates at 16 bits: |w| <= 128 by |x| <= 127, twice, just fits
    words, suffix = vector("int16", size // 2), "" if size == 32 else ".128"
    family = "avx2" if size == 32 else "ssse3"
    magnitude = T.reinterpret(vector("uint8", size), T.Select(weights < splat(T.int8(0), size), -weights, weights))
    zero = splat(T.int8(0), size)
    turned = T.Select(weights < zero, -codes, codes)
    pairs = intrinsic(words, f"llvm.x86.{family}.pmadd.ub.sw{suffix}", magnitude, turned)
    ones = splat(T.int16(1), size // 2)
    family = "avx2" if size == 32 else "sse2"
    return start + intrinsic(dtype, f"llvm.x86.{family}.pmadd.wd", pairs, ones)


def matmul_pairs(name: str, rows: int, shape: Layout, tile: tuple[int, int], scale: str) -> Expr:
    """As `matmul`, for layouts in pairs of tokens: `smmla` gives 2 rows by 2 tokens. tile: rows and tokens, even."""
    row_pairs, token_pairs = tile[0] // 2, tile[1] // 2
    every = span(0, 4)

    def body() -> None:
        count, pairs = T.int64(), T.int64()
        weights = argument("weights", (rows, shape.columns * shape.bits // 8), "uint8")
        wscales = argument("wscales", (rows, shape.columns // shape.group), scale)
        codes = argument("codes", (pairs, shape.columns * 2), "int8")
        xscales = argument("xscales", (pairs, shape.columns // shape.group * 2), "float32")
        starts = argument("starts", (pairs, shape.units, 2), "int32") if shape.starts else None
        y = argument("y", (1, count, rows), "float32")

        def add_unit(u: Expr, first: Expr, ids: list[Expr], sums: list[list[Expr]]) -> None:
            parts = [[local(4, "int32") for _ in ids] for _ in range(row_pairs)]
            for r in range(row_pairs):
                for i, pair in enumerate(ids):
                    begin = splat(T.int32(0), 4)
                    if starts is not None:
                        begin = shuffle(bind(starts[pair, u, span(0, 2)]), 2, [0, 1, 0, 1])
                    store(parts[r][i], (every,), begin)
            with T.serial(0, shape.blocks) as b:
                at = u * shape.blocks + b
                vectors = shape.codes // 8
                xs = [[bind(codes[p, span((at * vectors + v) * 16, 16)]) for v in range(vectors)] for p in ids]
                for r in range(row_pairs):
                    upper, lower = (weights[first + 2 * r + j, span(at * 16, 16)] for j in range(2))
                    sides = [_signed_parts(bind(side), shape) for side in (upper, lower)]
                    for h in range(vectors // 2):
                        for half in range(2):
                            lanes = [*range(8 * half, 8 * half + 8), *range(16 + 8 * half, 24 + 8 * half)]
                            both = bind(T.Shuffle([sides[0][h], sides[1][h]], lanes))
                            for i in range(len(ids)):
                                found = intrinsic(
                                    "int32x4",
                                    "llvm.aarch64.neon.smmla.v4i32.v16i8",
                                    parts[r][i][every],
                                    both,
                                    xs[i][2 * h + half],
                                )
                                store(parts[r][i], (every,), found)
            for r in range(row_pairs):
                two = [T.cast(wscales[first + 2 * r + j, u], "float32") for j in range(2)]
                of_rows = bind(T.Shuffle([two[0], two[1]], [0, 1]))
                of_rows = bind(shuffle(of_rows, 2, [0, 0, 1, 1]))
                for i, pair in enumerate(ids):
                    of_tokens = shuffle(bind(xscales[pair, span(u * 2, 2)]), 2, [0, 1, 0, 1])
                    part = T.cast(parts[r][i][every], "float32x4") * (of_rows * of_tokens)
                    store(sums[r][i], (every,), sums[r][i][every] + part)

        with T.parallel(0, rows // (2 * row_pairs)) as n:
            with T.serial(0, T.floordiv(pairs + (token_pairs - 1), token_pairs)) as m:
                ids = [bind(T.min(m * token_pairs + i, pairs - 1)) for i in range(token_pairs)]
                sums = [[local(4) for _ in ids] for _ in range(row_pairs)]
                for row in sums:
                    for cell in row:
                        store(cell, (every,), f32(0.0, 4))
                with T.serial(0, shape.units) as u:
                    add_unit(u, n * (2 * row_pairs), ids, sums)
                for r in range(row_pairs):
                    for i, pair in enumerate(ids):
                        for j in range(4):
                            token = T.min(pair * 2 + j % 2, count - 1)
                            row = n * (2 * row_pairs) + 2 * r + j // 2
                            if j % 2 == 0:
                                store(y, (0, token, row), sums[r][i][j])
                            else:  # the second token of an odd last pair is not there
                                with T.If(pair * 2 + 1 < count), T.Then():
                                    store(y, (0, token, row), sums[r][i][j])

    return prim_func(name, body)


def _signed_parts(packed: Expr, shape: Layout) -> list[Expr]:
    if shape.bits == 8:
        return [bind(T.reinterpret("int8x16", packed ^ splat(T.uint8(128), 16)))]
    low, high = packed & splat(T.uint8(15), 16), T.shift_right(packed, splat(T.uint8(4), 16))
    return [bind(T.reinterpret("int8x16", part)) for part in (low, high)]
