"""The rule "pixtral": an image stays one picture, of whole cells that become a token each.

What lives here: its size, and its cells as the vision entry takes them. What must not: files (`images.py`) and prompts
(`prompt.py`); normalisation is that of `tiles.py`. Sizes and values equal those of transformers'
PixtralImageProcessorPil as PixtralProcessor calls it, with patch · merge for a patch; this was written from what it
computes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from artifacts.formats.preprocessing import PixtralImages
from artifacts.media.errors import MediaError
from artifacts.media.images import Pixels
from artifacts.media.tiles import resized


@dataclass(frozen=True)
class Cells:
    """How many cells an image has; each is patch · merge pixels high and wide and becomes one token."""

    rows: int
    cols: int


def cells(height: int, width: int, rule: PixtralImages) -> Cells:
    """The cells of an image of this size in pixels. Raises MediaError where one side would shrink to nothing."""
    ratio = max(height / rule.longest_edge, width / rule.longest_edge)
    new_height, new_width = height, width
    if ratio > 1:
        new_height, new_width = math.floor(height / ratio), math.floor(width / ratio)
    if not new_height or not new_width:
        raise MediaError(
            f"an image of {width} × {height} pixels is too narrow: reduced to {rule.longest_edge} pixels, less than "
            "one pixel of its shorter side is left"
        )
    cell = rule.patch * rule.merge
    return Cells(-(-new_height // cell), -(-new_width // cell))


def fit(image: Pixels, rule: PixtralImages) -> tuple[Cells, Pixels]:
    """uint8 [height, width, 3] to uint8 [rows · cell, cols · cell, 3], with cell = patch · merge."""
    found = cells(image.shape[0], image.shape[1], rule)
    cell = rule.patch * rule.merge
    return found, resized(image, found.rows * cell, found.cols * cell, rule.resample)


@dataclass(frozen=True)
class Cut:
    """The cells of an image, row after row: pixels float32 [cells, 3, cell, cell], and of the patches of each, row
    after row, the row and column in the image, counted in patches: int64 [cells, merge²]."""

    pixels: NDArray[np.float32]
    rows: NDArray[np.int64]
    columns: NDArray[np.int64]


def cut(image: NDArray[np.float32], patch: int, merge: int) -> Cut:
    """image: float32 [3, rows · cell, cols · cell], fitted and normalized."""
    cell = patch * merge
    rows, cols = image.shape[1] // cell, image.shape[2] // cell
    pixels = image.reshape(3, rows, cell, cols, cell).transpose(1, 3, 0, 2, 4).reshape(rows * cols, 3, cell, cell)
    places = (
        axis.reshape(rows, merge, cols, merge).transpose(0, 2, 1, 3).reshape(rows * cols, merge**2)
        for axis in np.mgrid[: rows * merge, : cols * merge]
    )
    return Cut(np.ascontiguousarray(pixels), *places)
