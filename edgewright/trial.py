"""An artifact's process that somebody talks to: starting it, asking, stopping, and how it ended.

What lives here: the process of `runtime_tests.talk`, seen from outside, under a phone's limit where one is named. What
must not: a terminal (`try_command.py`), and what the process does.
"""

from __future__ import annotations

import json
import os
import queue
import signal
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from artifacts import Check, EdgewrightError, Figure, GateFailed, Manifest, MissingTool, scratch_folder
from artifacts.payload import app_bytes
from device_farm import MemoryBudget, Profile, SandboxResult, assess_memory, available_mechanisms, not_for_platform
from device_farm import run as run_in_sandbox
from runtime_tests.jobs import Job, Talk
from runtime_tests.phones import modelled_check
from runtime_tests.process import Ended, Failure, child_command, child_environment, failure_of, run_child

_FOREVER_S = 30 * 24 * 3600.0  # somebody may think long about what to ask
_AT = "this conversation"


class Gone(GateFailed):
    """The process ended before it was told to; the message is the verdict."""


class Trial:
    """One artifact, whose digests were checked, in a process of its own; a context manager that ends it.

    phone: whose memory limit it lives under. modelled: the verdict on memory that is counted from the package's
    program; such a package runs without a limit. weakened: what of this machine takes from the verdict.
    """

    weakened: tuple[str, ...] = ()

    def __init__(self, artifact: Path, manifest: Manifest, talk: dict[str, Any], phone: Profile | None) -> None:
        """talk: fields of `Talk`. Raises EdgewrightError where the phone cannot run the artifact."""
        self._job = Job(kind="try", artifact=artifact.resolve())
        self._talk, self._phone = talk, phone
        self.modelled: Check | None = None
        self.counts = manifest.runtime.get("memory") != "modelled"
        self._budget: MemoryBudget | None = None
        if phone is not None:
            platforms = app_bytes(artifact, manifest)
            if platforms is not None and phone.platform not in platforms:
                check = not_for_platform(phone.name, phone.platform, sorted(platforms))
                raise EdgewrightError(f"{artifact}: {phone.name}: {check.reason}")
            self._budget = phone.budget()
        self._events: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._stack = ExitStack()
        self._pipe = -1

    def __enter__(self) -> Trial:
        """Start it. Raises Gone where its modelled memory does not fit the phone."""
        with ExitStack() as stack:
            budget = self._budget
            if budget is not None and self._phone is not None and not self.counts:
                self.modelled, budget = self._counted(budget, self._phone.name), None
                if self.modelled.verdict == "does not fit":
                    raise Gone(in_words(self.modelled))
            place = stack.enter_context(scratch_folder()) / "requests"
            os.mkfifo(place, 0o600)
            # for both directions, so that opening waits for nobody; once closed, here or by our end, it ends the child
            self._pipe = os.open(place, os.O_RDWR | os.O_CLOEXEC)
            job = self._job.model_copy(update={"talk": Talk(requests=place, **self._talk)})
            pool = stack.enter_context(ThreadPoolExecutor(1))
            stack.callback(self._close)
            self._ended: Future[Ended | SandboxResult] = pool.submit(self._run, job, budget)
            self._ended.add_done_callback(lambda _: self._events.put(None))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def loaded(self) -> dict[str, Any]:
        """Waits until it is ready to be asked: the phase "load". Raises as `next` does."""
        while (event := self.next()).get("phase") != "load":
            pass
        return event

    def ask(self, **request: Any) -> None:
        """Begin an answer, whose events `next` gives; see `runtime_tests.talk`."""
        self._send(request)

    def stop(self) -> None:
        """The answer that is coming ends with its next token."""
        self._send({"stop": True})

    def next(self) -> dict[str, Any]:
        """Waits for the next event. Raises Gone with the verdict where the process has ended, EdgewrightError for what
        the user has to mend, MissingTool."""
        event = self._events.get()
        if event is None:
            self._events.put(None)
            raise Gone(self._end(self._ended.result()))
        return event

    def verdict(self) -> Check | None:
        """Ends it; what its phone says to what it held, None without a phone. Raises as `next` does."""
        if self.modelled is not None or self._phone is None or self._budget is None:
            return self.modelled
        self._close()
        result = self._ended.result()
        assert isinstance(result, SandboxResult)
        if result.outcome != "ok":
            raise Gone(self._end(result))
        self.weakened = result.weakened
        return assess_memory(result, self._budget, self._phone.name, _AT)

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Ctrl-C stops the answer."""
        before = signal.getsignal(signal.SIGINT)
        signal.signal(signal.SIGINT, lambda *_: self.stop())
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def _send(self, request: dict[str, Any]) -> None:
        line = json.dumps(request).encode() + b"\n"
        while line and not self._ended.done():
            line = line[os.write(self._pipe, line) :]

    def _close(self) -> None:
        if self._pipe >= 0:
            os.close(self._pipe)
            self._pipe = -1

    def _run(self, job: Job, budget: MemoryBudget | None) -> Ended | SandboxResult:
        if budget is None:
            return run_child(job, self._events.put, silent_s=_FOREVER_S)
        with scratch_folder() as folder:
            return run_in_sandbox(
                child_command(job, folder),
                limit_bytes=budget.limit_bytes,
                rule=budget.rule,
                swap_bytes=budget.swap_bytes,
                cold_paths=[job.artifact],
                on_event=self._events.put,
                env=child_environment(),
                timeout_s=_FOREVER_S,
                limiter=budget.limiter,
                background_bytes=budget.background_bytes if _shares() else 0,
            )

    def _counted(self, budget: MemoryBudget, phone: str) -> Check:
        ended = run_child(self._job.model_copy(update={"kind": "model_memory"}), lambda event: None)
        if (failure := failure_of("modelled memory", ended)) is not None:
            raise Gone(_told(failure))
        figures = [Figure.model_validate(item) for item in ended.result]
        return modelled_check([item for item in figures if item.obtained == "modelled"], budget, phone)

    def _end(self, result: Ended | SandboxResult) -> str:
        """Why it ended. Raises EdgewrightError and MissingTool for what the user has to mend."""
        if isinstance(result, Ended):
            failure = failure_of("talking", result)
            return _told(failure) if failure else "the process has ended"
        said = next((str(event["error"]) for event in result.events if "error" in event), None)
        for kind in (EdgewrightError, MissingTool):
            if said is not None and result.exit_code == kind.exit_code:
                raise kind(said)
        assert self._phone is not None and self._budget is not None
        if result.outcome == "over_budget":
            return in_words(assess_memory(result, self._budget, self._phone.name, _AT))
        return _told(Failure("talking", said or result.detail, result.stderr_tail))


def _shares() -> bool:
    """Whether a limit can be one of several processes here: of a control group."""
    return available_mechanisms()[0] != "watchdog"


def in_words(check: Check) -> str:
    """A verdict on memory as one line."""
    return f"{check.group}: {check.verdict}. {check.reason}"


def _told(failure: Failure) -> str:
    tail = failure.stderr_tail.strip().splitlines()[-1:]
    return ": ".join([failure.detail, *tail])
