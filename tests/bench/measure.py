"""Running one command as a child: wall time, peak memory, and the JSON it prints last."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from device_farm.memory import parse_status

MB = 1e6
_POLL_S = 0.02


@dataclass(frozen=True)
class Run:
    """seconds of wall time, peak bytes of the child (VmHWM) or, where they are more, of it and the processes that it
    started (their PSS at one time), and its last line of JSON."""

    seconds: float
    peak_bytes: int
    result: Any


def python(module: str, *arguments: object, environment: dict[str, str] | None = None, progress: bool = False) -> Run:
    """Run `python -m module arguments…`. Raises RuntimeError with the end of its stderr when it fails.

    progress: let its stderr through instead.
    """
    command = [sys.executable, "-W", "ignore", "-m", module, *map(str, arguments)]
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONHASHSEED": "0", **(environment or {})}
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        started = time.monotonic()
        child = subprocess.Popen(command, stdout=out, stderr=None if progress else err, env=env)
        peak = 0
        while child.poll() is None:
            peak = max(peak, high_water(child.pid), together(child.pid))
            time.sleep(_POLL_S)
        seconds = time.monotonic() - started
        out.seek(0)
        lines = out.read().decode(errors="replace").strip().splitlines()
        if child.returncode:
            err.seek(0)
            raise RuntimeError(f"{' '.join(command[3:])} failed:\n{err.read().decode(errors='replace')[-2000:]}")
    try:
        result = json.loads(lines[-1]) if lines else None
    except ValueError:
        result = None
    return Run(seconds, peak, result)


def high_water(pid: int) -> int:
    """Peak resident bytes of a running process so far. Its getrusage would count what its parent held at the fork."""
    try:
        split = parse_status(Path(f"/proc/{pid}/status").read_bytes())
    except OSError:
        return 0
    return split.high_water if split else 0


def together(pid: int) -> int:
    """PSS in bytes of a process and everything below it; 0 where there is nothing, which costs it less."""
    pids = [pid]
    for at in pids:
        pids += _children(at)
    return sum(map(_shared_out, pids)) if len(pids) > 1 else 0


def _children(pid: int) -> list[int]:
    """Those of all its threads."""
    found = []
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            found += [int(child) for child in file.read_text().split()]
    return found


def _shared_out(pid: int) -> int:
    """A process's PSS: pages that several map count for each by its part."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0


def warm(folder: Path) -> None:
    """Read every file once, so that none of several contenders pays for a cold page cache."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                while file.read(1 << 24):
                    pass


def size_of(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


def table(title: str, header: list[str], rows: list[list[object]]) -> None:
    """Print a table, columns aligned."""
    text = [header, *([str(c) if not isinstance(c, float) else f"{c:.4g}" for c in row] for row in rows)]
    widths = [max(len(line[i]) for line in text) for i in range(len(header))]
    print(f"\n{title}")
    for line in text:
        print(
            "  "
            + "  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True)))
        )
    sys.stdout.flush()
