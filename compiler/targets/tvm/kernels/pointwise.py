"""The small kernels between matmuls: norms, the embedding, a matrix as floats, look-ups by position, the gated
activation, the last row.

One token is worked on by one thread, several in parallel. Shapes carry a batch dimension of 1.
"""

from __future__ import annotations

from collections.abc import Callable

from compiler.targets.tvm.kernels.exact import decoded, float_lanes, widened
from compiler.targets.tvm.kernels.tir import (
    Expr,
    T,
    argument,
    bind,
    exponential,
    f32,
    fitting,
    local,
    prim_func,
    span,
    splat,
    store,
    total,
)

_LANES = 16


def each_token(tokens: Expr, count: Expr, body: Callable[[Expr], None]) -> None:
    if tokens == 1:
        body(0)
        return
    with T.parallel(0, count) as s:
        body(s)


def rms_norm(name: str, tokens: Expr, columns: int, eps: float, add: bool) -> Expr:
    """x (and residual) float32 [1, tokens, columns], w [columns] → x / rms(x) * w.

    add: of x + residual, which comes out too.
    """
    lanes = fitting(_LANES, columns)

    def body() -> None:
        count = tokens if tokens is not None else T.int64()
        shape = (1, count, columns)
        x = argument("x", shape, "float32")
        residual = argument("residual", shape, "float32") if add else None
        w = argument("w", (columns,), "float32")
        out = argument("out", shape, "float32")
        summed = argument("summed", shape, "float32") if add else x
        every = span(0, lanes)

        def token(s: Expr) -> None:
            squares = local(lanes)
            store(squares, (every,), f32(0.0, lanes))
            with T.serial(0, columns // lanes) as i:
                at = span(i * lanes, lanes)
                value = x[0, s, at]
                if residual is not None:
                    value = bind(value + residual[0, s, at])
                    store(summed, (0, s, at), value)
                store(squares, (every,), squares[every] + value * value)
            mean = total(squares[every], lanes) * T.float32(1.0 / columns)
            factor = bind(T.float32(1) / T.sqrt(mean + T.float32(eps)))
            with T.serial(0, columns // lanes) as i:
                at = span(i * lanes, lanes)
                store(out, (0, s, at), summed[0, s, at] * splat(factor, lanes) * w[at])

        each_token(tokens, count, token)

    return prim_func(name, body)


def layer_norm(name: str, tokens: Expr, columns: int, eps: float) -> Expr:
    """x float32 [1, tokens, columns], w [columns] → (x - mean(x)) / std(x) * w; the variance is that of differences
    from the mean, which keeps its digits where the mean is large."""
    lanes = fitting(_LANES, columns)

    def body() -> None:
        count = tokens if tokens is not None else T.int64()
        shape = (1, count, columns)
        x, w = argument("x", shape, "float32"), argument("w", (columns,), "float32")
        out = argument("out", shape, "float32")
        every = span(0, lanes)

        def token(s: Expr) -> None:
            sums = local(lanes)

            def mean(value: Callable[[Expr], Expr]) -> Expr:
                store(sums, (every,), f32(0.0, lanes))
                with T.serial(0, columns // lanes) as i:
                    store(sums, (every,), sums[every] + value(span(i * lanes, lanes)))
                return bind(total(sums[every], lanes) * T.float32(1.0 / columns))

            middle = mean(lambda at: x[0, s, at])

            def apart(at: Expr) -> Expr:
                return x[0, s, at] - splat(middle, lanes)

            def square(at: Expr) -> Expr:
                difference = bind(apart(at))
                return difference * difference

            factor = bind(T.float32(1) / T.sqrt(mean(square) + T.float32(eps)))
            with T.serial(0, columns // lanes) as i:
                at = span(i * lanes, lanes)
                store(out, (0, s, at), apart(at) * splat(factor, lanes) * w[at])

        each_token(tokens, count, token)

    return prim_func(name, body)


def embedding(name: str, tokens: Expr, rows: int, columns: int, bits: int, group: int, kind: str) -> Expr:
    """ids int64 [1, tokens] and a table as `exact.matmul` takes it → its rows, float32 [1, tokens, columns]."""

    def body() -> None:
        count = tokens if tokens is not None else T.int64()
        ids = argument("ids", (1, count), "int64")
        table = _Table(rows, columns, bits, group, kind)
        out = argument("out", (1, count, columns), "float32")

        def token(s: Expr) -> None:
            table.read(bind(ids[0, s]), lambda at, value: store(out, (0, s, at), value))

        each_token(tokens, count, token)

    return prim_func(name, body)


def dequantize(name: str, rows: int, columns: int, bits: int, group: int, kind: str) -> Expr:
    """A table as `exact.matmul` takes it → all of it, float32 [rows, columns]."""

    def body() -> None:
        table = _Table(rows, columns, bits, group, kind)
        out = argument("out", (rows, columns), "float32")
        with T.parallel(0, rows) as r:
            table.read(r, lambda at, value: store(out, (r, at), value))

    return prim_func(name, body)


class _Table:
    """The arguments of a kernel that are a weight matrix, and its rows as vectors of float32."""

    def __init__(self, rows: int, columns: int, bits: int, group: int, kind: str) -> None:
        self._columns, self._bits, self._group, self._kind = columns, bits, group, kind
        if bits == 16:
            self._table = argument("table", (rows, columns), "uint16" if kind == "bfloat16" else kind)
        else:
            self._table = argument("table", (rows, columns * bits // 8), "uint8")
            self._scales = argument("scales", (rows, columns // group), kind)

    def read(self, row: Expr, put: Callable[[Expr, Expr], None]) -> None:
        """Call put(columns, their values) all along a row."""
        bits, lanes = self._bits, float_lanes(self._columns, self._bits, self._group, _LANES)
        chunk = lanes * (2 if bits == 4 else 1)
        with T.serial(0, self._columns // chunk) as c:
            stored = bind(self._table[row, span(c * lanes, lanes)])
            if bits == 16:
                value = widened(stored, lanes, self._kind)
            else:
                parts = decoded(stored, lanes, bits)
                mixed = [i // 2 + lanes * (i % 2) for i in range(chunk)]
                value = parts[0] if bits == 8 else T.Shuffle([bind(p) for p in parts], mixed)
                scale = T.cast(self._scales[row, T.floordiv(c * chunk, self._group)], "float32")
                value = value * splat(scale, chunk)
            put(span(c * chunk, chunk), value)


def look_up(name: str, tokens: Expr, positions: int, columns: int) -> Expr:
    """at int64 [1, tokens], two tables float32 [positions, columns] → their rows, float32 [1, tokens, columns] each."""

    def body() -> None:
        count = tokens if tokens is not None else T.int64()
        at = argument("at", (1, count), "int64")
        tables = [argument(f"table{i}", (positions, columns), "float32") for i in range(2)]
        outs = [argument(f"out{i}", (1, count, columns), "float32") for i in range(2)]
        with T.serial(0, count) as s:
            row = bind(at[0, s])
            for table, out in zip(tables, outs, strict=True):
                with T.serial(0, columns) as c:
                    store(out, (0, s, c), table[row, c])

    return prim_func(name, body)


def gated_silu(name: str, tokens: Expr, columns: int) -> Expr:
    """x float32 [1, tokens, 2 * columns] → silu(first half) * second half."""
    lanes = fitting(_LANES, columns)

    def body() -> None:
        count = tokens if tokens is not None else T.int64()
        x = argument("x", (1, count, 2 * columns), "float32")
        out = argument("out", (1, count, columns), "float32")

        def token(s: Expr) -> None:
            with T.serial(0, columns // lanes) as c:
                gate = bind(x[0, s, span(c * lanes, lanes)])
                up = x[0, s, span(columns + c * lanes, lanes)]
                value = gate * up / (f32(1.0, lanes) + exponential(f32(0.0, lanes) - gate, lanes))
                store(out, (0, s, span(c * lanes, lanes)), value)

        each_token(tokens, count, token)

    return prim_func(name, body)


def last_token(name: str, tokens: Expr, columns: int) -> Expr:
    """x float32 [1, tokens, columns] → its last token [1, 1, columns]."""
    lanes = fitting(_LANES, columns)

    def body() -> None:
        count = tokens if tokens is not None else T.int64()
        x = argument("x", (1, count, columns), "float32")
        out = argument("out", (1, 1, columns), "float32")
        with T.serial(0, columns // lanes) as c:
            at = span(c * lanes, lanes)
            store(out, (0, 0, at), x[0, count - 1, at])

    return prim_func(name, body)
