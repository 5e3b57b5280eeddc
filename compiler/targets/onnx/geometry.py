"""Sizes that ONNX Runtime's kernels take, and what a recipe's sizes become for them. Imports no framework."""

from __future__ import annotations

BLOCKS = (16, 32, 64, 128, 256)
_HEAD_MULTIPLE = 16


def block_size(columns: int, group: int) -> int | None:
    """The largest block of MatMulNBits that divides a group of columns (0: all of a row's); None when none does."""
    return next((size for size in reversed(BLOCKS) if (group or columns) % size == 0), None)


def padded_head(head_dim: int) -> int:
    """The head size that GroupQueryAttention is given: with rotary positions it takes multiples of 16."""
    return -(-head_dim // _HEAD_MULTIPLE) * _HEAD_MULTIPLE
