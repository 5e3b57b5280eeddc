"""A face's crops become a renderer's input, and what it draws goes back into them."""

from __future__ import annotations

import numpy as np
import pytest

from artifacts.formats.talking_head import Picture
from artifacts.media.errors import MediaError
from artifacts.media.faces import covered, pasted

PICTURE = Picture(size=16, crop=18, border=1, mouth=(2, 3, 10, 5), channels="bgr", scale=255)


def crop(seed: int, edge: int = 18) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return np.random.default_rng(seed).integers(1, 256, (edge, edge, 3), np.uint8)


def test_the_mouth_of_the_current_picture_is_black_and_the_reference_whole() -> None:
    reference, current = crop(0), crop(1)
    image = covered(reference, current, PICTURE)
    assert image.shape == (1, 6, 16, 16) and image.dtype == np.float32
    assert np.array_equal(image[0, :3], (reference[1:17, 1:17] / np.float32(255)).transpose(2, 0, 1))
    black = (image[0, 3:] == 0).all(0)
    assert black.sum() == 50 and black[3:8, 2:12].all()
    assert np.array_equal(image[0, 3:, ~black], current[1:17, 1:17][~black] / np.float32(255))


def test_what_was_drawn_lies_within_the_border() -> None:
    current = crop(1)
    drawn = np.full((3, 16, 16), 0.5, np.float32)
    drawn[0] = 2
    found = pasted(current, drawn, PICTURE)
    assert (found[1:17, 1:17] == [255, 127, 127]).all()
    border = np.ones((18, 18), bool)
    border[1:17, 1:17] = False
    assert np.array_equal(found[border], current[border]) and (current > 0).all()


def test_a_crop_of_another_size_is_refused() -> None:
    with pytest.raises(MediaError, match=r"current picture: is uint8 \[17, 17, 3\], not uint8 \[18, 18, 3\]; cut"):
        covered(crop(0), crop(1, 17), PICTURE)
    with pytest.raises(MediaError, match=r"reference picture: is float64"):
        covered(crop(0) / 255, crop(1), PICTURE)
