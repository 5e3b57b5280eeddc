"""Speech that a script can make, with the mouth that says it: formants, and the ARKit blendshapes of its phones.

A clip is random syllables in a random voice. Sound is a train of pulses and noise, each under the spectral envelope of
the phone (Peterson's and Barney's formants; loci of the stops as in textbooks); the mouth is that of the phone's
viseme, eased from one to the next, and shut for as long as a p, b or m shuts it. The same seed gives the same clip.

What lives here: sound and weights. What must not: how a face is drawn (`avatar_face.py`) and what learns from it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

RATE, GRID = 16000, 200  # samples, and steps of phones and weights, a second
HELD_OUT_SEED = 1_000_000_000
_HOP, _WINDOW = RATE // GRID, 4 * RATE // GRID
_SIDES = ("Left", "Right")
_EYES = ("Blink", "LookDown", "LookIn", "LookOut", "LookUp", "Squint", "Wide")


def _both(*names: str) -> list[str]:
    return [f"{name}{side}" for name in names for side in _SIDES]


BLENDSHAPES = (
    *_both("browDown"),
    "browInnerUp",
    *_both("browOuterUp"),
    "cheekPuff",
    *_both("cheekSquint", *(f"eye{what}" for what in _EYES)),
    *("jawForward", "jawLeft", "jawOpen", "jawRight", "mouthClose"),
    *_both("mouthDimple", "mouthFrown"),
    *("mouthFunnel", "mouthLeft"),
    *_both("mouthLowerDown", "mouthPress"),
    *("mouthPucker", "mouthRight", "mouthRollLower", "mouthRollUpper", "mouthShrugLower", "mouthShrugUpper"),
    *_both("mouthSmile", "mouthStretch", "mouthUpperUp", "noseSneer"),
    "tongueOut",
)
AT = {name: at for at, name in enumerate(BLENDSHAPES)}

# jawOpen, mouthClose, mouthFunnel, mouthPucker, mouthRollLower, mouthRollUpper, tongueOut, then of both sides:
# mouthSmile, mouthStretch, mouthLowerDown, mouthUpperUp, mouthPress
_SHAPES: dict[str, tuple[float, ...]] = {
    "rest": (0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0),
    "pp": (0.12, 0.12, 0, 0.05, 0.2, 0.2, 0, 0, 0, 0, 0, 0.35),
    "ff": (0.08, 0.02, 0, 0, 0.45, 0, 0, 0, 0.05, 0, 0.2, 0),
    "th": (0.18, 0, 0, 0, 0, 0, 0.4, 0, 0.05, 0.15, 0.05, 0),
    "dd": (0.18, 0, 0, 0, 0, 0, 0, 0.05, 0.1, 0.2, 0.1, 0),
    "kk": (0.24, 0, 0, 0, 0, 0, 0, 0, 0.05, 0.15, 0.05, 0),
    "ss": (0.06, 0, 0, 0, 0, 0, 0, 0.2, 0.3, 0.3, 0.15, 0),
    "sh": (0.1, 0, 0.55, 0.15, 0, 0, 0, 0, 0, 0.2, 0.15, 0),
    "rr": (0.15, 0, 0.15, 0.35, 0, 0, 0, 0, 0, 0.1, 0.05, 0),
    "uu": (0.12, 0, 0.3, 0.75, 0, 0, 0, 0, 0, 0, 0, 0),
    "oo": (0.38, 0, 0.4, 0.4, 0, 0, 0, 0, 0, 0.05, 0, 0),
    "aw": (0.55, 0, 0.35, 0.1, 0, 0, 0, 0, 0, 0.1, 0.05, 0),
    "aa": (0.75, 0, 0, 0, 0, 0, 0, 0, 0.05, 0.2, 0.1, 0),
    "ae": (0.55, 0, 0, 0, 0, 0, 0, 0.2, 0.25, 0.25, 0.15, 0),
    "eh": (0.4, 0, 0, 0, 0, 0, 0, 0.15, 0.2, 0.2, 0.1, 0),
    "ih": (0.25, 0, 0, 0, 0, 0, 0, 0.25, 0.15, 0.15, 0.1, 0),
    "ii": (0.12, 0, 0, 0, 0, 0, 0, 0.5, 0.35, 0.2, 0.1, 0),
    "er": (0.25, 0, 0.1, 0.25, 0, 0, 0, 0, 0, 0.1, 0.05, 0),
}
_ALONE = ("jawOpen", "mouthClose", "mouthFunnel", "mouthPucker", "mouthRollLower", "mouthRollUpper", "tongueOut")
_PAIRED = ("mouthSmile", "mouthStretch", "mouthLowerDown", "mouthUpperUp", "mouthPress")
SPEAKING = (*_ALONE, *_both(*_PAIRED))
"""The blendshapes that the sound decides."""


@dataclass(frozen=True)
class Phone:
    """formants: three, Hz; voiced, noisy: amplitudes; noise: its middle and width, Hz; ms: how long it is."""

    viseme: str
    formants: tuple[float, float, float]
    voiced: float
    noisy: float = 0.0
    noise: tuple[float, float] = (4000, 2000)
    ms: float = 90


VOWELS = {
    "aa": Phone("aa", (730, 1090, 2440), 1.0, ms=150),
    "ae": Phone("ae", (660, 1720, 2410), 0.95, ms=140),
    "eh": Phone("eh", (530, 1840, 2480), 0.9, ms=120),
    "ih": Phone("ih", (390, 1990, 2550), 0.8, ms=110),
    "iy": Phone("ii", (270, 2290, 3010), 0.75, ms=130),
    "ao": Phone("aw", (570, 840, 2410), 0.95, ms=150),
    "ow": Phone("oo", (450, 880, 2350), 0.85, ms=140),
    "uw": Phone("uu", (300, 870, 2240), 0.7, ms=130),
    "er": Phone("er", (490, 1350, 1690), 0.8, ms=130),
}
_STOPS = {  # what shuts the mouth, then what lets go
    "p": (Phone("pp", (200, 800, 2200), 0, ms=95), Phone("", (400, 900, 2200), 0, 0.35, (900, 500), 22)),
    "b": (Phone("pp", (200, 800, 2200), 0.16, ms=90), Phone("", (400, 900, 2200), 0.4, 0.2, (900, 500), 15)),
    "t": (Phone("dd", (200, 1750, 2700), 0, ms=65), Phone("", (400, 1750, 2700), 0, 0.45, (4500, 1300), 28)),
    "d": (Phone("dd", (200, 1750, 2700), 0.16, ms=60), Phone("", (400, 1750, 2700), 0.4, 0.3, (4000, 1300), 15)),
    "k": (Phone("kk", (200, 2000, 2350), 0, ms=65), Phone("", (400, 2000, 2350), 0, 0.45, (2000, 500), 32)),
    "g": (Phone("kk", (200, 2000, 2350), 0.16, ms=60), Phone("", (400, 2000, 2350), 0.4, 0.3, (2000, 500), 18)),
}
_OTHERS = {
    "m": (Phone("pp", (250, 1000, 2200), 0.45, ms=100),),
    "n": (Phone("dd", (250, 1650, 2600), 0.45, ms=80),),
    "f": (Phone("ff", (340, 1050, 2100), 0, 0.14, (6500, 3500), 105),),
    "v": (Phone("ff", (300, 1050, 2100), 0.35, 0.08, (6500, 3500), 80),),
    "th": (Phone("th", (320, 1300, 2600), 0, 0.09, (7500, 1500), 95),),
    "s": (Phone("ss", (320, 1600, 2600), 0, 0.5, (6300, 900), 110),),
    "z": (Phone("ss", (300, 1600, 2600), 0.3, 0.3, (6300, 900), 90),),
    "sh": (Phone("sh", (320, 1800, 2500), 0, 0.5, (3200, 800), 110),),
    "l": (Phone("dd", (360, 1050, 2800), 0.6, ms=70),),
    "r": (Phone("rr", (330, 1060, 1450), 0.6, ms=75),),
    "w": (Phone("uu", (300, 650, 2200), 0.6, ms=75),),
    "y": (Phone("ii", (280, 2250, 3000), 0.6, ms=65),),
}
CONSONANTS: dict[str, tuple[Phone, ...]] = {**_STOPS, **_OTHERS}
SHUT = ("p", "b", "m")


@dataclass(frozen=True)
class Segment:
    """A phone, or a pause, from `begin` to `end`, seconds. loud: its syllable's, about 1."""

    name: str
    phone: Phone
    begin: float
    end: float
    loud: float


@dataclass(frozen=True)
class Speech:
    """sound: float32 [samples], -1 to 1; track: weights, float32 [steps, 52], GRID steps a second."""

    segments: tuple[Segment, ...]
    sound: Floats
    track: Floats

    def weights(self, fps: int) -> Floats:
        """[frames, 52], each at the middle of its frame; as many frames as have begun."""
        frames = -(-len(self.sound) * fps // RATE)
        at = (np.arange(frames) + 0.5) / fps * GRID - 0.5
        steps = np.arange(len(self.track))
        return np.stack([np.interp(at, steps, column) for column in self.track.T], 1).astype(np.float32)

    def told(self, fps: int) -> NDArray[np.int8]:
        """[frames]: 1 where a vowel surely opens the mouth, -1 where p, b or m surely shut it, 0 elsewhere."""
        frames = -(-len(self.sound) * fps // RATE)
        found = np.zeros(frames, np.int8)
        for segment in self.segments:
            shut = segment.phone.viseme == "pp"
            if not shut and (segment.name not in VOWELS or segment.phone.viseme in ("uu", "ii")):
                continue
            edge = 0.025 if shut else 0.04
            middles = (np.arange(frames) + 0.5) / fps
            found[(middles > segment.begin + edge) & (middles < segment.end - edge)] = -1 if shut else 1
        return found


@dataclass(frozen=True)
class _Voice:
    pitch: float  # Hz
    tract: float  # how much higher its formants are
    pace: float
    tilt: float
    rms: float
    hiss: float

    @staticmethod
    def drawn(random: np.random.Generator) -> _Voice:
        high = random.uniform()
        return _Voice(
            pitch=85 + 150 * high + random.uniform(-10, 25),
            tract=0.9 + 0.25 * high + random.uniform(-0.05, 0.05),
            pace=random.uniform(0.85, 1.2),
            tilt=random.uniform(0.7, 1.1),
            rms=float(np.exp(random.uniform(np.log(0.03), np.log(0.2)))),
            hiss=float(np.exp(random.uniform(np.log(1e-3), np.log(1e-2)))),
        )


def speak(seed: int, seconds: float) -> Speech:
    """Random syllables in a random voice."""
    random = np.random.default_rng(seed)
    voice = _Voice.drawn(random)
    segments = _syllables(random, voice, seconds)
    return Speech(segments, _sound(random, voice, segments, int(seconds * RATE)), _Track(segments, seconds).eased)


def _syllables(random: np.random.Generator, voice: _Voice, seconds: float) -> tuple[Segment, ...]:
    found: list[Segment] = []
    now = 0.0

    def add(name: str, phone: Phone, loud: float, ms: float | None = None) -> None:
        nonlocal now
        length = (ms or phone.ms * random.uniform(0.8, 1.3) * voice.pace) / 1000
        found.append(Segment(name, phone, now, now + length, loud))
        now += length

    silence = Phone("rest", (500, 1500, 2500), 0)
    consonants, vowels = list(CONSONANTS), list(VOWELS)
    weights = np.array([2.0 if name in SHUT else 1.0 for name in consonants])
    add("", silence, 1, random.uniform(80, 400))
    while now < seconds:
        for _ in range(int(random.integers(2, 9))):
            accent = random.uniform() < 0.25
            loud = (1.35 if accent else 1.0) * float(random.uniform(0.85, 1.1))
            parts = [str(random.choice(consonants, p=weights / weights.sum()))] if random.uniform() < 0.9 else []
            parts += [str(random.choice(vowels))]
            parts += [str(random.choice(consonants, p=weights / weights.sum()))] if random.uniform() < 0.25 else []
            for name in parts:
                for phone in (VOWELS[name],) if name in VOWELS else CONSONANTS[name]:
                    add(name, phone, loud)
        add("", silence, 1, random.uniform(120, 600))
    return tuple(found)


class _Track:
    """Weights on the grid."""

    def __init__(self, segments: tuple[Segment, ...], seconds: float) -> None:
        self._times = (np.arange(int(seconds * GRID)) + 0.5) / GRID
        self._segments = segments
        self._which = np.searchsorted([s.end for s in segments], self._times).clip(0, len(segments) - 1)

    @cached_property
    def eased(self) -> Floats:
        visemes = [segment.phone.viseme for segment in self._segments]
        for at, viseme in enumerate(visemes):  # what lets a stop go has the mouth of what follows
            if not viseme:
                visemes[at] = visemes[at + 1] if at + 1 < len(visemes) else "rest"
        loud = np.array([min(1.15, 0.6 + 0.4 * s.loud) for s in self._segments])
        shapes = np.stack([_shape(viseme) for viseme in visemes]) * loud[:, None]
        shut = np.array([viseme == "pp" for viseme in visemes], np.float64)
        slow = _smoothed(shapes[self._which] * (1 - shut[self._which, None]), 0.16)
        share = _smoothed(1 - shut[self._which, None], 0.16)
        closing = _smoothed(shut[self._which, None], 0.06)
        open_shape = slow / np.maximum(share, 0.05)
        found = (1 - closing) * open_shape + closing * _shape("pp")
        accent = np.array([max(0.0, s.loud - 1.1) if s.phone.voiced else 0 for s in self._segments])
        found[:, AT["browInnerUp"]] = _smoothed(accent[self._which, None], 0.25)[:, 0]
        return found.clip(0, 1).astype(np.float32)


def _shape(viseme: str) -> NDArray[np.float64]:
    found, given = np.zeros(len(BLENDSHAPES)), _SHAPES[viseme]
    for name, value in zip(_ALONE, given, strict=False):
        found[AT[name]] = value
    for name, value in zip(_PAIRED, given[len(_ALONE) :], strict=True):
        found[[AT[side] for side in _both(name)]] = value
    return found


def _smoothed(values: NDArray[np.float64], seconds: float) -> NDArray[np.float64]:
    """Under a Hann window."""
    half = int(seconds * GRID / 2)
    kernel = np.hanning(2 * half + 3)[1:-1]
    padded = np.pad(values, ((half, half), (0, 0)), mode="edge")
    return np.stack([np.convolve(column, kernel / kernel.sum(), "valid") for column in padded.T], 1)


def _sound(random: np.random.Generator, voice: _Voice, segments: tuple[Segment, ...], samples: int) -> Floats:
    steps = samples // _HOP + 1
    times = np.arange(steps) / GRID
    which = np.searchsorted([s.end for s in segments], times).clip(0, len(segments) - 1)

    def eased(values: list[float], seconds: float) -> NDArray[np.float64]:
        return _smoothed(np.array(values, np.float64)[which, None], seconds)[:, 0]

    formants = [
        eased([s.phone.formants[k] for s in segments], 0.05) * voice.tract * random.uniform(0.98, 1.02)
        for k in range(3)
    ]
    voiced = eased([s.phone.voiced * s.loud for s in segments], 0.02)
    noisy = eased([s.phone.noisy * s.loud for s in segments], 0.015)
    middle, width = (eased([s.phone.noise[k] for s in segments], 0.01) for k in range(2))
    accent = eased([s.loud for s in segments], 0.2)
    drift = _smoothed(random.standard_normal((steps, 1)), 0.4)[:, 0]
    pitch = voice.pitch * (0.8 + 0.2 * accent + 0.15 * drift) * (1 - 0.03 * np.sin(2 * np.pi * times / 2.3))
    phase = np.cumsum(np.interp(np.arange(samples) / RATE, times, pitch)) / RATE
    pulses = np.diff(np.floor(phase), prepend=0.0) * (RATE / voice.pitch) ** 0.5
    breath = random.standard_normal(samples)
    frequencies = np.fft.rfftfreq(_WINDOW, 1 / RATE)
    glottis = (1 + frequencies / 250) ** -voice.tilt / (1 + np.exp((60 - frequencies) / 15))
    vocal = np.ones((steps, len(frequencies)))
    for formant, band in zip(
        (*formants, 3500 * voice.tract, 4500 * voice.tract), (80, 100, 140, 250, 350), strict=True
    ):
        at = np.broadcast_to(formant, (steps,))[:, None]
        vocal /= np.sqrt((1 - (frequencies / at) ** 2) ** 2 + (frequencies * band / at**2) ** 2)
    vocal *= glottis / np.sqrt((vocal**2 * glottis**2).mean(1, keepdims=True))
    rustle = np.exp(-0.5 * ((frequencies - middle[:, None]) / width[:, None]) ** 2)
    rustle /= np.sqrt((rustle**2).mean(1, keepdims=True)) + 1e-9
    found = _filtered(pulses, vocal * voiced[:, None]) + _filtered(breath, rustle * noisy[:, None])
    # breath goes through the same tract
    found += 0.02 * _filtered(breath, vocal * voiced[:, None])
    found *= voice.rms / np.sqrt((found**2).mean() + 1e-12)
    found += voice.rms * voice.hiss * random.standard_normal(samples)
    return found.clip(-1, 1).astype(np.float32)


def _filtered(sound: NDArray[np.float64], envelopes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sound under an envelope [steps, bins] that changes with every step of the grid."""
    window = np.hanning(_WINDOW + 1)[:-1]
    padded = np.pad(sound, (_WINDOW // 2, _WINDOW))
    frames = np.lib.stride_tricks.sliding_window_view(padded, _WINDOW)[::_HOP][: len(envelopes)]
    parts = np.fft.irfft(np.fft.rfft(frames * window, axis=1) * envelopes[: len(frames)], _WINDOW, axis=1)
    found = np.zeros(len(parts) * _HOP + _WINDOW)
    for at, part in enumerate(parts):
        found[at * _HOP : at * _HOP + _WINDOW] += part
    return found[_WINDOW // 2 :][: len(sound)] / 2
