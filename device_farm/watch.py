"""Follows one process of the sandbox: reads its lines, samples its memory, enforces the watchdog's limit.

What lives here: the loop around a running child and the state it gathers. What must not: choosing how a limit is
enforced, starting the child and naming the outcome (``sandbox.py``, whose docstring says how a child must behave).
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal

from artifacts.errors import EdgewrightError
from device_farm.cgroup import Group
from device_farm.host import NOTHING_MAPPED, Mapped, mapped_files, traces_of_others
from device_farm.limiter import MemoryLimiter
from device_farm.memory import Split, anonymous_peak_between, parse_status
from device_farm.thrash import ThrashMeter
from device_farm.timeline import Held, TimeLine

Rule = Literal["android", "ios"]
Outcome = Literal["ok", "over_budget", "crashed", "error"]
Event = dict[str, Any]

_STDERR_TAIL_BYTES = 8192
_OTHERS_PERIOD_S = 0.1


@dataclass(frozen=True)
class PhaseMemory:
    """Memory over the baseline, in bytes, when a phase was announced; peaks are of the time since the phase before.

    ``peak_charged_bytes`` is the most that the rule charged at one moment of it; ``end_s`` is its end, in seconds after
    the baseline.
    """

    phase: str
    anonymous_bytes: int
    file_bytes: int
    swap_bytes: int
    peak_anonymous_bytes: int
    peak_file_bytes: int
    peak_swap_bytes: int
    payload: Event
    peak_unreclaimable_bytes: int = 0
    peak_charged_bytes: int = 0
    end_s: float = 0.0


@dataclass
class Peaks:
    """Largest bytes over the baseline of each kind; ``charged`` is what the rule charges at one moment."""

    anonymous: int = 0
    unreclaimable: int = 0
    file: int = 0
    swap: int = 0
    charged: int = 0

    def add(self, other: Peaks) -> None:
        for name, value in vars(other).items():
            setattr(self, name, max(value, getattr(self, name)))


@dataclass
class Watch:
    """What is known of the child so far. ``decided`` is set when the watch itself ended the child, with the reason.

    ``unsampled`` is the last phase where the child did not wait there: what was read then may be of its end.
    ``folders``: of the artifact, whose mapped files are looked at. ``limiter``: Android 17's, whose limit a group of
    version 2 keeps; its kill is ours. ``background_bytes`` of the limit are for another process, which the group holds
    at the baseline. ``others``: whether the child started processes of its own.
    """

    rule: Rule
    limit_bytes: int | None
    swap_bytes: int
    group: Group | None
    on_event: Callable[[Event], None] | None
    folders: tuple[Path, ...] = ()
    limiter: MemoryLimiter | None = None
    background_bytes: int = 0
    baseline: Split | None = None
    phases: list[PhaseMemory] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    total: Peaks = field(default_factory=Peaks)
    since_phase: Peaks = field(default_factory=Peaks)
    thrash: ThrashMeter = field(default_factory=ThrashMeter)
    samples: int = 0
    longest_gap_s: float = 0.0
    wall_s: float = 0.0
    decided: tuple[Outcome, str] | None = None
    oom_kills: int = 0
    unsampled: str | None = None
    stderr: bytes = b""
    time_line: TimeLine = field(default_factory=TimeLine)
    mapped: Mapped = NOTHING_MAPPED
    others: bool = False
    _begin_s: float = 0.0
    _must_hold: int = 0
    _others_before: tuple[int, int] = (0, 0)
    _others_due: float = 0.0
    _last: Split | None = None
    _phase: str | None = None
    _sampled_at: float = 0.0
    _status: int = -1
    _pending: bytes = b""

    def follow(self, process: subprocess.Popen[bytes], timeout_s: float, period_s: float) -> None:
        """Stays with the process until it has ended; its three standard streams must be pipes."""
        assert process.stdin and process.stdout and process.stderr
        begin = time.monotonic()
        self._status = os.open(f"/proc/{process.pid}/status", os.O_RDONLY | os.O_CLOEXEC)
        try:
            with selectors.DefaultSelector() as selector:
                for stream in (process.stdout, process.stderr):
                    os.set_blocking(stream.fileno(), False)
                    selector.register(stream, selectors.EVENT_READ, stream)
                due = begin
                while True:
                    for key, _ in selector.select(max(0.0, due - time.monotonic())):
                        if not self._receive(process, key.data):
                            selector.unregister(key.fileobj)
                    now = time.monotonic()
                    if now < due:
                        continue
                    due = now + period_s
                    self._sample(process)
                    if process.poll() is not None:
                        break
                    if now - begin > timeout_s:
                        self._stop(process, "error", f"did not end within {timeout_s:.0f} s")
            for stream in (process.stdout, process.stderr):
                while self._receive(process, stream, once=True):
                    pass
        finally:
            self.wall_s = time.monotonic() - begin
            os.close(self._status)
        if self.group:
            self.oom_kills = self.group.oom_kills()
            if self.baseline:
                self.thrash.update(time.monotonic(), self.group.counters, last=True)

    def _receive(self, process: subprocess.Popen[bytes], stream: IO[bytes], *, once: bool = False) -> bool:
        """Takes what a stream holds; False at its end (with ``once`` also when nothing is there now)."""
        try:
            chunk = os.read(stream.fileno(), 1 << 16)
        except BlockingIOError:
            return not once
        if stream is process.stderr:
            self._keep(chunk)
            return bool(chunk)
        *lines, self._pending = (self._pending + chunk + (b"" if chunk else b"\n")).split(b"\n")
        for line in lines:
            self._line(process, line)
        return bool(chunk)

    def _keep(self, text: bytes) -> None:
        self.stderr = (self.stderr + text)[-_STDERR_TAIL_BYTES:]

    def _line(self, process: subprocess.Popen[bytes], line: bytes) -> None:
        try:
            event = json.loads(line)
        except ValueError:
            event = None
        if not isinstance(event, dict):
            if line.strip():
                self._keep(line + b"\n")
            return
        self.events.append(event)
        phase = event.get("phase")
        if phase == "baseline":
            self._start_limit(process)
        elif isinstance(phase, str):
            payload = {key: value for key, value in event.items() if key not in ("phase", "wait")}
            self._end_phase(process, phase, payload, waits=event.get("wait") is True)
        if phase == "baseline" or event.get("wait") is True:
            assert process.stdin
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(b"\n")
                process.stdin.flush()
        if self.on_event:
            self.on_event(event)

    def _start_limit(self, process: subprocess.Popen[bytes]) -> None:
        if self.baseline is not None:
            self._stop(process, "error", "announced its baseline twice")
            return
        split = self._read_split()
        if split is None:
            return
        self.baseline = self._last = split
        self._sampled_at = self._begin_s = time.monotonic()
        self._others_before = traces_of_others(process.pid)
        if self.group:
            if self.limit_bytes is not None:
                try:
                    self.group.limit(self.limit_bytes - self.background_bytes, self.swap_bytes)
                except OSError as error:
                    raise EdgewrightError(f"{self.group.folder}: cannot limit its memory: {error.strerror}") from error
            if self.limiter:
                self._must_hold = self.group.must_hold()
                self.group.high(self._must_hold + self.limiter.high_bytes)
            self.thrash.update(self._sampled_at, self.group.counters)

    def _end_phase(self, process: subprocess.Popen[bytes], phase: str, payload: Event, *, waits: bool) -> None:
        if self.baseline is None:
            self._stop(process, "error", f"announced the phase {phase!r} before its baseline")
            return
        self._phase = phase
        self.unsampled = None if waits else phase
        self._others_due = 0.0
        if not self._sample(process):
            return  # it has ended: there is nothing left to read that would be of this phase
        mapped = mapped_files(process.pid, self.folders)
        self.mapped = Mapped(
            max(self.mapped.all_bytes, mapped.all_bytes), max(self.mapped.largest_bytes, mapped.largest_bytes)
        )
        now, peaks = self._last or self.baseline, self.since_phase
        self.since_phase = Peaks()
        self.phases.append(
            PhaseMemory(
                phase=phase,
                anonymous_bytes=max(0, now.anonymous - self.baseline.anonymous),
                file_bytes=max(0, now.file - self.baseline.file),
                swap_bytes=max(0, now.swap - self.baseline.swap),
                peak_anonymous_bytes=peaks.anonymous,
                peak_file_bytes=peaks.file,
                peak_swap_bytes=peaks.swap,
                peak_unreclaimable_bytes=peaks.unreclaimable,
                peak_charged_bytes=peaks.charged,
                end_s=self._sampled_at - self._begin_s,
                payload=payload,
            )
        )

    def _read_split(self) -> Split | None:
        try:
            return parse_status(os.pread(self._status, 8192, 0))
        except ProcessLookupError:
            return None

    def _sample(self, process: subprocess.Popen[bytes]) -> bool:
        """Takes what the process holds now; False where it has ended."""
        if self.baseline is None or self._last is None:
            return False
        split, now = self._read_split(), time.monotonic()
        if split is None:
            return False
        base, before = self.baseline, self._last
        # what may have come and gone since the last sample counts too
        unreclaimable = anonymous_peak_between(before, split) - base.unreclaimable
        seen = Peaks(
            anonymous=max(split.anonymous - base.anonymous, unreclaimable - max(0, split.swap - base.swap), 0),
            unreclaimable=max(unreclaimable, 0),
            file=max(split.file - base.file, 0),
            swap=max(split.swap - base.swap, 0),
        )
        everything = split.resident + split.swap - base.resident - base.swap
        seen.charged = seen.unreclaimable if self.rule == "ios" else max(seen.unreclaimable, everything)
        self.total.add(seen)
        self.since_phase.add(seen)
        self.samples += 1
        self.longest_gap_s = max(self.longest_gap_s, now - self._sampled_at)
        self._last, self._sampled_at = split, now
        sample = Held(now - self._begin_s, max(unreclaimable - seen.swap, 0), seen.file, seen.swap)
        self.time_line.add(sample)
        if self.group:
            self.thrash.update(now, self.group.counters)
        if now >= self._others_due:
            self._others_due = now + _OTHERS_PERIOD_S
            self.others = self.others or traces_of_others(process.pid) > self._others_before
        if self.limiter:
            self._apply(self.limiter, sample, process)
        if self.limit_bytes is not None and unreclaimable > self.limit_bytes:
            held = f"{unreclaimable / 1e6:,.0f} MB of anonymous and swapped memory"
            self._stop(process, "over_budget", f"killed by the watchdog at {held} {self.where()}")
        return True

    def _apply(self, limiter: MemoryLimiter, sample: Held, process: subprocess.Popen[bytes]) -> None:
        high = limiter.high_bytes
        if limiter.update(sample) == "killed":
            size = f"{limiter.found_bytes / 1e6:,.0f} MB of anonymous and swapped memory"
            self._stop(process, "over_budget", f"killed by the Memory Limiter's rule for {size} {self.where()}")
        if self.group and limiter.high_bytes != high:
            self.group.high(self._must_hold + limiter.high_bytes)

    def where(self) -> str:
        """In which part of the run it is, for messages."""
        return f"after the phase {self._phase!r}" if self._phase else "before its first phase ended"

    def _stop(self, process: subprocess.Popen[bytes], outcome: Outcome, detail: str) -> None:
        self.decided = self.decided or (outcome, detail)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
