"""From a clip, whoever made it, to the frames that a model looks at, and when they were taken.

What lives here: choosing frames as transformers' SmolVLMVideoProcessor does, and reading them: from a video file
(PyAV), a folder of images or an array. What must not: the text that stands for a clip (`prompt.py`).

Frames are resized by Pillow, as the image processor does without splitting. The video processor resizes by torch,
whose 8-bit weights give other last bits: at most 2 of 255 on noise, and other ones on other processors.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from artifacts.documents import open_regular
from artifacts.errors import MissingTool
from artifacts.formats.preprocessing import Preprocessing, Smolvlm, SmolvlmVideo
from artifacts.media.errors import MediaError
from artifacts.media.images import MAX_PIXELS, Pixels, read_image
from artifacts.media.tiles import resized, scaled_size

MAX_FRAMES = 200_000
"""The longest clip that is opened: nearly two hours at 30 frames a second."""
# What av.open may take a file for. Never playlists, which name other files and addresses.
_CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,gif,apng,mpegts,mpeg,ogg,flv,asf"
_OPTIONS = {"format_whitelist": _CONTAINERS, "protocol_whitelist": "", "enable_drefs": "0"}


@dataclass(frozen=True)
class Clip:
    """tiles: uint8 [frames, tile, tile, 3]; indices: which frames of the clip; timestamps, duration: seconds."""

    tiles: Pixels
    indices: tuple[int, ...]
    timestamps: tuple[float, ...]
    duration: float


def sample(total: int, fps: float, duration: float, rule: SmolvlmVideo) -> tuple[int, ...]:
    """Which of `total` frames are taken of a clip of `fps` frames per second and `duration` seconds, ascending.

    `rule.fps` of them a second, `rule.max_frames` at most, evenly from the first to the last; from long clips without
    the first and last `rule.skip_seconds`.
    """
    wanted = max(1, min(round(rule.fps * duration), rule.max_frames))
    first, last = 0, total - 1
    if rule.skip_seconds > 0 and duration - 2 * rule.skip_seconds > rule.max_frames * rule.fps:
        first = int(rule.skip_seconds * fps)
        last = min(int(total - rule.skip_seconds * fps), total - 1)
    if first >= last:
        first, last = 0, total - 1
    return tuple(int(at) for at in np.unique(np.linspace(first, last, wanted, dtype=np.int64)))


def frame_tile(frame: Pixels, description: Smolvlm) -> Pixels:
    """uint8 [height, width, 3] to uint8 [tile, tile, 3]: to the clip's longest edge, then stretched to a square."""
    rule = _rule(description)
    height, width = scaled_size(frame.shape[0], frame.shape[1], rule.longest_edge)
    images = description.images
    return resized(resized(frame, height, width, images.resample), images.tile, images.tile, images.resample)


def clip_of_array(frames: Pixels, fps: float, description: Smolvlm, source: str = "the clip") -> Clip:
    """A clip from all its frames, uint8 [frames, height, width, 3], R, G, B. Raises MediaError naming `source`."""
    if frames.ndim != 4 or frames.shape[3] != 3 or frames.dtype != np.uint8:
        raise MediaError(
            f"{source}: frames are {frames.dtype} {list(frames.shape)}, expected uint8 [n, height, width, 3]"
        )
    if frames.size == 0 and len(frames):
        raise MediaError(f"{source}: its frames hold no pixels")
    return _clip(source, len(frames), fps, description, lambda wanted: (frames[at] for at in wanted))


def clip_of_folder(folder: Path, fps: float, description: Smolvlm, *, links: bool = True) -> Clip:
    """A clip from a folder of images, ordered by name with numbers in it by value; only frames that count are read.

    Hidden files are passed over. Raises EdgewrightError naming the folder or the frame.
    """
    try:
        names = sorted((name for name in os.listdir(folder) if not name.startswith(".")), key=_by_number)
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise MediaError(f"{folder}: cannot be read as a folder of frames: {reason}") from error
    return _clip(
        str(folder), len(names), fps, description,
        lambda wanted: (read_image(folder / names[at], links=links) for at in wanted),
    )  # fmt: skip


def clip_of_file(path: Path, description: Smolvlm, *, links: bool = True) -> Clip:
    """A clip from a video file, in one pass that keeps one frame in memory; turned as the file says it is shown.

    Frames are counted from the file's header, or by decoding all of it where that does not say. Raises EdgewrightError
    naming the file: no video, no frames, no rate, damaged, cut short, too large, and MissingTool without PyAV.
    """
    total, fps = _measured(path, links)
    return _clip(str(path), total, fps, description, lambda wanted: _decoded(path, wanted, links))


def read_clip(path: Path, description: Preprocessing, *, fps: float | None = None, links: bool = True) -> Clip:
    """A video file, or a folder of frames, of which `fps` must be given."""
    if not isinstance(description, Smolvlm):
        raise MediaError(f"{path}: the model takes images only, no clips")
    if path.is_dir():
        if fps is None:
            raise MediaError(f"{path}: a folder of frames does not say how many make a second; give fps")
        return clip_of_folder(path, fps, description, links=links)
    return clip_of_file(path, description, links=links)


def _clip(
    source: str, total: int, fps: float, description: Smolvlm, fetch: Callable[[tuple[int, ...]], Iterator[Pixels]]
) -> Clip:
    if total < 1:
        raise MediaError(f"{source}: a clip without frames")
    if total > MAX_FRAMES:
        raise MediaError(f"{source}: a clip of {total:,} frames; at most {MAX_FRAMES:,} are looked at: cut it first")
    if not math.isfinite(fps) or not 0 < fps <= 100_000:
        raise MediaError(f"{source}: {fps:g} frames per second, which no clip has; it needs its true rate")
    duration = total / fps
    indices = sample(total, fps, duration, _rule(description))
    tile = description.images.tile
    tiles = np.empty((len(indices), tile, tile, 3), np.uint8)
    at = -1
    for at, frame in enumerate(fetch(indices)):
        tiles[at] = frame_tile(frame, description)
    if at + 1 < len(indices):
        raise MediaError(f"{source}: cut short: frame {indices[at + 1]} of {total} is not there")
    return Clip(tiles, indices, tuple(index / fps for index in indices), duration)


def _rule(description: Smolvlm) -> SmolvlmVideo:
    if description.video is None:
        raise MediaError("the model takes images only, no clips")
    return description.video


def _by_number(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d{1,18})", name)]


@contextmanager
def _opened(path: Path, links: bool) -> Iterator[tuple[Any, Any]]:
    """The container and its first video stream."""
    try:
        import av
    except ImportError:
        raise MissingTool(
            f"{path}: clips in a file need PyAV: pip install 'edgewright[video]', or give a folder of frames"
        ) from None
    with open_regular(path, links=links) as file:
        try:
            with av.open(file, options=_OPTIONS) as container:
                if not container.streams.video:
                    raise MediaError(f"{path}: holds no video")
                stream = container.streams.video[0]
                size = stream.width, stream.height
                if size[0] * size[1] > MAX_PIXELS:
                    raise MediaError(f"{path}: frames of {size[0]} × {size[1]} pixels; at most {MAX_PIXELS:,} are read")
                yield container, stream
        except MediaError:
            raise
        except Exception as error:
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise MediaError(f"{path}: not a video that can be read, or damaged: {reason[:160]}") from error


def _measured(path: Path, links: bool) -> tuple[int, float]:
    """How many frames a file holds, and how many of them make a second."""
    with _opened(path, links) as (container, stream):
        total, rate = int(stream.frames), stream.average_rate
        if total < 1:
            for _ in container.decode(stream):
                total += 1
                if total > MAX_FRAMES:
                    break
    if not total:
        raise MediaError(f"{path}: a clip without frames")
    if not rate:
        raise MediaError(f"{path}: does not say how many frames make a second")
    return total, float(rate)


def _decoded(path: Path, wanted: tuple[int, ...], links: bool) -> Iterator[Pixels]:
    left = list(wanted)
    with _opened(path, links) as (container, stream):
        for at, frame in enumerate(container.decode(stream)):
            if at == left[0]:
                if frame.width * frame.height > MAX_PIXELS:
                    raise MediaError(f"{path}: frame {at} has {frame.width} × {frame.height} pixels")
                quarter = round(getattr(frame, "rotation", 0) / 90)  # counterclockwise
                yield np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), quarter))
                left.pop(0)
                if not left:
                    return
