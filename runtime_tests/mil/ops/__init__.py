"""One function per MIL operation, by its name; each computes in float32 what the operation's page defines.

Functions take the operation's inputs by name as tensors, strings or lists and return a tensor or a list of tensors.
Rounding to the declared type is `program`'s business: 16-bit floats arrive as float32, except in MOVES, whose results
hold the same values in other places, and in ROWWISE, which take large constants undecoded.
Source: coremltools' operator reference (`converters/mil/mil/ops/defs`), iOS 15 to 18.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Operation = Callable[..., Any]


def table() -> dict[str, Operation]:
    """Every operation that is known, by name."""
    from runtime_tests.mil.ops import (
        constexpr,
        conv,
        elementwise,
        image,
        indexing,
        lists,
        matrix,
        norm,
        reduction,
        shape,
    )

    tables = (elementwise, reduction, matrix, shape, indexing, conv, norm, image, lists, constexpr)
    found: dict[str, Operation] = {}
    for module in tables:
        found |= module.OPS
    return found


MOVES = frozenset(
    {
        "band_part",
        "batch_to_space",
        "concat",
        "crop",
        "depth_to_space",
        "expand_dims",
        "fill_like",
        "flatten2d",
        "gather",
        "gather_along_axis",
        "gather_nd",
        "identity",
        "list_gather",
        "list_read",
        "list_scatter",
        "list_write",
        "pad",
        "pixel_shuffle",
        "pixel_unshuffle",
        "reshape",
        "reshape_like",
        "reverse",
        "reverse_sequence",
        "select",
        "shape",
        "slice_by_index",
        "slice_by_size",
        "slice_update",
        "sliding_windows",
        "space_to_batch",
        "space_to_depth",
        "split",
        "squeeze",
        "stack",
        "tile",
        "transpose",
    }
)
ROWWISE = frozenset({"linear", "gather"})


def integers(value: Any) -> list[int]:
    """A tensor or number of integers as a list."""
    found = value.reshape(-1).tolist() if hasattr(value, "reshape") else [value]
    return [int(item) for item in found]


def number(value: Any) -> Any:
    """A one-element tensor or number as a Python number; any number where a tensor has no values."""
    if getattr(value, "is_meta", False):
        return 1.0
    return value.item() if hasattr(value, "item") else value


def flags(value: Any, count: int) -> list[bool]:
    """A mask of booleans, all False when it is absent."""
    return [False] * count if value is None else [bool(item) for item in value.reshape(-1).tolist()]
