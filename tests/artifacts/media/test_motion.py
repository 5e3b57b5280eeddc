"""A motion stream: what comes out, how little it is, and what a loss costs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from artifacts.media.motion import (
    CHANNELS,
    FPS,
    KEY_EVERY,
    MOST_FRAMES,
    WEIGHTS,
    MotionDecoder,
    MotionEncoder,
    MotionError,
)

Frames = np.ndarray[Any, np.dtype[np.float32]]
HALF_STEPS = np.array([1 / 256] * WEIGHTS + [3 / 32] * 3 + [0.5] * 3)


def spoken(seconds: float, seed: int) -> Frames:
    """A face that speaks: mouth shapes that run into each other, blinks, a swaying head, and a network's noise."""
    rng, count = np.random.default_rng(seed), int(seconds * FPS)
    frames = np.zeros((count, CHANNELS))
    mouths = np.zeros((12, WEIGHTS))
    for mouth in mouths:
        used = rng.choice(np.arange(14, WEIGHTS), 9, replace=False)
        mouth[used] = rng.uniform(0.1, 0.9, 9)
    at = 0.0
    while at < count:  # about nine sounds a second
        length = rng.uniform(2, 5)
        bump = np.exp(-0.5 * ((np.arange(count) - at) / (0.6 * length)) ** 2)
        frames[:, :WEIGHTS] += bump[:, None] * mouths[rng.integers(12)] * rng.uniform(0.5, 1)
        at += length
    for blink in np.cumsum(rng.uniform(50, 160, 1 + count // 50)):
        frames[:, 8:10] += np.exp(-0.5 * ((np.arange(count) - blink) / 1.6) ** 2)[:, None]
    sway = np.arange(count)[:, None] / FPS * 2 * np.pi * rng.uniform(0.1, 0.7, 6) + rng.uniform(0, 6, 6)
    frames[:, WEIGHTS:] = np.sin(sway) * [6, 10, 3, 8, 5, 10]
    frames[:, :WEIGHTS] = np.clip(frames[:, :WEIGHTS] + rng.normal(0, 0.002, (count, WEIGHTS)), 0, 1)
    return frames.astype(np.float32)


def packets(frames: Frames, size: int = MOST_FRAMES) -> list[bytes]:
    encoder = MotionEncoder()
    return [encoder.encode(frames[at : at + size]) for at in range(0, len(frames), size)]


def test_a_speaking_face_is_a_kilobyte_a_second_at_the_most() -> None:
    for seed in range(2):
        frames = spoken(8, seed)
        sent, decoder = packets(frames), MotionDecoder()
        assert sum(map(len, sent)) <= 1000 * 8
        found = np.concatenate([decoder.decode(packet) for packet in sent])
        assert np.abs(found - frames)[:, :WEIGHTS].max() <= 1 / 255
        assert np.abs(found - frames)[:, WEIGHTS : WEIGHTS + 3].max() <= 0.1
        again = packets(found)
        assert b"".join(again) == b"".join(sent)  # nothing is lost beyond the steps


ANY = arrays(np.float32, st.tuples(st.integers(1, 20), st.just(CHANNELS)), elements=st.floats(-3000, 3000, width=32))


@given(ANY, st.integers(1, MOST_FRAMES))
def test_any_frames_come_back_to_half_a_step_within_their_range(frames: Frames, size: int) -> None:
    decoder = MotionDecoder()
    found = np.concatenate([decoder.decode(packet) for packet in packets(frames, size)])
    low = np.array([0.0] * WEIGHTS + [-180.0] * 3 + [-2000.0] * 3)
    high = np.array([1.0] * WEIGHTS + [180.0] * 3 + [2000.0] * 3)
    assert (np.abs(found - np.clip(frames, low, high)) <= HALF_STEPS * 1.0001).all()


@given(st.sets(st.integers(0, 39)), st.integers(0, 300))
def test_after_a_loss_the_next_key_packet_heals(lost: set[int], skipped: int) -> None:
    frames = spoken(4, 0)
    encoder, decoder = MotionEncoder(), MotionDecoder()
    for _ in range(skipped):  # so that numbers wrap around
        encoder.encode(frames[:1])
    sent = [encoder.encode(frames[at : at + 3]) for at in range(0, len(frames), 3)]
    for at, packet in enumerate(sent):
        if at in lost:
            continue
        found = decoder.decode(packet)
        if len(found):
            assert np.abs(found - frames[3 * at : 3 * at + 3]).max() <= 0.51
        else:  # half a second without a loss always gives frames
            assert set(range(at - KEY_EVERY + 1, at + 1)) & lost or at < KEY_EVERY


def test_what_comes_late_or_twice_gives_nothing_and_harms_nothing() -> None:
    frames = spoken(1, 1)
    sent, decoder = packets(frames), MotionDecoder()
    for packet in sent[:4]:
        decoder.decode(packet)
    assert decoder.decode(sent[2]).shape == decoder.decode(sent[3]).shape == (0, CHANNELS)
    assert decoder.synchronized and len(decoder.decode(sent[4])) == 3


@given(st.binary(max_size=300))
def test_nonsense_is_refused_by_name(packet: bytes) -> None:
    decoder = MotionDecoder()
    try:
        found = decoder.decode(packet)
    except MotionError:
        assert not decoder.synchronized
    else:
        assert found.shape[1] == CHANNELS and np.isfinite(found).all()


@given(st.integers(0, 60), st.integers(1, 255))
def test_damage_of_any_byte_is_refused_or_stays_within_ranges(at: int, flip: int) -> None:
    sent, decoder = packets(spoken(1, 2)), MotionDecoder()
    damaged = bytearray(sent[0])
    damaged[at % len(damaged)] ^= flip
    try:
        found = decoder.decode(bytes(damaged))
    except MotionError:
        return
    assert ((found[:, :WEIGHTS] >= 0) & (found[:, :WEIGHTS] <= 1)).all()


def test_a_bomb_is_refused_in_bounded_memory() -> None:
    import zlib

    squeezer = zlib.compressobj(9, zlib.DEFLATED, -15)
    bomb = bytes((0xC3, 0)) + squeezer.compress(bytes(1 << 26)) + squeezer.flush()
    with pytest.raises(MotionError, match="another length"):
        MotionDecoder().decode(bomb)


@pytest.mark.parametrize(
    ("frames", "said"),
    [
        (np.zeros((4, CHANNELS), np.float32), "1 to 3 frames"),
        (np.zeros((1, 52), np.float32), "58 values"),
        (np.full((1, CHANNELS), np.nan, np.float32), "NaN"),
    ],
)
def test_frames_that_are_none(frames: Frames, said: str) -> None:
    with pytest.raises(MotionError, match=said):
        MotionEncoder().encode(frames)
