"""Sound for a head that talks, and what it makes of it as something to look at: a film, pictures, or a motion stream.

What lives here: reading a WAV, whose face it is, the frames as the artifact's process leaves them, and the files that
whoever listens makes of them: encoding a film takes memory that is none of the artifact's. What must not: how a frame
comes to be (`drivers/talking_head.py`).
"""

from __future__ import annotations

import itertools
import time
import wave
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
from numpy.typing import NDArray

from artifacts import EdgewrightError, Manifest
from artifacts.documents import open_regular
from artifacts.formats.talking_head import Constants
from artifacts.manifest import payload_file
from artifacts.media.clips import CLIPS, read_clips
from artifacts.media.faces import pasted
from artifacts.media.images import Pixels
from artifacts.media.motion import CHANNELS, FPS, MOST_FRAMES, WEIGHTS, MotionEncoder
from artifacts.media.speech import Sound
from runtime_tests.drivers import Phase
from runtime_tests.drivers.talking_head import TalkingHead, constants_of
from runtime_tests.film import encode
from runtime_tests.sessions import Session

_MOST_S = 600
_SCALE = 1 / 32768


_MAKES = "ffmpeg -i IN -ac 1 -ar {rate} -c:a pcm_s16le OUT.wav makes one"


def read_sound(path: Path, rate: int) -> Sound:
    """float32 [samples] of a WAV of 16 bits, one channel or the mean of several, `rate` samples a second.

    Raises EdgewrightError naming the file and how to make one that is right.
    """
    mend = _MAKES.format(rate=rate)
    try:
        with open_regular(path) as raw, wave.open(raw) as file:
            if file.getsampwidth() != 2 or file.getframerate() != rate:
                raise EdgewrightError(
                    f"{path}: has {file.getframerate():,} samples a second of {8 * file.getsampwidth()} bits; the "
                    f"model hears {rate:,} of 16 bits: {mend}"
                )
            channels, data = file.getnchannels(), file.readframes(_MOST_S * rate)
    except (wave.Error, EOFError) as error:
        raise EdgewrightError(f"{path}: no WAV that can be read ({error or 'it is cut short'}); {mend}") from error
    whole = np.frombuffer(data[: len(data) // (2 * channels) * 2 * channels], "<i2").reshape(-1, channels)
    if not len(whole):
        raise EdgewrightError(f"{path}: holds no sound; {mend}")
    found: Sound = (whole.mean(1) * _SCALE).astype(np.float32)
    return found


class Listener:
    """See `talk.Partner`: hears a file, and leaves its frames in `folder`, one array after another. A face is that of
    the artifact's own clips, over and over; gray where it carries none."""

    def __init__(self, session: Session, artifact: Path, manifest: Manifest, folder: Path) -> None:
        self._session, self._artifact, self._manifest, self._folder = session, artifact, manifest, folder
        self._constants: Constants = constants_of(artifact, manifest)
        self._face: Pixels | None = None
        if self._constants.picture is not None and any(entry.path == CLIPS for entry in manifest.files):
            self._face = read_clips(payload_file(artifact, CLIPS), self._constants).clips[0].video

    def clear(self) -> None:
        """See `talk.Partner`: nothing is kept from one sound to the next."""

    def answer(
        self, request: dict[str, Any], stopped: Event, emit: Callable[[dict[str, Any]], None], phase: Phase
    ) -> dict[str, Any]:
        """See `talk.Partner`. "made" is a file of "frames" arrays of "dtype" and "shape"."""
        if "hear" not in request:
            raise EdgewrightError("the model hears sound and reads no text: give it --audio FILE.wav")
        rate = self._constants.audio.sample_rate
        sound = read_sound(Path(request["hear"]), rate)
        begin = first = time.perf_counter()
        count, frame = 0, np.empty(0)
        path = self._folder / "frames"
        with path.open("wb") as file:
            for frame in self._frames(sound, rate):
                if not count:
                    first = time.perf_counter()
                    phase("first")
                file.write(np.ascontiguousarray(frame).data)
                count += 1
                emit({"frame": count, "seconds": time.perf_counter() - first})
                if stopped.is_set():
                    break
        return {
            "made": str(path),
            "frames": count,
            "dtype": str(frame.dtype),
            "shape": list(frame.shape),
            "first": first - begin,
            "seconds": time.perf_counter() - first,
            "ended": "stopped" if stopped.is_set() else "ended",
        }

    def _frames(self, sound: Sound, rate: int) -> Iterator[NDArray[Any]]:
        picture, face = self._constants.picture, self._face
        if picture is not None and face is None:
            face = np.full((1, picture.crop, picture.crop, 3), 128, np.uint8)

        def shown(at: int) -> Pixels:
            assert face is not None
            # there and back again: a video that jumps is no head's
            turn = at % max(1, 2 * len(face) - 2)
            crop: Pixels = face[turn if turn < len(face) else 2 * len(face) - 2 - turn]
            return crop

        head = TalkingHead(
            self._session,
            self._artifact,
            self._manifest,
            None if face is None else lambda at: (shown(at), shown(at)),
        )
        for at, frame in enumerate(itertools.chain(head.push(sound, rate), head.finish())):
            yield frame if picture is None else pasted(shown(at), frame, picture)


def form(constants: Constants) -> str:
    """How a file of what this model makes ends: .mp4, .motion, or .npy for other shapes and rates than a stream's."""
    if constants.picture is not None:
        return ".mp4"
    stream = len(constants.blendshapes) == WEIGHTS and constants.frames.rate == FPS
    return ".motion" if stream else ".npy"


def write_frames(frames: NDArray[Any], constants: Constants, sound: Path, place: Path) -> str:
    """Write what a listener made of a sound, by how `place` ends: a film (.mp4), a motion stream (.motion), an array
    (.npy), else a folder of pictures; what it is, in a few words. Raises EdgewrightError, and MissingTool for a film
    without PyAV."""
    fps, rate, pictures = constants.frames.rate, constants.audio.sample_rate, constants.picture is not None
    if pictures and place.suffix == ".mp4":
        heard = read_sound(sound, rate)[: len(frames) * rate // fps]
        even = frames[:, : frames.shape[1] // 2 * 2, : frames.shape[2] // 2 * 2, ::-1]
        encode(place, iter(even), heard, rate, fps)
        return "a film with its sound"
    if pictures and place.suffix in ("", ".png"):
        from PIL import Image

        place.mkdir()
        for at, frame in enumerate(frames):
            Image.fromarray(np.ascontiguousarray(frame[..., ::-1])).save(place / f"{at:05}.png")
        return f"pictures, {fps} a second"
    if place.suffix == ".motion" and form(constants) == ".motion":
        posed = np.pad(frames, ((0, 0), (0, CHANNELS - WEIGHTS)))
        encoder = MotionEncoder()
        packets = (encoder.encode(posed[at : at + MOST_FRAMES]) for at in range(0, len(posed), MOST_FRAMES))
        place.write_bytes(b"".join(len(packet).to_bytes(2, "little") + packet for packet in packets))
        return "a motion stream (MOTION.md), each packet after its length in two bytes, the lower first"
    if place.suffix != ".npy":
        raise EdgewrightError(f"--out: {place}: this model makes {form(constants)}; name such a file, or a .npy")
    np.save(place, frames)
    return f"{frames.dtype} {list(frames.shape)}, {fps} frames a second"
