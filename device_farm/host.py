"""What else goes on in this machine's memory while an artifact is measured, and other processes than the measured one.

What lives here: reading the machine and the tree of a process, and what of it weakens a figure, in words. What must
not: the memory of the measured process (``memory.py``), verdicts.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

# of the run's time in which somebody waited for memory: below, it is the background of any machine
_PRESSED_SHARE = 0.01


@dataclass(frozen=True)
class HostMemory:
    """One moment. ``stalled_us``: since boot, the time in which some task waited for memory; None: not counted here."""

    swap_total_bytes: int
    stalled_us: int | None


def read_host(proc: Path = Path("/proc")) -> HostMemory:
    """The machine now. Source: proc(5), ``meminfo``; kernel documentation, accounting/psi."""
    swap, stalled = 0, None
    for line in (proc / "meminfo").read_text().splitlines():
        if line.startswith("SwapTotal:"):
            swap = int(line.split()[1]) * 1024
    with contextlib.suppress(OSError):
        for line in (proc / "pressure/memory").read_text().splitlines():
            if line.startswith("some "):
                stalled = int(line.rpartition("total=")[2])
    return HostMemory(swap, stalled)


def weaknesses(before: HostMemory, after: HostMemory, wall_s: float, *, limited: bool) -> tuple[str, ...]:
    """What makes the figures of a run less than a measurement; a run under a limit of its own waits for memory too."""
    found = []
    if after.swap_total_bytes:
        found.append(
            f"swap is on on this machine ({after.swap_total_bytes / 1e9:,.1f} GB): what a process cannot drop may "
            "leave memory, and a run in which it did is not taken for a measurement"
        )
    if before.stalled_us is not None and after.stalled_us is not None and not limited and wall_s > 0:
        share = (after.stalled_us - before.stalled_us) / 1e6 / wall_s
        if share > _PRESSED_SHARE:
            found.append(
                f"another process pressed on this machine's memory in {100 * share:.0f} % of the run: file pages may "
                "have gone that would have stayed, and file-backed figures are then too low; run it again alone"
            )
    return tuple(found)


def traces_of_others(pid: int) -> tuple[int, int]:
    """Page faults of the children that a process has waited for, and how many children run now.

    What other processes held is in no figure of this one. Source: proc(5), ``cminflt`` of ``/proc/pid/stat`` and
    ``/proc/pid/task/tid/children``.
    """
    with contextlib.suppress(OSError):
        faults = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[8])
        running = sum(len((task / "children").read_text().split()) for task in Path(f"/proc/{pid}/task").iterdir())
        return faults, running
    return 0, 0


@dataclass(frozen=True)
class Mapped:
    """Files that a process has mapped: the bytes of all of them, and of the largest single mapping."""

    all_bytes: int = 0
    largest_bytes: int = 0


NOTHING_MAPPED = Mapped()


def mapped_files(pid: int, folders: tuple[Path, ...]) -> Mapped:
    """What a process has mapped of files in these folders (or of these files), each part once.

    Source: proc(5), ``/proc/pid/maps``.
    """
    parts: dict[tuple[str, str], int] = {}
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            fields = line.split(None, 5)
            if len(fields) == 6 and fields[1].startswith("r") and _inside(Path(fields[5]), folders):
                begin, end = (int(address, 16) for address in fields[0].split("-"))
                parts[fields[5], fields[2]] = max(end - begin, parts.get((fields[5], fields[2]), 0))
    return Mapped(sum(parts.values()), max(parts.values(), default=0))


def _inside(path: Path, folders: tuple[Path, ...]) -> bool:
    return any(path == folder or folder in path.parents for folder in folders)
