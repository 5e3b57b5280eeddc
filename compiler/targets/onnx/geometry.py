"""Sizes that ONNX Runtime's kernels take, and what a recipe's sizes become for them; which operators graphs are written
in. Imports no framework."""

from __future__ import annotations

from typing import TYPE_CHECKING

from compiler.slots import Scheme

if TYPE_CHECKING:
    from compiler.models.base import Component
    from compiler.targets.onnx.options import OnnxOptions

EDGE = "edge"
"""The domain of edge ops in an imported graph."""
OPSET = 21  # the first with 4-bit integers

_ROWS = Scheme(bits=8, group=0)
BLOCKS = (16, 32, 64, 128, 256)
_HEAD_MULTIPLE = 16
_VECTOR = 16


def by_row(scheme: Scheme, component: Component, options: OnnxOptions) -> bool:
    """Whether a matrix is for DynamicQuantizeMatMul, whose activations have one scale for all positions of a call.

    It takes 8 bits with one scale per row, and where many positions are computed at once a fifth of the time of
    MatMulNBits' blocks (ONNX Runtime 1.31 on an x86 with AMX for int8; measured nowhere else). A decoder, which reads
    its weights for one position, gains nothing.
    """
    return scheme == _ROWS and not component.states and options.accuracy_level == 4


def block_size(columns: int, group: int) -> int | None:
    """The largest block of MatMulNBits that divides a group of columns (0: all of a row's); None when none does."""
    return next((size for size in reversed(BLOCKS) if (group or columns) % size == 0), None)


def multiplies_codes(groups: int, channels: int) -> bool:
    """Whether a convolution between codes is for QLinearConv: one in groups takes two and a half times as long as in
    float32 where its channels do not fill vectors of 16 (ONNX Runtime 1.31, x86; 12 channels of 160 x 160).

    Its weight is then decoded in every call: one in floats between codes ONNX Runtime rounds by itself, to other codes.
    """
    return groups == 1 or filled_up(channels) == channels


def filled_up(channels: int) -> int:
    """The channels that fill whole vectors, and whole blocks of those in floats."""
    return -(-channels // _VECTOR) * _VECTOR


def padded_head(head_dim: int) -> int:
    """The head size that GroupQueryAttention is given: with rotary positions it takes multiples of 16."""
    return -(-head_dim // _HEAD_MULTIPLE) * _HEAD_MULTIPLE
