"""Android 17's Memory Limiter (API 37): which app is slowed down, and which is killed 30 s later.

What lives here: the rule, as a machine over samples of one process that reads no clock, and what it says of a run that
is over. What must not: a phone's limits (they come from its profile), reading a process, control groups.

Source: AOSP ``MemoryLimiter.java`` and ``MemoryLimiter.md`` of Android 17. Each process has a control group whose
``memory.high`` is the limit for its state. Beyond it the kernel evicts file pages, which are read again, and swaps:
slow, not dead. The first such event raises the limit by 100 MiB and begins a poll every 30 s; where anonymous + shared
+ swapped memory is beyond memory and swap limit together, the process is killed 30 s later, whatever it gives back.
Mapped weights never count toward the kill.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from device_farm.timeline import Held

AppState = Literal["visible", "not visible"]
Stage = Literal["watching", "over", "doomed", "killed"]

RAISED_BYTES = 100 << 20
REARMED_BYTES = 10 << 20
POLL_S = 30.0
GRACE_S = 30.0


@dataclass(frozen=True)
class LimiterLimits:
    """What the limiter allows an app in its state. visible: an activity of it is on screen; a foreground service alone
    is not.
    """

    state: AppState
    memory_bytes: int
    swap_bytes: int

    @property
    def kill_bytes(self) -> int:
        """Anonymous, shared and swapped memory beyond which it kills."""
        return self.memory_bytes + self.swap_bytes


@dataclass
class MemoryLimiter:
    """The limiter over one process. Give it every sample; ``stage`` and ``high_bytes`` are what it has come to.

    ``watching``: below the limit. ``over``: beyond it, polled. ``doomed``: found beyond what is allowed, killed at
    ``kill_s`` for the ``found_bytes`` that cannot be dropped, without a way back. ``killed``: ended.
    ``evicted_bytes``: the most by which resident memory was beyond ``memory.high``, which the kernel takes from file
    pages first.
    """

    limits: LimiterLimits
    stage: Stage = "watching"
    evicted_bytes: int = 0
    kill_s: float | None = None
    found_bytes: int = 0
    _poll_s: float = 0.0

    @property
    def high_bytes(self) -> int:
        """What ``memory.high`` is now."""
        return self.limits.memory_bytes + (0 if self.stage == "watching" else RAISED_BYTES)

    def update(self, sample: Held) -> Stage:
        """Take a sample, in the order of time, and say what has become of the process."""
        if self.stage == "killed":
            return self.stage
        resident = sample.resident_bytes
        if self.stage == "watching" and resident > self.limits.memory_bytes:
            self.stage, self._poll_s = "over", sample.time_s
            self.evicted_bytes = max(self.evicted_bytes, resident - self.limits.memory_bytes)
        self.evicted_bytes = max(self.evicted_bytes, resident - self.high_bytes)
        if self.stage == "over" and sample.time_s >= self._poll_s:
            self._poll_s = sample.time_s + POLL_S
            if sample.unreclaimable_bytes > self.limits.kill_bytes:
                self.stage, self.kill_s = "doomed", sample.time_s + GRACE_S
                self.found_bytes = sample.unreclaimable_bytes
            elif resident < self.limits.memory_bytes - REARMED_BYTES:
                self.stage = "watching"
        if self.stage == "doomed" and self.kill_s is not None and sample.time_s >= self.kill_s:
            self.stage = "killed"
        return self.stage


@dataclass(frozen=True)
class Limited:
    """What the limiter makes of a run that nothing limited.

    ``throttled``: file pages are evicted, by ``evicted_bytes`` at the most. ``killed``: found beyond what it allows.
    """

    outcome: Literal["free", "throttled", "killed"]
    evicted_bytes: int
    unreclaimable_bytes: int


def judge(samples: Iterable[Held], limits: LimiterLimits) -> Limited:
    """What becomes on the phone of a process that held this here.

    How long it does so there is not known, nor when a poll falls: whatever is held at one moment beyond what the
    limiter allows is taken to be found.
    """
    machine = MemoryLimiter(limits)
    held = 0
    for sample in samples:
        machine.update(sample)
        held = max(held, sample.unreclaimable_bytes)
    if held > limits.kill_bytes:
        return Limited("killed", machine.evicted_bytes, held)
    return Limited("throttled" if machine.evicted_bytes else "free", machine.evicted_bytes, held)
