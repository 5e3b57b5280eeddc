"""A motion stream: 52 blendshape weights and a head's pose, 30 times a second, in packets of at most 100 ms.

`MOTION.md` is the format, which an app's own encoder or decoder follows. What must not live here: where motion comes
from, and what it moves.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from artifacts.errors import EdgewrightError

WEIGHTS, CHANNELS = 52, 58
FPS, MOST_FRAMES, KEY_EVERY = 30, 3, 5
_STEPS = np.array([1 / 128] * WEIGHTS + [3 / 16] * 3 + [1.0] * 3)
_LOWEST = np.array([0] * WEIGHTS + [-960] * 3 + [-2000] * 3)
_HIGHEST = np.array([128] * WEIGHTS + [960] * 3 + [2000] * 3)
_KEY, _DEFLATED, _ZERO, _FRAMES = 0x80, 0x40, 0x3C, 0x03
_HEADER, _BITMAP = 2, 8
_MOST_HALVES = 5  # of a residual: 15 bits, and two frames differ by 13 at most
_MOST_BODY = _BITMAP + CHANNELS * MOST_FRAMES * _MOST_HALVES // 2

Whole = NDArray[np.int64]


class MotionError(EdgewrightError):
    """Frames or a packet that are not as MOTION.md says."""


class MotionEncoder:
    """Frames to packets, for one receiver or many that begin at any key packet."""

    def __init__(self) -> None:
        self._sent = 0
        self._last: Whole = np.zeros(CHANNELS, np.int64)

    def encode(self, frames: NDArray[np.float32]) -> bytes:
        """A packet of float32 [1 to 3, 58]: weights, rotation in degrees, place in millimetres. Raises MotionError."""
        if frames.ndim != 2 or not 1 <= len(frames) <= MOST_FRAMES or frames.shape[1] != CHANNELS:
            raise MotionError(
                f"a packet takes 1 to {MOST_FRAMES} frames of {CHANNELS} values, not {list(frames.shape)}"
            )
        if not np.isfinite(frames).all():
            raise MotionError("a frame holds NaN or infinity")
        whole = np.clip(np.rint(frames.astype(np.float64) / _STEPS), _LOWEST, _HIGHEST).astype(np.int64)
        key = self._sent % KEY_EVERY == 0
        before = np.zeros(CHANNELS, np.int64) if key else self._last
        body = _body(np.diff(whole, axis=0, prepend=before[None]))
        squeezer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
        squeezed = squeezer.compress(body) + squeezer.flush()
        shorter = len(squeezed) < len(body)
        first = (_KEY if key else 0) | (_DEFLATED if shorter else 0) | len(whole)
        packet = bytes((first, self._sent % 256)) + (squeezed if shorter else body)
        self._last, self._sent = whole[-1], self._sent + 1
        return packet


class MotionDecoder:
    """Packets to frames. synchronized: whether the next packet in order will give frames."""

    def __init__(self) -> None:
        self.synchronized = False
        self._awaited: int | None = None
        self._last: Whole = np.zeros(CHANNELS, np.int64)

    def decode(self, packet: bytes) -> NDArray[np.float32]:
        """The frames of a packet, float32 [n, 58]; none for one that came late and after a loss until a key packet.

        Raises MotionError for a packet that is damaged, which then counts as lost.
        """
        late = self._awaited is not None and len(packet) > 1 and (packet[1] - self._awaited) % 256 >= 128
        if late:
            return np.empty((0, CHANNELS), np.float32)
        try:
            key, number, residuals = _read(packet)
            following = number == self._awaited and self.synchronized
            self._awaited = (number + 1) % 256
            if not (key or following):
                self.synchronized = False
                return np.empty((0, CHANNELS), np.float32)
            whole = np.cumsum(residuals, axis=0) + (0 if key else self._last)
            if (whole < _LOWEST).any() or (whole > _HIGHEST).any():
                raise MotionError("a motion packet leaves the range of a channel")
        except MotionError:
            self.synchronized = False
            raise
        self.synchronized, self._last = True, whole[-1]
        frames: NDArray[np.float32] = (whole * _STEPS).astype(np.float32)
        return frames


def _body(residuals: Whole) -> bytes:
    """Residuals [frames, 58] as MOTION.md has them."""
    moved = residuals.any(0)
    zigzag = np.where(residuals >= 0, 2 * residuals, -2 * residuals - 1)
    halves: list[int] = []
    for channel in np.flatnonzero(moved):
        for value in zigzag[:, channel].tolist():
            while value > 7:
                halves.append(8 | value & 7)
                value >>= 3
            halves.append(value)
    halves += [0] * (len(halves) % 2)
    packed = bytes(high << 4 | low for high, low in zip(halves[::2], halves[1::2], strict=True))
    return np.packbits(moved).tobytes() + packed


def _read(packet: bytes) -> tuple[bool, int, Whole]:
    """Whether it is a key packet, its number, and residuals [frames, 58]."""
    count = packet[0] & _FRAMES if packet else 0
    if len(packet) <= _HEADER or packet[0] & _ZERO or not count:
        raise MotionError(f"a motion packet of {len(packet)} bytes has no header that MOTION.md knows")
    body = packet[_HEADER:]
    if packet[0] & _DEFLATED:
        opener = zlib.decompressobj(-zlib.MAX_WBITS)
        try:
            body = opener.decompress(body, _MOST_BODY)
        except zlib.error as error:
            raise MotionError(f"the body of a motion packet is not deflated: {error}") from None
        if not opener.eof or opener.unused_data:
            raise MotionError("the deflated body of a motion packet has another length than MOTION.md allows")
    moved = np.unpackbits(np.frombuffer(body[:_BITMAP], np.uint8)).astype(bool)
    if len(moved) != 8 * _BITMAP or moved[CHANNELS:].any():
        raise MotionError("the body of a motion packet does not begin with 58 bits and 6 zeros")
    halves = iter([half for byte in body[_BITMAP:] for half in (byte >> 4, byte & 15)])
    residuals = np.zeros((count, CHANNELS), np.int64)
    for channel in np.flatnonzero(moved[:CHANNELS]):
        for frame in range(count):
            residuals[frame, channel] = _residual(halves)
    rest = list(halves)
    if len(rest) > 1 or any(rest):
        raise MotionError("a motion packet holds more than its frames")
    return bool(packet[0] & _KEY), packet[1], residuals


def _residual(halves: Iterator[int]) -> int:
    value, shift, more = 0, 0, True
    while more:
        half = next(halves, None)
        if half is None or shift > 3 * (_MOST_HALVES - 1):
            raise MotionError("a motion packet ends within a number, or holds one that is too large")
        value |= (half & 7) << shift
        shift, more = shift + 3, bool(half & 8)
    return -(value + 1) // 2 if value & 1 else value // 2
