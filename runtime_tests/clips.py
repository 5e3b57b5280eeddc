"""Clips: how far from the truth are the frames of a talking head as it ships, and how far were the unquantized ones?

What lives here: figures and checks of frames. What must not: how a frame comes to be (`drivers/talking_head.py`), and
showing them (`film.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from artifacts import Check, Figure, checked, ran_here
from artifacts.formats.talking_head import Constants
from artifacts.media.clips import OPEN, SHUT, UNSURE, Clip, Clips
from runtime_tests.metrics import psnr, rms, wilson
from runtime_tests.quality import QUALITY, QualityLimits

Frames = NDArray[Any]
STAND_IN_FRAMES = 25
"""How many of the first clip are made where something slow stands in for the runtime."""
_APART = 0.1  # of jawOpen over mouthClose, from which on a mouth is open


def judge(
    found: Clips, made: Sequence[Frames], constants: Constants, limits: QualityLimits, stand_in: str | None
) -> tuple[list[Figure], list[Check]]:
    """Over all frames of all clips that were made; where fewer were, over those. made: of each clip, its first frames
    as the artifact makes them, crops uint8 or blendshapes float32.

    The artifact's own figures are the runtime's; those of the unquantized weights are PyTorch's.
    """
    clips = [_first(clip, len(frames)) for clip, frames in zip(found.clips, made, strict=False)]
    sides = {"": list(made), "original": [clip.made["original"] for clip in clips]}
    judging = _pictures if constants.picture is not None else _blendshapes
    at = f"{sum(map(len, made)):,} frames"
    figures, checks = judging(clips, sides, constants, limits, stand_in, at)
    opened = _opening(found, constants)
    closure = {side: _closure(clips, frames, opened) for side, frames in sides.items()}
    right, count = closure[""]
    if count:
        own = ran_here(
            "lip_closure", right / count, "fraction", stand_in, at=f"{count:,} frames", interval=wilson(right, count)
        )
        figures += [own, _declared("lip_closure_original", closure["original"][0] / count, "fraction")]
        checks.append(checked(own, QUALITY, "mouth shut and open as told", limits.min_lip_closure, "at least"))
    return figures, checks


def _first(clip: Clip, count: int) -> Clip:
    made = {side: frames[:count] for side, frames in clip.made.items()}
    return Clip(clip.sound, clip.mouth[:count], clip.truth[:count], None, clip.identity, made)


def _pictures(
    clips: Sequence[Clip],
    sides: dict[str, list[Frames]],
    constants: Constants,
    limits: QualityLimits,
    stand_in: str | None,
    at: str,
) -> tuple[list[Figure], list[Check]]:
    """Of what is left within the border: outside of it nothing is drawn."""
    assert constants.picture is not None
    inner = slice(constants.picture.border, constants.picture.border + constants.picture.size)

    def seen(frames: Sequence[Frames]) -> Frames:
        return np.concatenate(frames)[:, inner, inner]

    truth = seen([clip.truth for clip in clips])
    near = {side: psnr(seen(frames), truth) for side, frames in sides.items()}
    drop = ran_here("psnr_drop", near["original"] - near[""], "dB", stand_in, at=at)
    same = ran_here("psnr_to_original", psnr(seen(sides[""]), seen(sides["original"])), "dB", stand_in, at=at)
    figures = [
        ran_here("psnr", near[""], "dB", stand_in, at=at),
        _declared("psnr_original", near["original"], "dB"),
        drop,
        same,
    ]
    return figures, [checked(drop, QUALITY, "PSNR to the truth, lost", limits.max_psnr_drop, "at most")]


def _blendshapes(
    clips: Sequence[Clip],
    sides: dict[str, list[Frames]],
    constants: Constants,
    limits: QualityLimits,
    stand_in: str | None,
    at: str,
) -> tuple[list[Figure], list[Check]]:
    own, original = (np.concatenate(sides[side]) for side in ("", "original"))
    truth = np.concatenate([clip.truth for clip in clips])
    change = ran_here("blendshape_change", rms(own - original), "RMS", stand_in, at=at)
    figures = [
        ran_here("blendshape_error", rms(own - truth), "RMS", stand_in, at=at),
        _declared("blendshape_error_original", rms(original - truth), "RMS"),
        change,
    ]
    return figures, [
        checked(change, QUALITY, "blendshapes, change", limits.max_blendshape_change, "at most"),
    ]


def _opening(found: Clips, constants: Constants) -> Callable[[Frames], bool]:
    """Whether a frame's mouth is open."""
    if found.mouth is not None:
        mouth = found.mouth
        return lambda crop: mouth.opening(crop) > mouth.shut
    jaw, lips = (constants.blendshapes.index(name) for name in ("jawOpen", "mouthClose"))
    return lambda weights: bool(weights[jaw] - weights[lips] > _APART)


def _closure(clips: Sequence[Clip], made: Sequence[Frames], opened: Callable[[Frames], bool]) -> tuple[int, int]:
    """How many of the frames whose mouth must be shut or open have it so, and how many these are."""
    right = [
        opened(frame) == (told == OPEN)
        for clip, frames in zip(clips, made, strict=True)
        for frame, told in zip(frames, clip.mouth, strict=True)
        if told in (OPEN, SHUT)
    ]
    return sum(right), len(right)


def worth_showing(clips: Clips) -> int:
    """The clip whose sound tells the most about the mouth."""
    told = [int((clip.mouth != UNSURE).sum()) for clip in clips.clips]
    return told.index(max(told))


def limited(frames: Iterator[Frames], most: int | None) -> Frames:
    """At most so many frames, stacked."""
    found = []
    for frame in frames:
        found.append(frame)
        if len(found) == most:
            break
    return np.stack(found)


def _declared(name: str, value: float, unit: str) -> Figure:
    return Figure(name=name, value=value, unit=unit, obtained="declared")
