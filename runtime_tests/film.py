"""Something to look at: frames of several makers side by side, with their sound, as an MP4.

What lives here: laying out and encoding. What must not: making frames, and saying how good they are (`clips.py`).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from artifacts import MissingTool
from artifacts.media.clips import Pixels

_SCALE, _TITLE = 3, 28  # pixels of a frame's pixel, and above each panel
_LOUDER = 8  # how many times as large errors are shown


def write_film(
    path: Path, panels: Mapping[str, Pixels], error: tuple[str, str], sound: NDArray[np.float32], rate: int, fps: int
) -> None:
    """Write frames uint8 [frames, height, width, 3], blue first, by their title, and beside them the differences of
    two titles. sound: float32, `rate` samples a second. Raises MissingTool without PyAV."""
    encode(path, _pages(panels, error), sound, rate, fps)


def encode(path: Path, pages: Iterator[Pixels], sound: NDArray[np.float32], rate: int, fps: int) -> None:
    """Write pages uint8 [height, width, 3], red first, at least one, of even sizes, as an MP4 with their sound. Raises
    MissingTool without PyAV."""
    try:
        import av
    except ModuleNotFoundError as missing:
        raise MissingTool("a film of the frames needs PyAV; pip install 'edgewright[video]'") from missing
    with av.open(str(path), "w", format="mp4") as file:
        video = file.add_stream("libx264", rate=fps, options={"crf": "16", "preset": "veryfast"})
        audio = file.add_stream("aac", rate=rate, layout="mono")
        first = next(pages)
        video.height, video.width = first.shape[:2]
        video.pix_fmt = "yuv420p"
        for page in itertools.chain([first], pages):
            file.mux(video.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(page), format="rgb24")))
        file.mux(video.encode())
        heard = av.AudioFrame.from_ndarray(sound[None], format="fltp", layout="mono")
        heard.sample_rate = rate
        file.mux(audio.encode(heard))
        file.mux(audio.encode())


def _pages(panels: Mapping[str, Pixels], error: tuple[str, str]) -> Iterator[Pixels]:
    one, other = (panels[name].astype(np.int32) for name in error)
    apart = np.clip(_LOUDER * np.abs(one - other), 0, 255).astype(np.uint8)
    shown = {**panels, f"{error[0]} - {error[1]}, x {_LOUDER}": apart}
    count, width = len(one), one.shape[2]
    head = _titles(list(shown), width * _SCALE)
    for at in range(count):
        row = np.concatenate([frames[at] for frames in shown.values()], 1)[..., ::-1]
        large = row.repeat(_SCALE, 0).repeat(_SCALE, 1)
        page = np.concatenate([head, large])
        yield page[: page.shape[0] // 2 * 2, : page.shape[1] // 2 * 2]


def _titles(names: list[str], width: int) -> Pixels:
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (width * len(names), _TITLE), (24, 24, 24))
    pen = ImageDraw.Draw(image)
    for at, name in enumerate(names):
        pen.text((at * width + 8, 7), name, (235, 235, 235), font_size=13)
    return np.asarray(image)
