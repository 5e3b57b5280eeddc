"""An artifact on phones: which run decides what on which phone, and the verdict of each.

What lives here: the memory runs, and which phones share one. What must not: the rules behind a verdict
(``device_farm``), and what runs inside of a child (``child.py``).

The load is the context that the artifact promises: a prompt that fills it but for the tokens that are then decoded.
That is dear, so one run without a limit, measured by kind, comes first. It decides for every phone on which no limit
would have acted: on iOS always (the limit kills and does nothing before), on Android where all memory, file pages too,
stays within what is certain. Where file pages would have to go, the artifact runs once more under that phone's limit.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from artifacts import Check, Figure, Progress, passes, ran_here, scratch_folder
from artifacts.figures import Direction
from device_farm import (
    Found,
    MemoryBudget,
    Profile,
    SandboxResult,
    assess_latency,
    assess_memory,
    assess_modelled_memory,
    available_mechanisms,
    by_rule,
    limit_needed,
    not_assessed,
    not_for_platform,
    stand_in,
)
from device_farm import run as run_in_sandbox
from runtime_tests.jobs import Job
from runtime_tests.process import Failure, child_command, child_environment, phases

_TIMEOUT_S = 3600.0  # a context of thousands of tokens takes a large model minutes to read on two cores
_SPEED: tuple[tuple[str, str, Direction], ...] = (
    ("time_to_first_token", "s", "at most"),
    ("decode", "tok/s", "at least"),
    ("first_frame", "s", "at most"),
    ("frame_time", "s", "at most"),
)
_NOT_COUNTED = "no latency data: nothing of this model counts such a figure"


@dataclass(frozen=True)
class Limits:
    """A recipe's limits on one phone: bytes, seconds (of a first token or frame, and of each frame), tokens per second;
    None where there is none.

    The memory limit can make the phone's own smaller, never larger. max_tiles: of an image, which an app there makes.
    """

    max_tiles: int | None = None
    peak_memory: int | None = None
    time_to_first_token: float | None = None
    decode: float | None = None
    first_frame: float | None = None
    frame_time: float | None = None


@dataclass(frozen=True)
class ProfileResult:
    """One phone: figures (bytes over the interpreter's baseline), checks, and the run (without its events).

    run: None where memory was modelled and where the phone's platform cannot run the artifact; several phones may
    share one.
    """

    profile: str
    platform: Literal["android", "ios"]
    figures: tuple[Figure, ...]
    checks: tuple[Check, ...]
    verdict: Literal["passed", "failed", "not for this platform"]
    run: SandboxResult | None


@dataclass(frozen=True)
class Rules:
    """What passes: `strict` fails verdicts of "tight", `allow_unassessed` passes what nothing can assess."""

    strict: bool = False
    allow_unassessed: bool = False

    def accept(self, checks: Sequence[Check]) -> bool:
        """Whether none of the checks fails."""
        return passes(checks, strict=self.strict, allow_unassessed=self.allow_unassessed)


@dataclass
class MemoryRuns:
    """The memory runs of one artifact. ``failures`` gets those that did not end by themselves.

    load: says what a run with so many tiles is measured at (None: the most).
    """

    job: Job
    load: Callable[[int | None], str]
    failures: list[Failure]
    progress: Progress
    _shared: dict[int | None, SandboxResult] = field(default_factory=dict)

    def on(self, phone: Profile, budget: MemoryBudget, tiles: int | None) -> tuple[Check, SandboxResult]:
        """The verdict on a phone, and the run that gave it."""
        if tiles not in self._shared:
            self._shared[tiles] = self._run("memory", "measuring memory", None, tiles)
        run, at = by_rule(self._shared[tiles], budget.rule), self.load(tiles)
        check = assess_memory(run, budget, phone.name, at)
        groups = available_mechanisms()[0] != "watchdog"  # without one no limit is kept but the watchdog's
        if run.outcome == "ok" and groups and limit_needed(check, budget):
            run = self._run(f"memory on {phone.name}", f"validating {phone.name}", budget, tiles)
            check = assess_memory(run, budget, phone.name, at)
        return check, run

    def _run(self, step: str, stage: str, budget: MemoryBudget | None, tiles: int | None) -> SandboxResult:
        with scratch_folder() as folder:
            run = run_in_sandbox(
                child_command(self.job.model_copy(update={"tiles": tiles}), folder),
                limit_bytes=budget.limit_bytes if budget else None,
                rule=budget.rule if budget else "android",  # which charges file pages too, so either can be read off
                swap_bytes=budget.swap_bytes if budget else 0,
                cold_paths=[self.job.artifact],
                on_event=phases(stage, self.progress),
                env=child_environment(),
                timeout_s=_TIMEOUT_S,
                mechanism=None if budget else "watchdog",
            )
        if run.outcome in ("crashed", "error"):
            said = next((str(event["error"]) for event in run.events if "error" in event), run.detail)
            self.failures.append(Failure(step, said, run.stderr_tail))
        return dataclasses.replace(run, events=())


def on_phones(
    runs: MemoryRuns,
    phones: Sequence[tuple[Profile, Limits]],
    platforms: Sequence[str] | None,
    modelled: Sequence[Figure] | None,
    rules: Rules,
    speed: Callable[[Profile], Found],
) -> list[ProfileResult]:
    """Every phone in its order.

    platforms: those that can run the artifact; None: any. modelled: figures of its memory where it has no runtime
    here (None: it has one and is run). speed: what is modelled of it on a phone.
    """
    results = []
    for phone, limits in phones:
        if platforms is not None and phone.platform not in platforms:
            check = not_for_platform(phone.name, phone.platform, platforms)
            results.append(ProfileResult(phone.name, phone.platform, (), (check,), "not for this platform", None))
            continue
        budget = phone.budget(limits.peak_memory)
        run: SandboxResult | None = None
        if modelled is not None:
            figures = tuple(item for item in modelled if item.name.startswith("modelled_footprint"))
            check = _modelled(figures, budget, phone.name)
        else:
            check, run = runs.on(phone, budget, limits.max_tiles)
            figures = _figures(run, runs.load(limits.max_tiles))
        found = speed(phone)
        figures += tuple(item.figure(f"modelled_{name}") for name, item in found.items() if not isinstance(item, str))
        checks = (check, *latency(phone.name, limits, found))
        passed = rules.accept(checks) and (run is None or run.outcome in ("ok", "over_budget"))
        results.append(
            ProfileResult(phone.name, phone.platform, figures, checks, "passed" if passed else "failed", run)
        )
    return results


def _figures(run: SandboxResult, at: str) -> tuple[Figure, ...]:
    if run.outcome not in ("ok", "over_budget"):
        return ()
    sizes = {
        "peak_charged_memory": run.peak_charged_bytes,
        "peak_anonymous_memory": run.peak_anonymous_bytes,
        "peak_file_memory": run.peak_file_bytes,
        "peak_swap": run.peak_swap_bytes,
    }
    return tuple(ran_here(name, size, "bytes", stand_in(run), at=at) for name, size in sizes.items())


def _modelled(figures: Sequence[Figure], budget: MemoryBudget, phone: str) -> Check:
    """The verdict over figures of the package's functions: the largest decides."""
    if not figures:
        reason = "Its memory could not be counted."
        return not_assessed(phone, "peak_memory", "peak memory", budget.limit_bytes, "bytes", "at most", reason)
    return assess_modelled_memory(max(figures, key=lambda item: float(item.value)), budget, phone)


def latency(phone: str, limits: Limits, found: Found) -> list[Check]:
    """What a recipe asks of speed against what is modelled, and figures that nothing limits."""
    checks = []
    for name, unit, direction in _SPEED:
        limit, known = getattr(limits, name), found.get(name, _NOT_COUNTED)
        if limit is not None or not isinstance(known, str):
            checks.append(assess_latency(phone, name, name.replace("_", " "), limit, direction, unit, known))
    beside = [(name, found.get(name, "")) for name in ("decode_short", "decode_sustained")]
    return checks + [
        assess_latency(phone, name, "decode", None, "at least", "tok/s", known)
        for name, known in beside
        if not isinstance(known, str)
    ]
