"""Memory control groups of Linux, versions 1 and 2: finding one that works, limiting it, reading it, removing it.

What lives here: files below ``/sys/fs/cgroup``. What must not: what a limit means on a phone, and starting the process
inside.

A group is only taken when a probe shows that it works: the folder can be made, a limit written, a process moved in.
Containers often show a group file system that they may not write, or one whose memory controller is elsewhere.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from artifacts.errors import EdgewrightError

CGROUP_ROOT = Path("/sys/fs/cgroup")
_PREFIX = "edgewright"
_CHARGE_BYTES = 4 << 20  # no single charge is larger: one huge page and what the processors keep in stock
_serial = itertools.count()


@dataclass(frozen=True)
class Counters:
    """Page cache of a group: bytes on its file lists; refaulted file pages (None.

    Not counted) and major faults so far.
    """

    file_bytes: int
    refaults: int | None
    major_faults: int


@dataclass(frozen=True)
class Group:
    """One memory control group, ours alone, of version 1 or 2. Source.

    Kernel documentation, cgroup-v1/memory, cgroup-v2.
    """

    folder: Path
    version: int

    def entering(self, command: Sequence[str]) -> list[str]:
        """A command that moves itself into the group and becomes ``command`` under the same process id."""
        # a shell does it: every page of the command is charged here, and no Python runs between fork and exec
        script = 'echo $$ > "$0" && exec "$@"'
        return ["/bin/sh", "-c", script, str(self.folder / "cgroup.procs"), *command]

    def limit(self, extra_bytes: int, swap_bytes: int = 0) -> int:
        """Allows ``extra_bytes`` (and swap) beyond what the group must hold now; returns the limit written.

        What it must hold are its anonymous, kernel and mapped file pages. Page cache that nobody maps is left out: the
        group can drop it, and would otherwise hide as many bytes of the budget.
        """
        limit = self.must_hold() + extra_bytes
        if self.version == 1:
            self._write("memory.swappiness", "0" if swap_bytes == 0 else "100", optional=True)
            self._write("memory.limit_in_bytes", str(limit))
            self._write("memory.memsw.limit_in_bytes", str(limit + swap_bytes), optional=True)
        else:
            self._write("memory.swap.max", str(swap_bytes), optional=True)
            self._write("memory.max", str(limit))
        return limit

    def high(self, limit_bytes: int) -> None:
        """Has the kernel evict what is held beyond the limit, without killing for it; version 1 has nothing like it.

        Source: kernel documentation, cgroup-v2, ``memory.high``.
        """
        if self.version == 2:
            self._write("memory.high", str(limit_bytes))

    def oom_kills(self) -> int:
        """Processes that the kernel killed for this group's own limit; 0 when the machine or a group above ran out."""
        if self.version == 2:
            events = _numbers(self._read("memory.events"))
            return events.get("oom_kill", 0) if events.get("oom", 0) else 0
        # failcnt would say it, but stays 0 on recent kernels; a charge that fails leaves the peak just below the limit
        near = int(self._read("memory.limit_in_bytes")) - _CHARGE_BYTES
        met = int(self._read("memory.max_usage_in_bytes")) >= near
        return _numbers(self._read("memory.oom_control")).get("oom_kill", 0) if met else 0

    def counters(self) -> Counters:
        """The page cache counters of this moment."""
        stat = self._stat()
        return Counters(
            file_bytes=stat.get("inactive_file", 0) + stat.get("active_file", 0),
            refaults=stat.get("workingset_refault_file"),
            major_faults=stat.get("pgmajfault", 0),
        )

    def remove(self) -> None:
        """Kills whatever still runs in the group and removes it; waits up to two seconds for the kernel to let go."""
        for _ in range(200):
            with contextlib.suppress(OSError, ValueError):
                for pid in self._read("cgroup.procs").split():
                    os.kill(int(pid), signal.SIGKILL)
            try:
                self.folder.rmdir()
            except FileNotFoundError:
                return
            except OSError:
                time.sleep(0.01)
            else:
                return
        raise EdgewrightError(f"{self.folder}: cannot be removed; remove it with rmdir when its processes have ended")

    def must_hold(self) -> int:
        """Bytes of anonymous, kernel and mapped file pages that it holds now."""
        stat = self._stat()
        if self.version == 1:
            usage = int(self._read("memory.usage_in_bytes"))
            unmapped = stat["cache"] - stat["mapped_file"] - stat["shmem"]
        else:
            usage = int(self._read("memory.current"))
            unmapped = stat["file"] - stat["file_mapped"] - stat["shmem"]
        return usage - max(0, unmapped)

    def _stat(self) -> dict[str, int]:
        return _numbers(self._read("memory.stat"))

    def _read(self, name: str) -> str:
        return (self.folder / name).read_text()

    def _write(self, name: str, value: str, *, optional: bool = False) -> None:
        try:
            # no O_CREAT: a folder that is no control group must not look like one
            descriptor = os.open(self.folder / name, os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.write(descriptor, value.encode())
            finally:
                os.close(descriptor)
        except OSError:
            if not optional:
                raise


def parents(version: int, root: Path = CGROUP_ROOT, own: str | None = None) -> Iterator[Path]:
    """Folders below ``root`` where a group could be made, best first; ``own`` is our ``/proc/self/cgroup``.

    Version 1: our own group (its limits stay above us), then the top of the mount. Version 2: the nearest group above
    our own that hands the memory controller to its children, since a group with processes in it cannot.
    """
    if own is None:
        try:
            own = Path("/proc/self/cgroup").read_text()
        except OSError:
            own = ""
    paths = {
        controller: path
        for _, controller, path in (line.split(":", 2) for line in own.splitlines() if line.count(":") >= 2)
    }
    if version == 1:
        for name in (paths.get("memory", "/").strip("/"), ""):
            folder = root / "memory" / name
            if (folder / "memory.limit_in_bytes").exists() or not name:
                yield folder
        return
    mount = root if (root / "cgroup.controllers").exists() else root / "unified"
    inner = mount / paths.get("", "/").strip("/")
    for folder in (inner, *inner.parents):
        with contextlib.suppress(OSError):
            if "memory" in (folder / "cgroup.subtree_control").read_text().split():
                yield folder
        if folder == mount:
            return


def usable_parent(version: int, root: Path = CGROUP_ROOT, own: str | None = None) -> Path | None:
    """The first folder of ``parents`` where a probe group takes a limit and a process; None when there is none."""
    for folder in parents(version, root, own):
        with contextlib.suppress(OSError, KeyError, EdgewrightError):
            group = make_group(folder, version)
            try:
                group.limit(64 << 20)
                enter = group.entering(["true"])
                if subprocess.run(enter, capture_output=True, timeout=10, check=False).returncode == 0:
                    return folder
            finally:
                group.remove()
    return None


def make_group(parent: Path, version: int) -> Group:
    """Makes an empty group below ``parent``, after removing what dead runs of ours left there.

    Raises OSError when it may not.
    """
    clean_leftovers(parent, version)
    folder = parent / f"{_PREFIX}-{_pid_namespace()}-{os.getpid()}-{_start_time(os.getpid())}-{next(_serial)}"
    folder.mkdir()
    return Group(folder, version)


def clean_leftovers(parent: Path, version: int) -> list[Path]:
    """Kills and removes the groups of runs whose process is gone (kill -9, power); returns their folders.

    The name of a group holds its owner's process id, start time and pid namespace, so that neither a reused id nor an
    owner in another container is taken for a dead one.
    """
    removed = []
    for folder in sorted(parent.glob(f"{_PREFIX}-*-*-*-*")):
        _, namespace, pid, start, _ = folder.name.split("-", 4)
        if namespace == str(_pid_namespace()) and pid.isdigit() and str(_start_time(int(pid))) != start:
            with contextlib.suppress(EdgewrightError, OSError):
                Group(folder, version).remove()
                removed.append(folder)
    return removed


def _numbers(text: str) -> dict[str, int]:
    pairs = (line.split() for line in text.splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}


def _pid_namespace() -> int:
    try:
        return os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return 0


def _start_time(pid: int) -> int | None:
    """Start of a process in clock ticks after boot (proc(5), stat field 22); None when it does not run."""
    try:
        after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if after_name[0] in "ZX" else int(after_name[19])
