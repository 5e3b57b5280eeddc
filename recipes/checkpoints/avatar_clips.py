"""Files of clips, as `artifacts/media/clips.py` describes them: to calibrate on, and held out to judge by."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from safetensors.numpy import save_file

from recipes.checkpoints import avatar_expression
from recipes.checkpoints.avatar_face import MOUTH, SHUT, Pixels
from recipes.checkpoints.avatar_measures import held_out
from recipes.checkpoints.avatar_speech import HELD_OUT_SEED, Speech, speak

HELD_OUT = Path(__file__).parents[1] / "avatar" / "clips"
_COUNT, _SECONDS = {"feathertalk": 2, "audio2expression": 4}, 2.4
_DRAWN = 40


def write(name: str, folder: Path) -> None:
    """The clips of a network beside its checkpoint, and held-out ones."""
    if name not in _COUNT:
        return
    HELD_OUT.mkdir(parents=True, exist_ok=True)
    # training drew the speech of seeds from 0 up
    for path, first in ((folder / "clips.safetensors", 0), (HELD_OUT / f"{name}.safetensors", HELD_OUT_SEED)):
        arrays: dict[str, NDArray[Any]] = {}
        contents: dict[str, Any] = {"version": 1}
        frames, identities = [], []
        for n, seed in enumerate(telling(first, _COUNT[name])):
            clip = _drawn(arrays, n, seed) if name == "feathertalk" else _told(arrays, n, seed)
            arrays[f"{n}.sound"] = np.round(clip.sound * 32767).astype(np.int16)
            told = clip.told(25 if name == "feathertalk" else 30)
            arrays[f"{n}.mouth"] = np.where(told > 0, 1, np.where(told < 0, 2, 0)).astype(np.uint8)
            frames.append(len(told))
            identities.append(n % len(avatar_expression.GAINS))
        contents["frames"] = frames
        if name == "feathertalk":
            contents["mouth"] = {"box": MOUTH, "dark": [109, 59], "teeth": [196, 161], "shut": SHUT}
        else:
            contents["identities"] = identities
        save_file(arrays, path, {"clips": json.dumps(contents)})
        path.chmod(0o644)


def telling(first: int, count: int) -> list[int]:
    """Of the seeds from `first` on those whose sound tells the most of whether the mouth is open."""
    told = {seed: int((speak(seed, _SECONDS).told(25) != 0).sum()) for seed in range(first, first + _DRAWN)}
    return sorted(told, key=lambda seed: -told[seed])[:count]


def _drawn(arrays: dict[str, NDArray[Any]], n: int, seed: int) -> Speech:
    clip, video, truth = held_out(0, seed, _SECONDS)
    for kind, frames in (("video", video), ("truth", truth)):
        arrays[f"{n}.{kind}"] = _sheet(frames)
    return clip


def _told(arrays: dict[str, NDArray[Any]], n: int, seed: int) -> Speech:
    clip = speak(seed, _SECONDS)
    arrays[f"{n}.weights"] = avatar_expression.truth(clip.weights(30), n % len(avatar_expression.GAINS))
    return clip


def _sheet(frames: Pixels) -> NDArray[np.uint8]:
    """All frames below one another, as a lossless WebP."""
    file = io.BytesIO()
    sheet = np.ascontiguousarray(frames.reshape(-1, *frames.shape[2:])[..., ::-1])
    Image.fromarray(sheet).save(file, "WEBP", lossless=True, quality=75, method=4)
    return np.frombuffer(file.getvalue(), np.uint8)
