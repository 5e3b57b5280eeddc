"""Which ops the importer knows, and the patterns among PyTorch's own ops that have kernels of ours. Knows no kernel."""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Sequence
from typing import Any

from tvm import tirx

from artifacts import EdgewrightError
from compiler.graph import Node
from compiler.targets.tvm.captured import PlainNode

Expr = Any
Converter = Callable[[Node, Any], Expr]
_ALL = 1 << 40
# what upstream's converters raise when an op is theirs and its arguments are not
_UPSTREAM = (AssertionError, NotImplementedError, TypeError, ValueError, KeyError, RuntimeError)


def refuse_unlowered(nodes: list[PlainNode], table: Collection[str]) -> None:
    """Raises EdgewrightError naming the ops of a graph for which there is no lowering."""
    missing = set()
    for node in nodes:
        name = node.target if node.target.startswith("edge.") else node.target.split(".", 1)[-1]
        if node.op == "call_function" and name not in table:
            missing.add(node.target)
    if missing:
        raise EdgewrightError(f"tvm: no lowering for {', '.join(sorted(missing))}")


def named(convert: Callable[..., Expr], ours: bool = False) -> Converter:
    """A converter of upstream's that says which op it did not take, and how it was called."""

    def converted(node: Node, importer: Any) -> Expr:
        try:
            return convert(node, importer) if ours else convert(node)
        except _UPSTREAM as error:
            given = ", ".join(map(str, node.args))
            raise EdgewrightError(f"tvm: no lowering for {node.target} of ({given}): {error}") from error

    return converted


def whole_slice(args: Any) -> bool:
    """Whether the arguments of aten.slice (x, axis, start, stop, step) take all of x."""
    start, stop, step = [*args[2:], None, None, None][:3]
    return start in (0, None) and _to_the_end(stop) and step in (1, None)


def last_slice(args: Any) -> bool:
    """Whether they take the last token of [1, tokens, columns]."""
    return tuple(args[1:3]) == (1, -1) and _to_the_end((*args, None)[3])


def _to_the_end(stop: Any) -> bool:
    return stop is None or (isinstance(stop, int) and stop > _ALL)


def gated(node: Node) -> Node | None:
    """The split of a fused gate-and-up projection whose two parts `node` multiplies, or None."""
    silu, up = node.args
    if str(getattr(silu, "target", "")) != "aten.silu.default":
        return None
    parts = (silu.args[0], up)
    if any(getattr(part, "target", None) is not operator.getitem for part in parts):
        return None
    (left, first), (right, second) = (part.args for part in parts)
    fits = left is right and (first, second) == (0, 1) and str(left.target) == "aten.split.Tensor"
    return left if fits else None


def halved(split: Node, x: Expr) -> bool:
    """Whether aten.split (x, size, axis) of floats gives the two halves of every row."""
    rank, axis = len(x.ty.shape), (*split.args, 0)[2]
    return axis % rank == rank - 1 and int(x.ty.shape[-1]) == 2 * split.args[1] and str(x.ty.dtype) == "float32"


def is_size(size: Expr, value: int) -> bool:
    """Whether a dimension is known to be so many."""
    return isinstance(size, int | tirx.IntImm) and int(size) == value


def sizes_of(shape: Sequence[Expr]) -> tuple[int, ...] | None:
    """A shape whose dimensions are all known; None for another."""
    return tuple(map(int, shape)) if all(isinstance(size, int | tirx.IntImm) for size in shape) else None
