"""Sound in chunks of any sizes becomes the windows of the whole; sound that is none is refused, with what to do."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from artifacts.formats.talking_head import Audio
from artifacts.media.errors import MediaError
from artifacts.media.speech import Sound, Windows

AUDIO = Audio(
    sample_rate=160, samples=72, tokens_per_second=20, tokens=8, hop=2, ahead=1, normalization_eps=1e-7
)  # 8 samples a token
THIRDS = AUDIO.model_copy(update={"tokens_per_second": 30, "samples": 42, "normalization_eps": None})  # 16 / 3 each


def windows(audio: Audio, parts: Iterable[Sound], tokens: int) -> tuple[list[Sound], int]:
    """All windows, and how many came before the end."""
    made = Windows(audio)
    found = []
    for part in parts:
        made.add(part, audio.sample_rate)
        found += list(made.ready())
    early = len(found)
    made.end()
    return found + list(made.ready(tokens)), early


def sound(count: int) -> Sound:
    return np.random.default_rng(count).uniform(-1, 1, count).astype(np.float32)


@given(st.lists(st.integers(0, 60), max_size=20), st.sampled_from([AUDIO, THIRDS]))
def test_every_cut_of_a_sound_gives_its_windows(sizes: list[int], audio: Audio) -> None:
    whole = sound(sum(sizes))
    tokens = -(-len(whole) * audio.tokens_per_second // audio.sample_rate)
    parts = np.split(whole, np.cumsum(sizes)[:-1]) if sizes else []
    found, early = windows(audio, parts, tokens)
    expected, _ = windows(audio, [whole], tokens)
    assert len(found) == max(-(-tokens // audio.hop), early) == len(expected)
    assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("audio", [AUDIO, THIRDS])
def test_windows_are_those_that_the_constants_say(audio: Audio) -> None:
    whole = sound(300)
    found, early = windows(audio, [whole], 300 * audio.tokens_per_second // audio.sample_rate)
    assert 0 < early < len(found)
    padded = np.concatenate([np.zeros(1000, np.float32), whole, np.zeros(1000, np.float32)])
    for n, window in enumerate(found):
        begin = (2 * (n + 1) + 1 - 8) * 160 // audio.tokens_per_second
        expected = padded[1000 + begin : 1000 + begin + audio.samples]
        inside = slice(max(0, -begin), min(audio.samples, 300 - begin))
        if audio.normalization_eps:
            assert abs(window[inside].mean()) < 1e-6 and abs(window[inside].std() - 1) < 1e-6
            outside = np.delete(window, np.arange(audio.samples)[inside])
            assert not outside.any(), "what is no sound stays at zero"
            expected = expected[inside]
            window = window[inside]
            assert np.corrcoef(expected, window)[0, 1] > 1 - 1e-6
        else:
            assert np.array_equal(window, expected)


def test_no_window_waits_for_more_than_its_look_ahead() -> None:
    made = Windows(AUDIO)
    made.add(sound((2 + 1) * 8 + 8 - 1), 160)  # window 0 ends with token 3, whose kernel reaches 8 samples beyond
    assert list(made.ready()) == []
    made.add(sound(1), 160)
    assert len(list(made.ready())) == 1


def test_silence_and_clipped_sound_are_sound() -> None:
    for level in (0.0, 1.0, -1.0):
        found, _ = windows(AUDIO, [np.full(100, level, np.float32)], 13)
        assert all(np.isfinite(window).all() and not window.any() for window in found)
    clipped = np.sign(sound(100))
    assert all(np.isfinite(window).all() for window in windows(AUDIO, [clipped], 13)[0])


def test_no_sound_has_no_windows() -> None:
    assert windows(AUDIO, [], 0) == windows(AUDIO, [sound(0), sound(0)], 0) == ([], 0)


@pytest.mark.parametrize(
    ("given", "rate", "message"),
    [
        (sound(9), 80, r"has 80 samples a second, and this model hears 160; resample all of it before it is cut"),
        (sound(9), 480, r"has 480 samples a second"),
        (np.zeros((9, 2), np.float32), 160, r"has the shape \[9, 2\], .* one channel, \[samples\]; take the mean"),
        (np.zeros(9, np.int16), 160, r"is int16, not float32 of -1 to 1; divide 16-bit samples by 32768"),
        (np.array([0, np.nan, 0], np.float32), 160, r"sample 6 is nan; samples are numbers of -1 to 1"),
        (np.array([np.inf], np.float32), 160, r"sample 5 is inf"),
        (np.array([300, -32768], np.float32), 160, r"reaches 32768, beyond -1 to 1; divide 16-bit samples by 32768"),
    ],
)
def test_sound_that_is_none_is_refused_and_the_stream_goes_on(given: Any, rate: int, message: str) -> None:
    made = Windows(AUDIO)
    made.add(sound(5), 160)
    with pytest.raises(MediaError, match=message):
        made.add(given, rate)
    assert made.length == 5
    made.add(sound(5), 160)
    made.end()
    assert len(list(made.ready(2))) == 1
    with pytest.raises(MediaError, match="after the end of its stream"):
        made.add(sound(1), 160)
