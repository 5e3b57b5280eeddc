"""A stage in a child process, attended to its end. What must not live here: which stage, and when. Light to import:
a cluster's workers do."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
_TAIL_BYTES = 4096
_PATIENCE_S = 20  # for a child that cleans up


def environment(settings: Mapping[str, str], threads: int | None) -> dict[str, str]:
    """A child's: `settings`, our packages from any working directory, and at the most so many threads."""
    inherited = settings.get("PYTHONPATH")
    made = {
        **settings,
        "PYTHONPATH": os.pathsep.join([str(ROOT), *([inherited] if inherited else [])]),
        "PYTHONSAFEPATH": "1",
    }
    if threads is not None:
        given = settings.get("OMP_NUM_THREADS", "")
        made["OMP_NUM_THREADS"] = str(min(threads, int(given)) if given.isdigit() else threads)
    return made


def attended(
    order: str,
    variables: Mapping[str, str],
    folder: str,
    progress: Callable[[str, int, int], None] | None = None,
    started: Callable[[subprocess.Popen[bytes]], None] | None = None,
) -> dict[str, Any]:
    """Run an order (JSON) in `folder` until it has ended: `done` or `error` and `exit_code`, as the child said."""
    with TemporaryFile() as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "edgewright.parallel.child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            env=dict(variables),
            cwd=folder,
            start_new_session=True,  # Ctrl-C is for whoever started us, who ends this one
        )
        assert process.stdin and process.stdout
        said: dict[str, Any] = {}
        try:
            if started is not None:
                started(process)
            with suppress(BrokenPipeError):  # it is gone already; its end says how
                process.stdin.write(order.encode() + b"\n")
                process.stdin.flush()
            for line in process.stdout:
                try:
                    event = json.loads(line)
                except ValueError:  # killed in the middle of a line
                    continue
                if "progress" in event and progress is not None:
                    progress(*event["progress"])
                elif "progress" not in event:
                    said = event
            process.wait()
        finally:
            end(process)
            for stream in (process.stdin, process.stdout):
                with suppress(BrokenPipeError):
                    stream.close()
        stderr.seek(max(0, stderr.seek(0, os.SEEK_END) - _TAIL_BYTES))
        tail = stderr.read().decode(errors="replace").strip()
    code = process.returncode
    if said.get("exit_code") == 70 or not said:
        how = f"its process was ended by {signal.Signals(-code).name}" if code < 0 else f"its process ended with {code}"
        said = {"error": said.get("error", how) + (f"\n{tail}" if tail else ""), "exit_code": code}
        if code <= 0:
            said["exit_code"] = 128 - code
    return said


def end(process: subprocess.Popen[bytes]) -> None:
    """Ask a child to end, wait while it cleans up, and kill it where it does not."""
    if process.poll() is not None:
        return
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(_PATIENCE_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
