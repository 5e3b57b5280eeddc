"""PREPROCESSING.md is enough: what is written here uses its formulas alone, and gives the same pixels and frames."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from artifacts.media.tiles import resized
from artifacts.media.video import sample
from tests.artifacts.media.reference import picture, smolvlm


def lanczos(t: float) -> float:
    return float(np.sinc(t) * np.sinc(t / 3)) if -3 <= t < 3 else 0.0


def bicubic(t: float) -> float:
    t = abs(t)
    if t < 1:
        return 1.5 * t**3 - 2.5 * t**2 + 1
    return -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2 if t < 2 else 0.0


def along_rows(image: np.ndarray, out: int, f, support: int) -> np.ndarray:
    """uint8 [height, width, 3] to width `out`."""
    size = image.shape[1]
    scale = size / out
    wide = max(scale, 1.0)
    found = np.empty((image.shape[0], out, 3), np.uint8)
    for x in range(out):
        centre, reach = (x + 0.5) * scale, support * wide
        low, high = max(int(centre - reach + 0.5), 0), min(int(centre + reach + 0.5), size)
        weights = [f((i - centre + 0.5) / wide) for i in range(low, high)]
        whole = [int(math.copysign(0.5, w) + w / sum(weights) * 2**22) for w in weights]
        total = np.einsum("i,hic->hc", np.array(whole, np.int64), image[:, low:high].astype(np.int64))
        found[:, x] = np.clip((total + 2**21) >> 22, 0, 255)
    return found


def along_columns(image: np.ndarray, out: int, f, support: int) -> np.ndarray:
    return along_rows(image.swapaxes(0, 1), out, f, support).swapaxes(0, 1)


@pytest.mark.parametrize(("name", "f", "support"), [("lanczos", lanczos, 3), ("bicubic", bicubic, 2)])
@pytest.mark.parametrize("size", [(1, 1), (7, 50), (40, 33), (33, 33), (64, 90), (75, 26), (33, 20)])
def test_resizing_by_the_formulas_of_the_page(size, name, f, support):
    image = picture(*size)
    for height, width in ((32, 32), (48, 20), (33, 31), (20, 19), (97, 101)):
        if size[0] > height and size[0] - height > 2 * (size[1] - width):
            found = along_rows(along_columns(image, height, f, support), width, f, support)
        else:
            found = along_columns(along_rows(image, width, f, support), height, f, support)
        np.testing.assert_array_equal(found, resized(image, height, width, name))


@given(n=st.integers(1, 20_000), rate=st.sampled_from([0.5, 12.0, 23.976, 25.0, 29.97, 30.0, 59.94, 120.0]))
def test_frames_by_the_formulas_of_the_page(n, rate):
    video = smolvlm().video
    duration = n / rate
    wanted, first, last = max(1, min(round(video.fps * duration), video.max_frames)), 0, n - 1
    if video.skip_seconds > 0 and duration - 2 * video.skip_seconds > video.max_frames * video.fps:
        first, last = int(video.skip_seconds * rate), min(int(n - video.skip_seconds * rate), n - 1)
    if first >= last:
        first, last = 0, n - 1
    found = [first]
    if wanted > 1:
        step = (last - first) / (wanted - 1)
        found = [int(k * step + first) for k in range(wanted - 1)] + [last]
    assert list(sample(n, rate, duration, video)) == sorted(set(found))
