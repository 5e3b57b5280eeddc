"""Sound on its way into a talking head: samples in chunks of any sizes become the windows that the whole would.

What lives here: doing what `formats.talking_head.Audio` says, as an app has to do it. What must not: files, resampling
and what a window becomes.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from artifacts.formats.talking_head import Audio
from artifacts.media.errors import MediaError

Sound = NDArray[np.float32]

_LOUDEST = 2.0  # resampling goes a little beyond one; 16-bit samples that nobody divided go far beyond


class Windows:
    """The windows of one stream, float32 [samples], in order; `length` is the samples that came so far.

    Each is made when all of its samples have come, or the stream has ended; a window of a chunked stream is bit for
    bit that of the whole.
    """

    def __init__(self, audio: Audio) -> None:
        self._audio = audio
        self._held: Sound = np.empty(0, np.float32)
        self._from = 0  # sample at which `held` begins
        self._next = 0  # window
        self.length = 0
        self.ended = False

    def add(self, sound: Sound, rate: int) -> None:
        """Samples that come next, float32 [count], -1 … 1; none is fine. rate: their samples a second.

        Raises MediaError for sound that is none, and takes nothing of it.
        """
        if self.ended:
            raise MediaError("sound: came after the end of its stream; begin another one")
        self._check(sound, rate)
        self._held = np.concatenate([self._held, sound])
        self.length += len(sound)

    def end(self) -> None:
        """There is no more sound: what is missing at the end of windows is zeros."""
        self.ended = True

    def ready(self, tokens: int | None = None) -> Iterator[Sound]:
        """The windows that can be made now. tokens: of the whole sound, once it has ended."""
        audio = self._audio
        while True:
            begin = audio.begin((self._next + 1) * audio.hop + audio.ahead - audio.tokens)
            if begin + audio.samples > self.length and (tokens is None or self._next * audio.hop >= tokens):
                return
            window = self._window(begin)
            self._next += 1
            later = audio.begin((self._next + 1) * audio.hop + audio.ahead - audio.tokens)
            gone = min(max(later - self._from, 0), len(self._held))
            self._held, self._from = self._held[gone:], self._from + gone
            yield window

    def _window(self, begin: int) -> Sound:
        first, last = max(begin, 0), min(begin + self._audio.samples, self.length)
        window = np.zeros(self._audio.samples, np.float32)
        if last > first:
            # a copy, so that sums do not depend on where in memory a chunk has put it
            sound = self._held[first - self._from : last - self._from].astype(np.float64)
            if (eps := self._audio.normalization_eps) is not None:
                sound = (sound - sound.mean()) / np.sqrt(sound.var() + eps)
            window[first - begin : last - begin] = sound
        return window

    def _check(self, sound: Sound, rate: int) -> None:
        if rate != self._audio.sample_rate:
            raise MediaError(
                f"sound: has {rate:,} samples a second, and this model hears {self._audio.sample_rate:,}; resample all "
                "of it before it is cut into chunks (ffmpeg -ar, PyAV's AudioResampler)"
            )
        if sound.ndim != 1:
            raise MediaError(
                f"sound: has the shape {list(sound.shape)}, and this model hears one channel, [samples]; take the mean "
                "of the channels"
            )
        if sound.dtype != np.float32:
            raise MediaError(f"sound: is {sound.dtype}, not float32 of -1 to 1; divide 16-bit samples by 32768")
        if not np.isfinite(sound).all():
            at = self.length + int(np.flatnonzero(~np.isfinite(sound))[0])
            raise MediaError(f"sound: sample {at:,} is {sound[at - self.length]}; samples are numbers of -1 to 1")
        if len(sound) and (loudest := float(np.abs(sound).max())) > _LOUDEST:
            raise MediaError(f"sound: reaches {loudest:g}, beyond -1 to 1; divide 16-bit samples by 32768")
