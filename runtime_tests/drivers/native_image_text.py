"""Images at their own size and text: `image_text`, where an image goes through the tower in one piece.

What lives here: an image as cells, and a call that is filled up to a size that the runtime takes. What must not: a
runtime, how an image becomes cells and a prompt (`artifacts/media/`), and how tokens follow each other (`text.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from artifacts import EdgewrightError, Manifest
from artifacts.formats.interface import Dimension
from artifacts.media.pixtral import Cut, cut
from runtime_tests.drivers import Asker, image_text, positive
from runtime_tests.drivers.image_text import VISION, Floats, ImageText
from runtime_tests.sessions import Session

judge, speed, conclude = image_text.judge, image_text.speed, image_text.conclude


def load(artifact: Path, manifest: Manifest, tiles: int | None = None) -> str:
    """See `Driver`: the largest image, in a prompt that fills the context beside the answer."""
    return f"{NativeImageText.most(artifact, manifest)} and {positive(artifact, manifest, 'max_tokens'):,} tokens"


def asker(session: Session, artifact: Path, manifest: Manifest) -> Asker:
    """See `Driver`."""
    return Asked(session, artifact, manifest)


class NativeImageText(ImageText):
    """One conversation about images, each a call of the tower."""

    def __init__(self, session: Session, artifact: Path, manifest: Manifest) -> None:
        super().__init__(session, artifact, manifest)
        self._patch, self._merge, self._cells = (self._constant(key, 1) for key in ("patch_size", "merge", "max_cells"))
        self._takes = self._vision.entry("image").dimensions["cells"]

    @staticmethod
    def most(artifact: Path, manifest: Manifest, tiles: int | None = None) -> str:
        """See `ImageText`."""
        edge, cells = (positive(artifact, manifest, key, 1) for key in ("max_image", "max_cells"))
        return f"an image of {edge:,} pixels along an edge ({cells:,} tokens)"

    def largest(self, tiles: int | None = None) -> Floats:
        """See `ImageText`: one that fills the context is no square."""
        cell = self._patch * self._merge
        places = np.zeros((self._cells, self._merge**2), np.int64)
        return self._features_of(Cut(np.zeros((self._cells, 3, cell, cell), np.float32), places, places))

    def see(self, pictures: Sequence[Floats]) -> Floats:
        """See `ImageText`: of images [1, 3, height, width], each by itself."""
        found = [self._features_of(cut(image, self._patch, self._merge)) for picture in pictures for image in picture]
        return np.concatenate(found)

    def _features_of(self, found: Cut) -> Floats:
        """[cells, hidden] of one image. Raises EdgewrightError for one of more cells than the entry takes."""
        count = len(found.pixels)
        size = filled(count, self._takes)
        if size is None:
            raise EdgewrightError(
                f"an image makes {count:,} tokens, and the package takes {self._takes.high:,} at the most: give a "
                "smaller one"
            )
        images = np.zeros(size, np.int64)
        images[count:] = 1
        fill = partial(_filled, size=size)
        given = {"pixels": fill(found.pixels), "rows": fill(found.rows), "columns": fill(found.columns)}
        (features,) = self.session.call(VISION, "image", **given, images=images).values()
        return features[:count]


def filled(count: int, takes: Dimension) -> int | None:
    """The least size that a dimension takes for so many; None where they are too many."""
    sizes = takes.sizes or (max(count, takes.low), takes.high)
    return min((size for size in sizes if count <= size <= takes.high), default=None)


def _filled(values: NDArray[np.generic], size: int) -> NDArray[np.generic]:
    return np.concatenate([values, np.zeros((size - len(values), *values.shape[1:]), values.dtype)])


class Asked(image_text.Asked):
    """See `image_text.Asked`."""

    def __init__(self, session: Session, artifact: Path, manifest: Manifest) -> None:
        super().__init__(session, artifact, manifest, NativeImageText)


run = partial(image_text.run, kind=NativeImageText)
