"""A few words for writing vector kernels with TVM's IR builder. Knows no kernel.

Loops over Python ranges unroll while the kernel is built; only `serial` and `parallel` make loops in it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as builder_ir

T = builder_ir
Expr = Any
"""A TIR expression or buffer; TVM publishes no types. `T` is its builder, as its own kernels call it."""

# operator pattern "opaque": Relax's fusion leaves the kernel alone
_OPAQUE = 8


def prim_func(name: str, body: Callable[[], None]) -> Expr:
    """The PrimFunc that `body` builds, marked as scheduled so that no later pass touches its loops."""
    with IRBuilder() as builder:
        with T.prim_func(s_tir=True, is_private=True):
            T.func_name(name)
            T.func_attr({"tirx.noalias": True, "op_pattern": _OPAQUE, "tirx.is_scheduled": True})
            body()
    return builder.get()


def argument(name: str, shape: tuple[Expr, ...], dtype: str) -> Expr:
    return T.arg(name, T.buffer(shape, dtype))


def local(count: int, dtype: str = "float32") -> Expr:
    """A small array (under 1 KiB) that LLVM keeps in registers; TVM takes other scopes from its heap."""
    return T.alloc_buffer((count,), dtype, scope="global")


def span(start: Expr, count: int) -> Expr:
    """`count` consecutive indices, or the one index where count is 1."""
    return start if count == 1 else T.ramp(start, 1, count)


def vector(dtype: str, lanes: int) -> str:
    return dtype if lanes == 1 else f"{dtype}x{lanes}"


def fitting(widest: int, *sizes: int) -> int:
    """The most lanes, a power of two up to `widest`, that divide every size."""
    lanes = widest
    while any(size % lanes for size in sizes):
        lanes //= 2
    return lanes


def splat(value: Expr, lanes: int) -> Expr:
    return value if lanes == 1 else T.broadcast(value, lanes)


def f32(value: float, lanes: int = 1) -> Expr:
    return splat(T.float32(value), lanes)


def store(buffer: Expr, index: tuple[Expr, ...], value: Expr) -> None:
    T.buffer_store(buffer, value, list(index))


def bind(value: Expr) -> Expr:
    """Name a value, so that it is computed once."""
    return T.Bind(value)


def shuffle(value: Expr, lanes: int, indices: list[int]) -> Expr:
    """Lanes of `value` [lanes] in any order and number; TVM wants as many lanes in as come out."""
    copies = -(-len(indices) // lanes)
    return tirx.Shuffle([value] * copies, indices)


def total(value: Expr, lanes: int, combine: Callable[[Expr, Expr], Expr] = lambda a, b: a + b) -> Expr:
    """One number from all lanes, by halves: a chain of dependent additions would cost more than the dot product."""
    while lanes > 1:
        half = lanes // 2
        value = bind(value)
        low, high = list(range(half)), list(range(half, lanes))
        value = combine(tirx.Shuffle([value], low), tirx.Shuffle([value], high))
        lanes = half
    return value


def intrinsic(dtype: str, name: str, *args: Expr) -> Expr:
    """A call of an LLVM intrinsic by its full name."""
    return T.call_llvm_pure_intrin(dtype, name, *args)


def exponential(x: Expr, lanes: int) -> Expr:
    """exp of float32 lanes within 2 ulp, clamped to the normal range; vectorizes and needs no libm.

    Cody-Waite reduction by log(2) and the polynomial of Cephes' `expf`.
    """
    x = bind(T.max(T.min(x, f32(88.0, lanes)), f32(-87.3, lanes)))
    n = bind(T.floor(x * f32(1.44269504088896341, lanes) + f32(0.5, lanes)))
    r = bind(x - n * f32(0.693359375, lanes) + n * f32(2.12194440e-4, lanes))
    p = f32(1.9875691500e-4, lanes)
    for c in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1):
        p = p * r + f32(c, lanes)
    p = p * (r * r) + r + f32(1.0, lanes)
    integer = vector("int32", lanes)
    bits = T.shift_left(T.cast(n, integer) + splat(T.int32(127), lanes), splat(T.int32(23), lanes))
    return p * T.reinterpret(vector("float32", lanes), bits)
