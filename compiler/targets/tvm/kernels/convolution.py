"""Convolutions of float32 in one and two dimensions: vectors run along a row of the output, the rows of a register
tile are output channels.

What a tile reads lies side by side: an image that is padded or read in strides is first laid out so (`lay_out`). A
last tile that does not fill its row begins earlier and computes some values again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from compiler.targets.tvm.kernels.tir import Expr, T, argument, bind, f32, local, prim_func, span, splat, store

_TASKS = 8  # at the least, where a picture is too small to be shared by its rows: for phones' cores


@dataclass(frozen=True)
class Convolution:
    """Sizes of one: (height, width) of input, kernel, stride, padding to either side, and dilation; one dimension is a
    height of 1. Channels are counted over all groups. bias, relu: what follows in the same kernel."""

    channels: int
    rows: int
    groups: int
    size: tuple[int, int]
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    bias: bool = False
    relu: bool = False

    @property
    def flat(self) -> bool:
        """Whether each value is of one pixel alone, so that the image can be taken as one long row."""
        return self.kernel == (1, 1) == self.stride and self.padding == (0, 0)

    @property
    def out(self) -> tuple[int, int]:
        """Height and width of the output."""
        height, width = (
            (n + 2 * p - d * (k - 1) - 1) // s + 1
            for n, p, d, k, s in zip(self.size, self.padding, self.dilation, self.kernel, self.stride, strict=True)
        )
        return height, width

    @property
    def laid_out(self) -> tuple[int, int, int, int]:
        """Of one that is not flat, [channels, height, stride, columns]: column q * stride + p of the padded image is
        [..., p, q]."""
        (height, width), (above, beside), stride = self.size, self.padding, self.stride[1]
        return self.channels, height + 2 * above, stride, -(-(width + 2 * beside) // stride)


def convolution_of(
    image: tuple[int, ...],
    weights: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Convolution:
    """Of the arguments of a convolution in one or two dimensions: shapes [1, channels, …] and [rows, …]."""

    def both(given: Sequence[int], one: int) -> tuple[int, int]:
        return (given[0], given[1]) if len(given) == 2 else (one, given[0])

    return Convolution(
        channels=image[1],
        rows=weights[0],
        groups=groups,
        size=both(image[2:], 1),
        kernel=both(weights[2:], 1),
        stride=both(stride, 1),
        padding=both(padding, 0),
        dilation=both(dilation, 1),
    )


def lay_out(name: str, shape: tuple[int, ...], at: Convolution) -> Expr:
    """x float32 `shape`, [1, channels, height, width] or without the height → `at.laid_out`, zeros around the image."""
    (height, width), (above, beside) = at.size, at.padding
    channels, rows, phases, columns = at.laid_out

    def body() -> None:
        x, out = argument("x", shape, "float32"), argument("out", at.laid_out, "float32")
        with T.parallel(0, channels) as c:
            with T.serial(0, rows) as y:
                for phase in range(phases):
                    with T.serial(0, columns) as q:
                        store(out, (c, y, phase, q), T.float32(0))
            with T.serial(0, height) as y:
                for phase in range(phases):
                    # the columns of the image that are this phase's: from the first q that is not padding
                    first = -(-(beside - phase) // phases) if beside > phase else 0
                    count = -(-(width + beside - phase) // phases) - first
                    if count > 0:
                        with T.serial(0, count) as q:
                            value = x[_place(shape, c, y, (first + q) * phases + phase - beside)]
                            store(out, (c, y + above, phase, first + q), value)

    return prim_func(name, body)


def convolve(
    name: str, given: tuple[int, ...], shape: tuple[int, ...], at: Convolution, lanes: int, tile: tuple[int, int]
) -> Expr:
    """x float32 `given`, which is `at.laid_out` or, of a flat one, the image itself; weights float32 [rows, columns];
    with `at.bias` a bias float32 [rows] → float32 `shape`, [1, rows, height, width] or without the height.

    tile: rows and vectors of `lanes` of a register tile.
    """
    height, width = (1, at.out[0] * at.out[1]) if at.flat else at.out
    inside, beside = at.channels // at.groups, at.rows // at.groups
    tile_rows = next(count for count in range(min(tile[0], beside), 0, -1) if beside % count == 0)
    while lanes > width:
        lanes //= 2
    vectors = min(tile[1], width // lanes)
    across, tiles = -(-width // (vectors * lanes)), at.rows // tile_rows
    wanted = -(-_TASKS // (height * across))
    shares = next((count for count in range(wanted, tiles) if tiles % count == 0), tiles)
    (tall, wide), (step, stride) = at.kernel, at.stride
    every = span(0, lanes)

    def body() -> None:
        x = argument("x", given, "float32")
        weights = argument("weights", (at.rows, inside * tall * wide), "float32")
        bias = argument("bias", (at.rows,), "float32") if at.bias else None
        out = argument("out", shape, "float32")

        def read(c: Expr, line: Expr, phase: int, q: Expr) -> Expr:
            return x[_place(given, c, 0, q) if at.flat else (c, line, phase, q)]

        def tile_of(row: Expr, y: Expr, start: Expr) -> None:
            sums = [[local(lanes) for _ in range(vectors)] for _ in range(tile_rows)]
            for r, cells in enumerate(sums):
                begin = f32(0.0, lanes) if bias is None else splat(bind(bias[row + r]), lanes)
                for cell in cells:
                    store(cell, (every,), begin)
            first = bind(T.floordiv(row, beside) * inside)
            with T.serial(0, inside) as c:
                with T.serial(0, tall) as ky:
                    for kx in range(wide):
                        shift, phase = divmod(kx * at.dilation[1], stride)
                        line = y * step + ky * at.dilation[0]
                        xs = [
                            bind(read(first + c, line, phase, span(start + (shift + v * lanes), lanes)))
                            for v in range(vectors)
                        ]
                        for r in range(tile_rows):
                            weight = splat(bind(weights[row + r, (c * tall + ky) * wide + kx]), lanes)
                            for cell, values in zip(sums[r], xs, strict=True):
                                store(cell, (every,), cell[every] + weight * values)
            for r in range(tile_rows):
                for v, cell in enumerate(sums[r]):
                    value = T.max(cell[every], f32(0.0, lanes)) if at.relu else cell[every]
                    store(out, _place(shape, row + r, y, span(start + v * lanes, lanes)), value)

        with T.parallel(0, height * across * shares) as task:
            share, place = bind(T.floordiv(task, height * across)), bind(T.floormod(task, height * across))
            y = bind(T.floordiv(place, across))
            start = bind(T.min(T.floormod(place, across) * (vectors * lanes), width - vectors * lanes))
            with T.serial(0, tiles // shares) as t:
                tile_of(bind((share * (tiles // shares) + t) * tile_rows), y, start)

    return prim_func(name, body)


def _place(shape: tuple[int, ...], channel: Expr, y: Expr, column: Expr) -> tuple[Expr, ...]:
    """Where it is in [1, channels, height, width] or [1, channels, width]. Columns beyond a row are those of the next,
    which is how a flat convolution goes through an image."""
    return (0, channel, y, column) if len(shape) == 4 else (0, channel, column)
