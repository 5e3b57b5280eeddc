"""Commands in processes of their own, and the processes of stages that they start."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
MARK = "EDGEWRIGHT_TEST_RUN"


def started(out: Path, *arguments: object, command: str = "run") -> subprocess.Popen[str]:
    """The command, in a session of its own; all processes of it are known by a variable."""
    words = [sys.executable, "-m", "edgewright", command, *map(str, arguments), "--out", str(out)]
    variables = {**os.environ, "PYTHONPATH": str(ROOT), MARK: str(out)}
    pipe = subprocess.PIPE
    return subprocess.Popen(words, cwd=ROOT, env=variables, stdout=pipe, stderr=pipe, text=True, start_new_session=True)


def children(out: Path) -> dict[int, int]:
    """The processes of stages that work for `out`, each with its parent's."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            ours = f"{MARK}={out}".encode() in (folder / "environ").read_bytes().split(b"\0")
            if ours and b"edgewright.parallel.child" in (folder / "cmdline").read_bytes().split(b"\0"):
                found[int(folder.name)] = parent_of(int(folder.name))
        except OSError:
            continue
    return found


def parent_of(pid: int) -> int:
    """0: of a process that is gone."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def until(found: Callable[[], Any], seconds: float = 1200) -> Any:
    """What it gives as soon as it gives something; the end is for what hangs, not for what is slow."""
    end = time.monotonic() + seconds
    while not (got := found()):
        assert time.monotonic() < end
        time.sleep(0.02)
    return got
