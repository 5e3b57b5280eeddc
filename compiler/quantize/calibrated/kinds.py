"""Ops that read a matrix: how each computes with one, and what its inputs look like to a rounder.

An op that joins them is one entry here. What must not live here: anything that knows how a matrix is quantized, or in
which graph its op stands.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from compiler.graph import Node, arguments, op_name
from compiler.matmul import linear

if TYPE_CHECKING:
    from torch import Tensor

Lookup = Callable[["Tensor"], "Tensor"]
"""Rows of a matrix, float32, by their numbers, int64 [count]."""


@dataclass(frozen=True)
class Kind:
    """One op. Its first argument is its input, the others are what `compute` and `columns` may look at.

    compute: the op with its slots' matrix: float32 [rows of all slots, columns], or a `Lookup` where it is not `dense`.
    columns: its input as [positions, columns], each of which every row of the matrix is multiplied by. None where
    inputs are one-hot: a row of the matrix is an output itself.
    shares: whether ops with the same input have the same columns.
    """

    compute: Callable[[Node, Tensor, Any], Tensor]
    columns: Callable[[Node, Tensor], Tensor] | None
    dense: bool
    shares: bool


def _pick(node: Node, ids: Tensor, rows: Lookup) -> Tensor:
    unique, inverse = ids.unique(return_inverse=True)
    return rows(unique)[inverse]


def _convolve(node: Node, x: Tensor, matrix: Tensor) -> Tensor:
    found = arguments(node)
    zeros = [0] * len(found["stride"])
    steps = found["stride"], found["padding"], found["dilation"]
    return torch.convolution(x, matrix.reshape(found["shape"]), None, *steps, False, zeros, found["groups"])


def _patches(node: Node, x: Tensor) -> Tensor:
    """What a convolution's outputs see, [positions, in / groups * kernel]; what the groups see, one after another."""
    found = arguments(node)
    x = torch.cat(x.chunk(found["groups"], 1))
    kernel, where = found["shape"][2:], range(2, x.ndim)
    x = torch.nn.functional.pad(x, [size for pad in reversed(found["padding"]) for size in (pad, pad)])
    for at, size, stride, dilation in zip(where, kernel, found["stride"], found["dilation"], strict=True):
        x = x.unfold(at, dilation * (size - 1) + 1, stride)[..., ::dilation]
    return x.movedim(1, len(kernel) + 1).flatten(0, len(kernel)).flatten(1)


_KINDS = {
    "edge::linear": Kind(
        lambda node, x, matrix: linear(x, matrix), lambda node, x: x.flatten(0, -2), dense=True, shares=True
    ),
    "edge::convolution": Kind(_convolve, _patches, dense=True, shares=False),
    "edge::embedding": Kind(_pick, None, dense=False, shares=False),
}
# of the ops that read no matrix, those that cost little beside reading their result from a file
_CHEAP = {"edge::rms_norm", "edge::layer_norm", "edge::rotary", "edge::bias", "edge::scale"}


def kind_of(node: Node) -> Kind | None:
    """How a node reads a matrix, None if it reads none."""
    return _KINDS.get(op_name(node))


def is_watched(node: Node) -> bool:
    """Whether a node reads a matrix and its inputs tell the columns apart."""
    kind = kind_of(node)
    return kind is not None and kind.columns is not None


def columns_of(node: Node, values: Mapping[Node, Tensor]) -> Tensor:
    """The input of a watched node among values, [positions, columns]."""
    kind = kind_of(node)
    assert kind is not None and kind.columns is not None
    return kind.columns(node, values[node.args[0]])


def is_cheap(node: Node) -> bool:
    """Whether a node's value is better computed again than kept in a file: element by element, a view, or of nothing.

    A tensor picked from what an op gives is as cheap as that op.
    """
    if not op_name(node):
        return True
    tensorless = not node.all_input_nodes
    target = node.target
    return op_name(node) in _CHEAP or tensorless or target.is_view or torch.Tag.pointwise in target.tags
