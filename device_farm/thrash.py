"""Thrashing as Android's low-memory killer counts it, for one control group.

What lives here: the figure. What must not: the limit that a phone compares it with (``profile.py``, ``verdict.py``).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from device_farm.cgroup import Counters

Source = Literal["workingset_refault_file", "pgmajfault"]

WINDOW_S = 1.0  # lmkd.cpp, THRASHING_RESET_INTERVAL_MS


@dataclass
class ThrashMeter:
    """lmkd's figure for one group: file pages refaulted in a second, in percent of the file cache.

    Source: lmkd.cpp, ``workingset_refault_file`` over ``nr_inactive_file + nr_active_file``. The phone's cache is
    everybody's, ours is the run's own: the larger of the window's two ends stands for it, since a run begins with none.
    Where the kernel does not count refaults, major faults stand in; first reads are among them, so that figure is only
    good to be looked at.
    """

    percent: float | None = None
    source: Source | None = None
    _begin: float = 0.0
    _last: Counters | None = None

    def update(self, now: float, read: Callable[[], Counters], *, last: bool = False) -> None:
        """Closes the window if a second is over (or the run is); reads the counters only then."""
        if self._last is not None and not last and now - self._begin < WINDOW_S:
            return
        counters, before = read(), self._last
        self._begin, self._last = now, counters
        self.source = "pgmajfault" if counters.refaults is None else "workingset_refault_file"
        pages = 0
        if before is not None:
            refaults = (
                None if counters.refaults is None or before.refaults is None else counters.refaults - before.refaults
            )
            pages = counters.major_faults - before.major_faults if refaults is None else refaults
        cache = max(counters.file_bytes, before.file_bytes if before else 0)
        percent = 100.0 * pages * os.sysconf("SC_PAGESIZE") / max(cache, os.sysconf("SC_PAGESIZE"))
        self.percent = max(percent, self.percent or 0.0)
