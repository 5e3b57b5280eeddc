"""A face on its way into a renderer and out of it: crops of a video become an input, its output goes back into them.

What lives here: doing what `formats.talking_head.Picture` says, as an app has to do it. What must not: finding a face.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from artifacts.formats.talking_head import Picture
from artifacts.media.errors import MediaError
from artifacts.media.images import Pixels


def covered(reference: Pixels, current: Pixels, picture: Picture) -> NDArray[np.float32]:
    """[1, 6, size, size] of two crops, uint8 [crop, crop, 3], blue first: the reference, and the current picture with
    its mouth black, 0 … 1. Raises MediaError."""
    x, y, width, height = picture.mouth
    inner = [_inner(crop, picture, name) for name, crop in (("reference", reference), ("current", current))]
    found = np.concatenate(inner, 2).astype(np.float32) / picture.scale
    found[y : y + height, x : x + width, 3:] = 0
    return np.ascontiguousarray(found.transpose(2, 0, 1)[None])


def pasted(current: Pixels, drawn: NDArray[np.float32], picture: Picture) -> Pixels:
    """The crop with what a renderer drew, [3, size, size] of 0 … 1, within its border. Raises MediaError."""
    _inner(current, picture, "current")
    found, end = current.copy(), picture.border + picture.size
    values = (np.clip(drawn, 0, 1) * picture.scale).astype(np.uint8)  # truncated, as published
    found[picture.border : end, picture.border : end] = values.transpose(1, 2, 0)
    return found


def _inner(crop: Pixels, picture: Picture, name: str) -> Pixels:
    if crop.dtype != np.uint8 or crop.shape != (picture.crop, picture.crop, 3):
        raise MediaError(
            f"{name} picture: is {crop.dtype} {list(crop.shape)}, not uint8 {[picture.crop, picture.crop, 3]}; cut the "
            "face out and resize it"
        )
    end = picture.border + picture.size
    return crop[picture.border : end, picture.border : end]
