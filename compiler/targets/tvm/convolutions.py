"""The convolutions of a function, each one kernel with the bias and the relu behind it where nobody else reads between.

What lives here: which kernel a convolution gets, and what is taken into it. What must not: how it computes
(`kernels/convolution.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tvm import relax

from compiler.graph import Node
from compiler.targets.tvm import aten, schedules
from compiler.targets.tvm.isa import Isa
from compiler.targets.tvm.kernels.convolution import Convolution, convolution_of, convolve, lay_out

Expr = Any


@dataclass(frozen=True)
class _Made:
    """A convolution: what it is given, laid out or flat (`given`), and the shape it gives."""

    at: Convolution
    inputs: tuple[Expr, ...]
    given: tuple[int, ...]
    out: tuple[int, ...]


class Convolutions:
    """Emits those of one function. kernels: its `Kernels`; call: `Lowering._call`."""

    def __init__(self, kernels: Any, call: Callable[..., Expr], isa: Isa) -> None:
        self._kernels, self._call, self._isa = kernels, call, isa
        self._made: dict[str, _Made] = {}  # by the name of the node that stands for it so far

    def emit(self, node: Node, importer: Any, x: Expr, weights: Expr, sizes: Sequence[Any]) -> Expr:
        """x times weights float32 [rows, columns]; sizes: those of the weight, stride, padding, dilation, groups. In
        three dimensions, and of several images or an unknown number, by TOPI's loops."""
        shape, stride, padding, dilation, groups = sizes
        emit, image = importer.block_builder.emit, aten.sizes_of(x.ty.shape)
        if len(stride) == 3 or image is None or image[0] != 1:
            upstream = {1: relax.op.nn.conv1d, 2: relax.op.nn.conv2d, 3: relax.op.nn.conv3d}[len(stride)]
            weight = emit(relax.op.reshape(weights, shape))
            return emit(upstream(x, weight, strides=stride, padding=padding, dilation=dilation, groups=groups))
        at = convolution_of(image, shape, stride, padding, dilation, groups)
        given = image if at.flat else at.laid_out
        if not at.flat:
            kernel = self._kernels.get("lay_out", lambda n: lay_out(n, image, at), image, at)
            x = self._call(importer, kernel, [x], (given, "float32"))
        return self._put(node, importer, _Made(at, (x, weights), given, (1, at.rows, *at.out[4 - len(image) :])))

    def biased(self, node: Node, importer: Any, vector: Expr, axis: int) -> Expr | None:
        """The node as part of the convolution that it adds channels' biases to; None where it does no such thing."""
        made = self._before(node)
        if made is None or axis != 1 or made.at.bias or made.at.relu:
            return None
        return self._put(node, importer, replace(made, at=replace(made.at, bias=True), inputs=(*made.inputs, vector)))

    def relu(self, node: Node, importer: Any) -> Expr | None:
        """The same of a relu."""
        made = self._before(node)
        return None if made is None else self._put(node, importer, replace(made, at=replace(made.at, relu=True)))

    def _before(self, node: Node) -> _Made | None:
        """The convolution that a node alone reads."""
        read: Any = node.args[0]
        return self._made.get(read.name) if len(read.users) == 1 else None

    def _put(self, node: Node, importer: Any, made: _Made) -> Expr:
        """What was emitted before it without its bias or relu is read by nobody, and dropped."""
        self._made[node.name] = made
        tile, lanes = schedules.CONVOLUTION[self._isa.name], self._isa.float_lanes
        about = made.given, made.out, made.at
        kernel = self._kernels.get("convolve", lambda n: convolve(n, *about, lanes, tile), *about)
        return self._call(importer, kernel, list(made.inputs), (made.out, "float32"))
