"""A talking head: sound in chunks of any sizes, a frame of the face or of its blendshapes for each moment of it.

What lives here: whose output goes where. What must not: a runtime, and how sound becomes windows and pictures an input
(`artifacts/media/speech.py`, `faces.py`). The unit of use is a hop: the sound by which a window moves on.
"""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from artifacts import MANIFEST, EdgewrightError, Figure, Manifest, MissingTool, Progress, checked, ran_here
from artifacts.formats.talking_head import Constants, read
from artifacts.manifest import payload_file
from artifacts.media.clips import CLIPS, SIDES, Clip, read_clips
from artifacts.media.faces import covered, pasted
from artifacts.media.images import Pixels
from artifacts.media.speech import Sound, Windows
from runtime_tests.clips import STAND_IN_FRAMES, limited, worth_showing
from runtime_tests.clips import judge as judge_clips
from runtime_tests.drivers import Judged, Phase, plain
from runtime_tests.drivers.text import component_of
from runtime_tests.film import write_film
from runtime_tests.sessions import Session
from runtime_tests.vectors import PARITY

if TYPE_CHECKING:
    from runtime_tests.jobs import Job

Floats = NDArray[np.float32]
Pictures = Callable[[int], tuple[Pixels, Pixels]]
"""The reference and the current picture of a video frame, uint8 [crop, crop, 3] each, blue first."""

RENDERER = "renderer"
_CHUNKS = (0, 1, 319, 320, 5003, 0, 77)  # samples, over and over: none, one, and less and more than a token

asker, conclude = plain.asker, plain.conclude


def load(artifact: Path, manifest: Manifest, tiles: int | None = None) -> str:
    """See `Driver`."""
    audio = constants_of(artifact, manifest).audio
    return f"windows of {1000 * audio.samples // audio.sample_rate:,} ms"


def judge(session: Session, manifest: Manifest, job: Job, progress: Progress) -> Judged:
    """See `Driver`: entry vectors judge every entry, and here the stream: sound in chunks against the whole of it."""
    session.load(threads=job.threads)
    constants = constants_of(job.artifact, manifest)
    # two windows are whole before the end
    sound = noise(constants, (2 * constants.audio.hop + constants.audio.ahead) // constants.frames.tokens + 1)
    progress("streaming", 0, 2)
    whole = list(_streamed(session, job.artifact, manifest, [sound]))
    progress("streaming", 1, 2)
    chunked = list(_streamed(session, job.artifact, manifest, chunks(sound)))
    progress("streaming", 2, 2)
    same = sum(np.array_equal(a, b) for a, b in zip(whole, chunked, strict=False))
    figure = ran_here(
        "stream_differences",
        max(len(whole), len(chunked)) - same,
        "frames",
        session.stand_in,
        at=f"{len(whole):,} frames",
    )
    judged = Judged()
    judged.checks.append(checked(figure, PARITY, "stream in chunks: other frames than of the whole", 0, "at most"))
    for name, value in (("lookahead", constants.frames.lookahead_ms), ("hop", constants.hop_ms)):
        judged.figures.append(Figure(name=name, value=value, unit="ms", obtained="declared"))
    if any(entry.path == CLIPS for entry in manifest.files):
        _judge_clips(session, manifest, job, judged, progress)
    return judged


def _judge_clips(session: Session, manifest: Manifest, job: Job, judged: Judged, progress: Progress) -> None:
    """What the artifact makes of its clips, and a film of one of them where there are pictures."""
    exactly = session.exact_stand_in
    if exactly is not None:
        session.load(exact=True, threads=job.threads)
    stand_in = exactly or session.stand_in
    constants = constants_of(job.artifact, manifest)
    clips = read_clips(payload_file(job.artifact, CLIPS), constants)
    if any(side not in clip.made for clip in clips.clips for side in SIDES):
        raise EdgewrightError(f"{job.artifact / CLIPS}: holds no frames of PyTorch; build the artifact again")
    slow = exactly is None and session.stand_in is not None
    most = min(len(clips.clips[0].mouth), STAND_IN_FRAMES) if slow else None
    made = []
    for at, clip in enumerate(clips.clips[: 1 if slow else None]):
        progress("frames of clips", at, len(clips.clips))
        made.append(limited(_said(session, job.artifact, manifest, clip), most))
    progress("frames of clips", 1, 1)
    figures, checks = judge_clips(clips, made, constants, job.limits, stand_in)
    judged.figures += figures
    judged.checks += checks
    judged.held_out_text = clips.text
    if job.film is None or constants.picture is None:
        return
    shown = 0 if slow else worth_showing(clips)
    clip, frames = clips.clips[shown], made[shown]
    sides = {"original": "original, PyTorch", "reference": "quantized, PyTorch"}
    panels = {title: clip.made[side][: len(frames)] for side, title in sides.items()}
    compiled = f"compiled, {stand_in or manifest.target}"
    audio, rate = constants.audio, constants.frames.rate
    sound = clip.sound[: len(frames) * audio.sample_rate // rate]
    try:
        write_film(
            job.film, {**panels, compiled: frames}, (compiled, sides["original"]), sound, audio.sample_rate, rate
        )
    except MissingTool as missing:
        judged.warnings.append(f"no film was made: {missing}")
        return
    judged.film = True


def _said(session: Session, artifact: Path, manifest: Manifest, clip: Clip) -> Iterator[NDArray[Any]]:
    """A clip's frames as the artifact makes them: blendshapes, or crops with what was drawn within them."""
    constants, video = constants_of(artifact, manifest), clip.video
    pictures = None if video is None else (lambda at: (video[at], video[at]))
    head = TalkingHead(session, artifact, manifest, pictures, clip.identity)
    frames = itertools.chain(head.push(clip.sound, constants.audio.sample_rate), head.finish())
    for at, frame in enumerate(frames):
        yield frame if constants.picture is None or video is None else pasted(video[at], frame, constants.picture)


def run(session: Session, manifest: Manifest, job: Job, phase: Phase) -> None:
    """The phases "audio" (one window), "first" (the first frame once its sound is there) and "steady" (hops of sound
    for the job's `steps` more frames)."""
    constants = constants_of(job.artifact, manifest)
    each = constants.audio.hop // constants.frames.tokens
    hops, audio = -(-job.steps // each), constants.audio
    sound = noise(constants, each)
    head = TalkingHead(session, job.artifact, manifest)
    begin = time.perf_counter()
    head.heard(np.zeros(audio.samples, np.float32))
    phase("audio", seconds=time.perf_counter() - begin)
    frame = None
    while frame is None:
        begin = time.perf_counter()
        frames = head.push(sound, audio.sample_rate)
        frame = next(frames, None)
    phase("first", seconds=time.perf_counter() - begin)
    deque(frames, 0)  # the rest of that hop
    seconds = []
    for _ in range(hops):
        begin = time.perf_counter()
        count = len(list(head.push(sound, audio.sample_rate)))
        seconds.append((time.perf_counter() - begin) / max(count, 1))
    phase("steady", seconds=sum(seconds), frame_seconds=statistics.median(seconds))


def speed(events: Mapping[str, Mapping[str, Any]]) -> Sequence[Figure]:
    """Seconds of a window, of the first frame once its sound is there, and of a frame after it, its part of a window
    counted."""
    stand_in = events["load"]["stand_in"]
    found = {
        "host_audio": events["audio"]["seconds"],
        "host_first_frame": events["first"]["seconds"],
        "host_frame_time": events["steady"]["frame_seconds"],
    }
    return [ran_here(name, seconds, "s", stand_in) for name, seconds in found.items()]


class TalkingHead:
    """One stream of sound, which begins with the first `push` and ends with `finish`.

    pictures: of every video frame, where a renderer draws; gray by default. identity: of the speaker, where the encoder
    knows several.
    """

    def __init__(
        self,
        session: Session,
        artifact: Path,
        manifest: Manifest,
        pictures: Pictures | None = None,
        identity: int = 0,
    ) -> None:
        self._session = session
        self._constants = constants = constants_of(artifact, manifest)
        if not 0 <= identity < max(1, constants.identities):
            raise EdgewrightError(f"identity {identity}: the model knows 0 to {constants.identities - 1}")
        self._identity = identity
        self._pictures = pictures or self._gray
        if not manifest.components:
            raise EdgewrightError(f"{artifact / MANIFEST}: no component hears; build the artifact again")
        self._encoder = manifest.components[0]
        self._entry = self._encoder.entries[0]
        shape = self._entry.outputs[0].sized({})
        self._silent = np.zeros((constants.frames.tokens, shape[-1]), np.float32)
        near = (constants.frames.before + 1 + constants.frames.ahead, *self._silent.shape)
        self._features: tuple[int, ...] = near
        if constants.picture is not None:
            inputs = component_of(artifact, manifest, RENDERER).entry("frame").inputs
            self._features = next((port.sized({}) for port in inputs if port.name == "audio"), ())
        if shape[:-1] != (1, constants.audio.tokens) or math.prod(self._features) != math.prod(near):
            raise EdgewrightError(
                f"{artifact / MANIFEST}: driver.constants.audio and frames do not fit the {list(shape)} that "
                f"{self._encoder.name} gives, or what {RENDERER} takes; build the artifact again"
            )
        self._windows = Windows(constants.audio)
        self._tokens: dict[int, Floats] = {}  # of each frame that a later one may be made of
        self._known = self._next = 0  # frames whose tokens are known; that were made

    def push(self, sound: Sound, rate: int) -> Iterator[Floats]:
        """The frames that can be made with samples that come next (see `Windows.add`), in order: pictures float32 [3,
        size, size] of 0 … 1, or blendshapes [count]. Each is made when it is asked for; those that nobody asked for
        come with the next call. Raises EdgewrightError."""
        self._windows.add(sound, rate)
        return self._made(None)

    def finish(self) -> Iterator[Floats]:
        """The last frames: there is no more sound."""
        self._windows.end()
        return self._made(-(-self._windows.length * self._constants.frames.rate // self._constants.audio.sample_rate))

    def heard(self, window: Sound) -> Floats:
        """The tokens of a window, [tokens, …]."""
        given: dict[str, Floats] = {self._entry.inputs[0].name: window[None]}
        if self._constants.identities:
            given["identity"] = np.eye(1, self._constants.identities, self._identity, dtype=np.float32)
        (found,) = self._session.call(self._encoder.name, self._entry.name, **given).values()
        return np.asarray(found[0])

    def _made(self, last: int | None) -> Iterator[Floats]:
        """last: how many frames the whole sound has, once it has ended."""
        audio, frames = self._constants.audio, self._constants.frames
        windows = self._windows.ready(None if last is None else last * frames.tokens)
        kept = slice(audio.tokens - audio.ahead - audio.hop, audio.tokens - audio.ahead)
        while True:
            # at the end of the sound frames wait for none
            while self._next < (self._known if self._known == last else self._known - frames.ahead):
                made = self._frame(self._next)
                self._tokens.pop(self._next - frames.before, None)
                self._next += 1
                yield made
            window = next(windows, None)
            if window is None:
                return
            found = self.heard(window)[kept].reshape(-1, *self._silent.shape)
            for tokens in found[: None if last is None else last - self._known]:
                self._tokens[self._known] = tokens
                self._known += 1

    def _frame(self, at: int) -> Floats:
        frames, picture = self._constants.frames, self._constants.picture
        near = range(at - frames.before, at + frames.ahead + 1)
        features = np.stack([self._tokens.get(frame, self._silent) for frame in near])
        if picture is None:
            return features.reshape(-1)
        image = covered(*self._pictures(at), picture)
        given = {"image": image, "audio": features.reshape(self._features)}
        (drawn,) = self._session.call(RENDERER, "frame", **given).values()
        return np.asarray(drawn[0])

    def _gray(self, at: int) -> tuple[Pixels, Pixels]:
        assert self._constants.picture is not None
        crop = self._constants.picture.crop
        found = np.full((crop, crop, 3), 128, np.uint8)
        return found, found


def noise(constants: Constants, frames: int) -> Sound:
    """Sound of so many frames, the same every time; any does."""
    samples = frames * constants.audio.sample_rate // constants.frames.rate
    return np.random.default_rng(0).uniform(-0.5, 0.5, samples).astype(np.float32)


def chunks(sound: Sound) -> Iterator[Sound]:
    """The same in chunks of very different sizes."""
    at = 0
    for size in itertools.cycle(_CHUNKS):
        yield sound[at : at + size]
        at += size
        if at >= len(sound):
            return


def _streamed(session: Session, artifact: Path, manifest: Manifest, sound: Iterable[Sound]) -> Iterator[Floats]:
    head = TalkingHead(session, artifact, manifest)
    for part in sound:
        yield from head.push(part, constants_of(artifact, manifest).audio.sample_rate)
    yield from head.finish()


def constants_of(artifact: Path, manifest: Manifest) -> Constants:
    """The driver's constants. Raises EdgewrightError."""
    return read(manifest.driver.constants if manifest.driver else {}, str(artifact / MANIFEST))
