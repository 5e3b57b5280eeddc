"""The rule "smolvlm": an image becomes a grid of square tiles and a small copy of all of it.

What lives here: sizes, cutting, and the normalisation that both rules share. What must not: files (`images.py`) and
prompts (`prompt.py`). Sizes, tiles and values equal those of transformers' SmolVLMImageProcessorPil bit by bit; this
was written from what it computes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from artifacts.formats.preprocessing import Normalisation, Resample, SmolvlmImages
from artifacts.media.errors import MediaError
from artifacts.media.images import Pixels


@dataclass(frozen=True)
class Grid:
    """How an image is cut: rows and columns of tiles, both 0 where the small copy is alone; `scaled` is the first
    size that it is resized to, (height, width) in pixels."""

    rows: int
    cols: int
    scaled: tuple[int, int]

    @property
    def tiles(self) -> int:
        """How many tiles the model sees, the small copy counted."""
        return self.rows * self.cols + 1


def scaled_size(height: int, width: int, longest: int) -> tuple[int, int]:
    """(height, width) with the longer side at `longest`, the other cut to a whole number and raised to an even one."""
    aspect = width / height
    if width >= height:
        other = int(longest / aspect)
        return max(other + other % 2, 1), longest
    other = int(longest * aspect)
    return longest, max(other + other % 2, 1)


def whole_tiles(height: int, width: int, tile: int) -> tuple[int, int]:
    """(rows, columns) of tiles that an image is stretched to: the longer side is raised, then the other follows it."""
    aspect = width / height
    if width >= height:
        cols = math.ceil(width / tile)
        return math.ceil(int(cols * tile / aspect) / tile), cols
    rows = math.ceil(height / tile)
    return rows, math.ceil(int(rows * tile * aspect) / tile)


def grid(height: int, width: int, rule: SmolvlmImages) -> Grid:
    """How an image of this size in pixels is cut.

    Where the rule's `longest_edge` gives more than `max_tiles`, the largest whole number of tiles that does not takes
    its place; this alone departs from the reference.
    """
    edges = [rule.longest_edge, *range(rule.longest_edge // rule.tile * rule.tile, 0, -rule.tile), rule.tile // 2 * 2]
    for edge in edges:
        if (found := _grid(height, width, max(edge, 1), rule)).tiles <= rule.max_tiles:
            return found
    raise MediaError(f"an image of {width} × {height} pixels takes more than {rule.max_tiles} tiles at any size")


def most_tiles(longest_edge: int, tile: int) -> int:
    """What an image takes at most, whatever its shape: a square one does."""
    rows, cols = whole_tiles(*scaled_size(1, 1, longest_edge), tile)
    return rows * cols + 1 if max(rows, cols) > 1 else 1


def split(image: Pixels, rule: SmolvlmImages) -> tuple[Grid, Pixels]:
    """uint8 [height, width, 3] to uint8 [tiles, tile, tile, 3]: the grid row by row, then the small copy of all."""
    cut = grid(image.shape[0], image.shape[1], rule)
    size = rule.tile
    found = np.empty((cut.tiles, size, size, 3), np.uint8)
    scaled = resized(image, *cut.scaled, rule.resample)
    if cut.rows:
        scaled = resized(scaled, cut.rows * size, cut.cols * size, rule.resample)
        for at in range(cut.rows * cut.cols):
            top, left = at // cut.cols * size, at % cut.cols * size
            found[at] = scaled[top : top + size, left : left + size]
    found[-1] = resized(scaled, size, size, rule.resample)
    return cut, found


def resized(image: Pixels, height: int, width: int, resample: Resample) -> Pixels:
    """uint8 [height, width, 3] at another size, by Pillow's filter of that name, which widens as an image shrinks."""
    from PIL import Image

    if image.shape[:2] == (height, width):
        return image
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling[resample.upper()]))


def normalise(tiles: Pixels, numbers: Normalisation) -> NDArray[np.float32]:
    """uint8 [n, height, width, 3] to float32 [n, 3, height, width], as entries take them.

    value · rescale in float64, rounded to float32; minus mean and by std in float32. So there are 256 values a channel.
    """
    scaled = (np.arange(256, dtype=np.float64) * numbers.rescale).astype(np.float32)
    found = np.empty((tiles.shape[0], 3, *tiles.shape[1:3]), np.float32)
    for channel, (mean, std) in enumerate(zip(numbers.mean, numbers.std, strict=True)):
        values = (scaled - np.float32(mean)) / np.float32(std)
        found[:, channel] = values[tiles[..., channel]]
    return found


def _grid(height: int, width: int, longest_edge: int, rule: SmolvlmImages) -> Grid:
    scaled = scaled_size(height, width, longest_edge)
    if not rule.split:
        return Grid(0, 0, scaled)
    rows, cols = whole_tiles(*scaled, rule.tile)
    return Grid(rows, cols, scaled) if max(rows, cols) > 1 else Grid(0, 0, scaled)
