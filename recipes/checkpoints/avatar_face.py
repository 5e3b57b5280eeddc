"""A drawn face that moves: ARKit blendshapes and a head's pose to a picture, the same every time.

What lives here: drawing, and saying of a picture whether its mouth is open. What must not: where weights come from
(`avatar_speech.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from recipes.checkpoints.avatar_speech import AT, Floats

Pixels = NDArray[np.uint8]

CROP, BORDER = 100, 2  # of which 96 pixels are left within the border
MOUTH = (30, 56, 70, 85)  # left, top, right, bottom of where the mouth may be, in the crop
_FINER = 4
_UNIT = CROP * _FINER / 168  # drawn pixels of a unit of face coordinates
_SKIN, _LIP, _DARK, _TEETH, _TONGUE = (224, 172, 140), (178, 84, 82), (42, 14, 18), (240, 238, 230), (186, 82, 88)
_HAIR, _BROW, _NECK, _CLOTH = (66, 44, 32), (58, 38, 28), (202, 150, 120), (56, 84, 120)


@dataclass(frozen=True)
class Pose:
    """x, y: in face coordinates; roll: radians; turn, nod: about -1 to 1; blink: 0 to 1; brow: 0 to 1."""

    x: float = 0.0
    y: float = 0.0
    roll: float = 0.0
    turn: float = 0.0
    nod: float = 0.0
    blink: float = 0.0
    brow: float = 0.0


def idle(seed: int, frames: int, fps: int) -> list[Pose]:
    """How a head moves that has nothing to say: slow sways, and blinks."""
    random = np.random.default_rng(seed)
    times = np.arange(frames) / fps

    def sway(size: float) -> NDArray[np.float64]:
        return sum(  # type: ignore[return-value]
            size / 2 * np.sin(2 * np.pi * (random.uniform(0.08, 0.5) * times + random.uniform())) for _ in range(3)
        )

    blink = np.zeros(frames)
    now = random.uniform(0.3, 2)
    while now < frames / fps:
        blink = np.maximum(blink, np.clip(1.6 - np.abs(times - now) / 0.07, 0, 1))
        now += random.uniform(1.2, 4)
    moves = (sway(3), sway(2), sway(0.04), sway(0.8), sway(0.8), blink, np.clip(sway(0.4), 0, 1))
    return [Pose(*map(float, values)) for values in zip(*moves, strict=True)]


def draw(pose: Pose, weights: Floats) -> Pixels:
    """The crop, uint8 [100, 100, 3], blue first, of a head whose mouth has these weights [52]."""
    edge = CROP * _FINER
    image = Image.new("RGB", (edge, edge), (0, 0, 0))
    image.paste(_background(), (0, 0))
    pen = _Pen(ImageDraw.Draw(image), pose)
    jaw = float(weights[AT["jawOpen"]])
    around = np.linspace(0, 2 * np.pi, 72, endpoint=False)
    pen.polygon([(0, 60), (-22, 62), (-26, 100), (26, 100), (22, 62)], _NECK, fixed=True)
    pen.polygon([(-70, 100), (-60, 88), (-24, 80), (24, 80), (60, 88), (70, 100)], _CLOTH, fixed=True)
    pen.polygon([(58 * np.cos(a), -12 + 66 * np.sin(a)) for a in around], _HAIR)
    # the chin goes down with the jaw
    face = [(50 * np.cos(a), 4 + (60 + (10 * jaw if np.sin(a) > 0 else 0)) * np.sin(a)) for a in around]
    pen.polygon([(x * (1 - 0.22 * max(0.0, y / 64)), y) for x, y in face], _SKIN)
    pen.polygon([(52 * np.cos(a), -36 - 28 * abs(np.sin(a))) for a in around[36:]], _HAIR)
    for side in (-1, 1):
        pen.ellipse((side * 27, 14), (11, 8), (232, 164, 138), depth=4)
        _eye(pen, side, pose)
    pen.polygon([(-2, -8), (2, -8), (8, 15), (4, 19), (-4, 19), (-8, 15)], (208, 150, 120), depth=9)
    for side in (-1, 1):
        pen.ellipse((side * 4, 17), (1.8, 1.2), (130, 78, 66), depth=9)
    _mouth(pen, weights)
    small = np.asarray(image.reduce(_FINER), np.float32) * _light()
    return np.ascontiguousarray(small.clip(0, 255).astype(np.uint8)[..., ::-1])


def opening(picture: NDArray[np.generic]) -> float:
    """The share of the mouth's place, of a crop uint8 [100, 100, 3], blue first, that shows what lies behind lips."""
    left, top, right, bottom = MOUTH
    part = picture[top:bottom, left:right].astype(np.int32)
    blue, green, red = part[..., 0], part[..., 1], part[..., 2]
    dark = (red < 110) & (green < 60)
    teeth = (red > 195) & (blue > 160)
    return float((dark | teeth).mean())


SHUT = 0.006
"""A mouth of which no more than this is open is shut."""


class _Pen:
    """Draws in face coordinates: about -60 to 60, the nose's bridge at 0."""

    def __init__(self, onto: ImageDraw.ImageDraw, pose: Pose) -> None:
        self._draw, self._pose = onto, pose
        self._cos, self._sin = np.cos(pose.roll), np.sin(pose.roll)

    def _placed(self, points: list[tuple[float, float]], depth: float, fixed: bool) -> list[tuple[float, float]]:
        found = []
        for x, y in points:
            if not fixed:
                x, y = x + 0.45 * depth * self._pose.turn, y + 0.35 * depth * self._pose.nod
                x, y = x * self._cos - y * self._sin + self._pose.x, x * self._sin + y * self._cos + self._pose.y
            found.append(((x + 84) * _UNIT, (y + 76) * _UNIT))
        return found

    def polygon(
        self, points: list[tuple[float, float]], colour: tuple[int, int, int], depth: float = 0, fixed: bool = False
    ) -> None:
        self._draw.polygon(self._placed(points, depth, fixed), colour)

    def ellipse(
        self, middle: tuple[float, float], radii: tuple[float, float], colour: tuple[int, int, int], depth: float = 0
    ) -> None:
        around = np.linspace(0, 2 * np.pi, 28, endpoint=False)
        points = [(middle[0] + radii[0] * np.cos(a), middle[1] + radii[1] * np.sin(a)) for a in around]
        self.polygon(points, colour, depth)


def _eye(pen: _Pen, side: int, pose: Pose) -> None:
    x, y, high = side * 20.0, -12.0, 5.5 * (1 - 0.93 * pose.blink)
    pen.ellipse((x, y), (10.5, high + 1.2), (120, 76, 62), depth=5)
    pen.ellipse((x, y), (9.5, high), (244, 242, 238), depth=5)
    pen.ellipse((x + 2.2 * pose.turn, y + pose.nod), (4.6, min(4.6, high)), (70, 104, 92), depth=5)
    pen.ellipse((x + 2.2 * pose.turn, y + pose.nod), (2.3, min(2.3, high)), (16, 14, 14), depth=5)
    top = y - 13 - 4 * pose.brow
    ends = [(x - 12 * side, top + 2), (x, top - 2), (x + 11 * side, top + 3)]
    pen.polygon([*ends, (x + 11 * side, top + 5), (x, top + 2), (x - 12 * side, top + 5.5)], _BROW, depth=5)


def _mouth(pen: _Pen, weights: Floats) -> None:
    w = {name: float(weights[at]) for name, at in AT.items()}

    def both(name: str) -> float:
        return (w[f"{name}Left"] + w[f"{name}Right"]) / 2

    smile, stretch = both("mouthSmile"), both("mouthStretch")
    round_ = 0.5 * w["mouthPucker"] + 0.3 * w["mouthFunnel"]
    half = 19 * (1 + 0.25 * smile + 0.2 * stretch - 0.75 * round_)
    thick = 1 + 0.7 * w["mouthPucker"] + 0.6 * w["mouthFunnel"] - 0.5 * both("mouthPress")
    above = 4.0 * thick * (1 - 0.6 * w["mouthRollUpper"])
    below = 5.0 * thick * (1 - 0.6 * w["mouthRollLower"])
    # past the lips' touching, so that a mouth which is nearly shut is shut
    gap = max(0.0, 26 * (w["jawOpen"] - w["mouthClose"]) - 0.6)
    up = 5 * both("mouthUpperUp") * min(1.0, gap / 1.5) + 0.15 * gap
    down = 0.85 * gap + 6 * both("mouthLowerDown") * min(1.0, gap / 1.5)
    middle = 36 + 26 * 0.25 * w["jawOpen"] - 1.5 * smile
    across = np.linspace(-1, 1, 25)
    bow = 1 - np.abs(across) ** 2.2
    corners = -3.5 * smile * across**2
    xs = half * across
    line = middle + corners
    upper, lower = line - up * bow, line + down * bow
    cupid = above * (bow**0.7) * (1 - 0.25 * np.exp(-((across / 0.18) ** 2)))
    _band(pen, xs, upper - cupid, lower + below * bow**0.6, _LIP)
    if gap <= 0:
        _band(pen, xs * 0.96, line - 0.35, line + 0.35, (128, 52, 54))
        return
    inside = xs * 0.9
    _band(pen, inside, upper, lower, _DARK)
    tip = middle + corners + 1.5 + 1.5 * both("mouthUpperUp")
    _band(pen, inside * 0.92, upper, np.minimum(np.minimum(lower, tip), upper + 6), _TEETH)
    tongue = lower - (3 + 5 * w["tongueOut"] + 0.25 * down) * np.clip(1.15 - np.abs(across) * 1.3, 0, 1)
    _band(pen, inside, np.maximum(np.maximum(upper, tip), tongue), lower, _TONGUE)
    if (low := both("mouthLowerDown")) > 0.08:
        _band(pen, inside * 0.85, np.maximum(np.maximum(upper, tip), lower - 7 * low), lower, _TEETH)


def _band(
    pen: _Pen,
    xs: NDArray[np.float64],
    top: NDArray[np.float64],
    bottom: NDArray[np.float64],
    colour: tuple[int, int, int],
) -> None:
    bottom = np.maximum(top, bottom)
    pen.polygon([*zip(xs, top, strict=True), *zip(xs[::-1], bottom[::-1], strict=True)], colour, depth=7)


@lru_cache(1)
def _background() -> Image.Image:
    edge = CROP * _FINER
    rows, columns = np.mgrid[0:edge, 0:edge] / edge
    found = np.stack([150 + 50 * columns - 30 * rows, 170 + 30 * columns - 40 * rows, 186 - 30 * rows], -1)
    return Image.fromarray(found.astype(np.uint8))


@lru_cache(1)
def _light() -> NDArray[np.float32]:
    rows, columns = np.mgrid[0:CROP, 0:CROP] / CROP - 0.5
    found: NDArray[np.float32] = (
        1.04 - 0.32 * (columns + 0.12) ** 2 - 0.28 * (rows + 0.1) ** 2 - 0.1 * columns
    ).astype(np.float32)[..., None]
    return found
