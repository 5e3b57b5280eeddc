"""Starting ``child.py`` and listening to it. Runs under a memory limit go through ``device_farm``'s sandbox instead.

What lives here: the command, its environment and the pipes. What must not: what a job means.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from artifacts import scratch_folder
from runtime_tests.child import Job

_STDERR_TAIL_BYTES = 8192


@dataclass(frozen=True)
class Ended:
    """How a child ended: exit code (negative: signal), events, its result or its error message, the end of stderr."""

    exit_code: int
    events: tuple[dict[str, Any], ...]
    result: Any
    error: str | None
    stderr_tail: str


def child_command(job: Job, folder: Path) -> list[str]:
    """Write the job into ``folder`` and return the command that runs it."""
    path = folder / f"{job.kind}.json"
    path.write_text(job.model_dump_json(), encoding="utf-8")
    return [sys.executable, "-m", "runtime_tests.child", str(path)]


def child_environment() -> dict[str, str]:
    """This process's environment, with our packages importable from any working directory, which is left out."""
    root = str(Path(__file__).resolve().parents[1])
    inherited = os.environ.get("PYTHONPATH")
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([root, inherited] if inherited else [root]),
        "PYTHONSAFEPATH": "1",
        "PYTHONUNBUFFERED": "1",
    }


def run_child(job: Job, on_event: Callable[[dict[str, Any]], None]) -> Ended:
    """Run a job to its end. On any exception here, Ctrl-C included, the child is killed."""
    with scratch_folder() as folder:
        process = subprocess.Popen(
            child_command(job, folder),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=child_environment(),
        )
        assert process.stdin and process.stdout and process.stderr
        stderr = process.stderr
        tail: deque[bytes] = deque(maxlen=200)
        reader = threading.Thread(target=lambda: tail.extend(stderr), daemon=True)
        reader.start()
        events: list[dict[str, Any]] = []
        try:
            for line in process.stdout:
                try:
                    event = json.loads(line)
                except ValueError:  # killed in the middle of a line
                    continue
                events.append(event)
                if event.get("phase") == "baseline":
                    process.stdin.write(b"\n")
                    process.stdin.flush()
                on_event(event)
            exit_code = process.wait()
        finally:
            process.kill()
            process.wait()
            reader.join(timeout=10)
            for stream in (process.stdin, process.stdout, process.stderr):
                stream.close()
    last = {key: value for event in events for key, value in event.items() if key in ("result", "error")}
    text = b"".join(tail)[-_STDERR_TAIL_BYTES:].decode(errors="replace")
    return Ended(exit_code, tuple(events), last.get("result"), last.get("error"), text)
