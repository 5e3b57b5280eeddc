"""Matmuls with float32 activations over packed weights: the exact path, and the only one without integer dot products.

Every code is turned into its float32 value, (code - offset) * scale, in a register inside the reduction; no weight
is stored in full precision anywhere. Activations are first put into the order in which vectors of codes come: with
4 bits a vector of bytes gives the even columns and then the odd ones.
"""

from __future__ import annotations

from compiler.targets.tvm.kernels.tir import (
    Expr,
    T,
    argument,
    bind,
    f32,
    fitting,
    local,
    prim_func,
    shuffle,
    span,
    splat,
    store,
    total,
    vector,
)


def float_lanes(columns: int, bits: int, group: int, widest: int) -> int:
    """float32 values of one vector, at most `widest`, that divide a row of packed bytes and each of its groups."""
    if bits == 16:
        return fitting(widest, columns)
    width = 2 if bits == 4 else 1
    return fitting(widest, columns // width, group // width)


def arrange(name: str, tokens: Expr, columns: int, lanes: int) -> Expr:
    """x float32 [1, tokens, columns] → the same [tokens, columns], in runs of `lanes` even and `lanes` odd columns."""

    def body() -> None:
        count = tokens if tokens is not None else T.int64()
        x = argument("x", (1, count, columns), "float32")
        out = argument("out", (count, columns), "float32")
        with T.serial(0, count) as s:
            with T.serial(0, columns // (2 * lanes)) as c:
                values = bind(x[0, s, span(c * (2 * lanes), 2 * lanes)])
                for half in range(2):
                    part = shuffle(values, 2 * lanes, list(range(half, 2 * lanes, 2)))
                    store(out, (s, span((2 * c + half) * lanes, lanes)), part)

    return prim_func(name, body)


def matmul(
    name: str,
    tokens: Expr,
    rows: int,
    columns: int,
    bits: int,
    group: int,
    lanes: int,
    tile: tuple[int, int],
    kind: str,
) -> Expr:
    """y float32 [1, tokens, rows] from x float32 (4 bits: as `arrange` gives it; else [1, tokens, columns]).

    4 and 8 bits: weights uint8 [rows, bytes], wscales `kind` [rows, groups]. 16 bits: weights [rows, columns] of
    `kind`, float16 or bfloat16 (as uint16). tile: rows and tokens of a register tile.
    """
    tile_rows, tile_tokens = tile
    width = 2 if bits == 4 else 1
    chunk = lanes * width
    every = span(0, lanes)

    def body() -> None:
        count = tokens if tokens is not None else T.int64()
        if bits == 16:
            weights = argument("weights", (rows, columns), "uint16" if kind == "bfloat16" else kind)
            wscales = None
        else:
            weights = argument("weights", (rows, columns * bits // 8), "uint8")
            wscales = argument("wscales", (rows, columns // group), kind)
        x = argument("x", (count, columns) if bits == 4 else (1, count, columns), "float32")
        y = argument("y", (1, count, rows), "float32")

        def values(row: Expr, c: Expr) -> list[Expr]:
            stored = bind(weights[row, span(c * lanes, lanes)])
            if wscales is None:
                return [bind(widened(stored, lanes, kind))]
            scale = splat(T.cast(wscales[row, T.floordiv(c * chunk, group)], "float32"), lanes)
            return [bind(v * scale) for v in decoded(stored, lanes, bits)]

        def tile_of(first: Expr, ids: list[Expr]) -> None:
            sums = [[local(lanes) for _ in ids] for _ in range(tile_rows)]
            for row in sums:
                for cell in row:
                    store(cell, (every,), f32(0.0, lanes))
            with T.serial(0, columns // chunk) as c:
                where = [span((c * width + h) * lanes, lanes) for h in range(width)]
                xs = [[bind(x[t, w] if bits == 4 else x[0, t, w]) for w in where] for t in ids]
                for r in range(tile_rows):
                    for h, value in enumerate(values(first + r, c)):
                        for i in range(len(ids)):
                            store(sums[r][i], (every,), sums[r][i][every] + value * xs[i][h])
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


def decoded(stored: Expr, lanes: int, bits: int) -> list[Expr]:
    """Float32 values, before their scale, of a vector of packed bytes: even columns then odd ones, or all in order."""
    floats, integers = vector("float32", lanes), vector("int32", lanes)
    if bits == 8:
        return [T.cast(T.cast(stored, integers) - splat(T.int32(128), lanes), floats)]
    wide = bind(T.cast(stored, integers))
    low, high = wide & splat(T.int32(15), lanes), T.shift_right(wide, splat(T.int32(4), lanes))
    return [T.cast(part - splat(T.int32(8), lanes), floats) for part in (low, high)]


def widened(stored: Expr, lanes: int, kind: str) -> Expr:
    """Half-precision values as float32; bfloat16 comes as uint16."""
    if kind != "bfloat16":
        return T.cast(stored, vector("float32", lanes))
    bits = T.shift_left(T.cast(stored, vector("uint32", lanes)), splat(T.uint32(16), lanes))
    return T.reinterpret(vector("float32", lanes), bits)
