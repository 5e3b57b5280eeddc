"""What a process held over time, in as few samples as show every peak.

What lives here: the samples that are kept of a run. What must not: taking them (``watch.py``), judging them.
"""

from __future__ import annotations

from typing import NamedTuple

_SPANS = 200


class Held(NamedTuple):
    """Bytes over the baseline at one moment, seconds after it; ``anonymous_bytes`` has shared memory without a file."""

    time_s: float
    anonymous_bytes: int
    file_bytes: int
    swap_bytes: int

    @property
    def unreclaimable_bytes(self) -> int:
        """Anonymous and swapped."""
        return self.anonymous_bytes + self.swap_bytes

    @property
    def resident_bytes(self) -> int:
        """In RAM."""
        return self.anonymous_bytes + self.file_bytes


class TimeLine:
    """Of every span of time two samples at the most, as they were taken: that which held most of what cannot be
    dropped, and that which held most of all. The spans double in length as the run goes on, to at most ``spans``.
    """

    def __init__(self, spans: int = _SPANS) -> None:
        self._most = spans
        self._length_s = 0.01
        self._spans: dict[int, tuple[Held, ...]] = {}

    def add(self, sample: Held) -> None:
        """Samples must come in the order of their time."""
        self._put(sample)
        while len(self._spans) > self._most:
            self._length_s *= 2
            before, self._spans = self.samples(), {}
            for one in before:
                self._put(one)

    def _put(self, sample: Held) -> None:
        at = int(sample.time_s / self._length_s)
        found = (*self._spans.get(at, ()), sample)
        held = max(found, key=lambda one: one.unreclaimable_bytes)
        most = max(found, key=lambda one: one.resident_bytes + one.swap_bytes)
        self._spans[at] = (held,) if held is most else tuple(sorted((held, most)))

    def samples(self) -> tuple[Held, ...]:
        """All that is kept, in order."""
        return tuple(sample for span in self._spans.values() for sample in span)
