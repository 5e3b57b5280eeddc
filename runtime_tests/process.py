"""Starting ``child.py`` and listening to it. Runs under a memory limit go through ``device_farm``'s sandbox instead.

What lives here: the command, its environment, the pipes, progress, and how an end is told. What must not: what a job
means.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from artifacts import EdgewrightError, MissingTool, Progress, scratch_folder
from runtime_tests.jobs import Job

_STDERR_TAIL_BYTES = 8192
_PHASES = 4  # baseline, load, a driver's first use, steady
_SILENT_S = 3600.0  # any job tells of its progress many times in an hour


@dataclass(frozen=True)
class Failure:
    """A step that did not end by itself: its name, what happened, and the end of what it wrote on stderr."""

    step: str
    detail: str
    stderr_tail: str


# What a runtime may need to know of this machine, by name and by how names begin: nothing else of the environment
# reaches a child, because nobody can list the names that hold passwords (tokens, DATABASE_URL, proxies, agents).
_KEPT = re.compile(
    r"""
      PATH | HOME | USER | LOGNAME | SHELL | TMPDIR | TEMP | TMP | TZ | TERM | LANG | LANGUAGE | LC_\w+ | XDG_\w+
    | VIRTUAL_ENV | CONDA_PREFIX | DEVELOPER_DIR | SDKROOT | __CF_USER_TEXT_ENCODING
    | PYTHON\w+ | LD_\w+ | DYLD_\w+ | NIX_LD\w* | MALLOC_\w+ | MIMALLOC_\w+ | GLIBC_TUNABLES
    | (?:OMP|GOMP|KMP|MKL|OPENBLAS|BLIS|VECLIB|NUMEXPR|TORCH|PYTORCH|ORT|TVM|MLX|MTL|METAL|QEMU)_\w+
    | HF_HOME | HF_HUB_OFFLINE | TRANSFORMERS_OFFLINE | HF_HUB_DISABLE_TELEMETRY | DO_NOT_TRACK | TOKENIZERS_PARALLELISM
    """,
    re.VERBOSE,
)
_CREDENTIAL = re.compile("TOKEN(?!IZERS)|SECRET|PASSW|CREDENTIAL|API_?KEY|ACCESS_?KEY", re.IGNORECASE)


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
    """What children get of this process's environment: no credentials, and our packages from any working directory."""
    root = str(Path(__file__).resolve().parents[1])
    inherited = os.environ.get("PYTHONPATH")
    return {
        **{k: v for k, v in os.environ.items() if _KEPT.fullmatch(k) and not _CREDENTIAL.search(k)},
        "PYTHONPATH": os.pathsep.join([root, inherited] if inherited else [root]),
        "PYTHONSAFEPATH": "1",
        "ORT_DISABLE_TELEMETRY": "1",  # without it onnxruntime keeps a device's id and a database in the user's home
        "PYTHONUNBUFFERED": "1",
    }


Start = Callable[[Job, Path], tuple[list[str], dict[str, str]]]
"""start(job, folder): command and environment of the child; the job's files go into the folder."""


def here(job: Job, folder: Path) -> tuple[list[str], dict[str, str]]:
    """On this machine as it is."""
    return child_command(job, folder), child_environment()


def run_child(
    job: Job, on_event: Callable[[dict[str, Any]], None], start: Start = here, *, silent_s: float | None = None
) -> Ended:
    """Run a job to its end. On any exception here, Ctrl-C included, the child is killed, and when it is silent for an
    hour (`silent_s`, where it waits for somebody): it hangs."""
    silent_s = silent_s or _SILENT_S
    with scratch_folder() as folder:
        command, environment = start(job, folder)
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            start_new_session=True,  # what it starts ends with it
        )
        assert process.stdin and process.stdout and process.stderr
        stderr = process.stderr
        tail: deque[bytes] = deque(maxlen=200)
        reader = threading.Thread(target=lambda: tail.extend(stderr), daemon=True)
        reader.start()
        events: list[dict[str, Any]] = []
        watchdog = _Watchdog(process, silent_s)
        try:
            for line in process.stdout:
                watchdog.heard()
                try:
                    event = json.loads(line)
                except ValueError:  # killed in the middle of a line
                    continue
                events.append(event)
                on_event(event)  # before it goes on: a phone's memory is read then
                if event.get("wait") is True:
                    process.stdin.write(b"\n")
                    process.stdin.flush()
            exit_code = process.wait()
        finally:
            watchdog.send_away()
            _end(process)
            process.wait()
            reader.join(timeout=10)
            for stream in (process.stdin, process.stdout, process.stderr):
                stream.close()
    last = {key: value for event in events for key, value in event.items() if key in ("result", "error")}
    text = b"".join(tail)[-_STDERR_TAIL_BYTES:].decode(errors="replace")
    error = last.get("error")
    if watchdog.bit:
        error = f"it said nothing for {silent_s:,.0f} s and was ended: it hangs"
    return Ended(exit_code, tuple(events), last.get("result"), error, text)


class _Watchdog(threading.Thread):
    """Ends a process that is silent for too long. `bit`: whether it had to."""

    def __init__(self, process: subprocess.Popen[bytes], silent_s: float) -> None:
        super().__init__(daemon=True)
        self._silent_s = silent_s
        self._process, self._over, self._heard = process, threading.Event(), time.monotonic()
        self.bit = False
        self.start()

    def heard(self) -> None:
        """It has said something."""
        self._heard = time.monotonic()

    def run(self) -> None:
        """Until it is sent away, or has to bite."""
        while not self._over.wait(max(0.0, self._heard + self._silent_s - time.monotonic())):
            if time.monotonic() >= self._heard + self._silent_s:
                self.bit = True
                _end(self._process)
                return

    def send_away(self) -> None:
        """Nobody is waited for any more."""
        self._over.set()


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill a process of its own session, with what it has started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def failure_of(step: str, ended: Ended) -> Failure | None:
    """None after a good end. What the user has to mend (a bad artifact, a missing tool) is raised instead."""
    for kind in (EdgewrightError, MissingTool):
        if ended.error is not None and ended.exit_code == kind.exit_code:
            raise kind(ended.error)
    if ended.exit_code == 0:
        return None
    how = f"exit code {ended.exit_code}" if ended.exit_code > 0 else signal.Signals(-ended.exit_code).name
    return Failure(step, ended.error or f"the runtime ended with {how}", ended.stderr_tail)


def forward(progress: Progress) -> Callable[[dict[str, Any]], None]:
    """A child's own progress, as it tells it."""

    def on_event(event: dict[str, Any]) -> None:
        if "progress" in event:
            progress(*event["progress"])

    return on_event


def phases(stage: str, progress: Progress, count: int = _PHASES) -> Callable[[dict[str, Any]], None]:
    """The phases of a memory job, `count` of them, as the progress of one stage."""

    done = 0

    def on_event(event: dict[str, Any]) -> None:
        nonlocal done
        if "phase" in event:
            done += 1
            progress(stage, min(done, count), count)

    return on_event
