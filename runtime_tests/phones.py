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

from artifacts import Check, Figure, Manifest, Progress, passes, ran_here, scratch_folder
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
    peak_phase,
    stand_in,
)
from device_farm import run as run_in_sandbox
from device_farm.limiter import AppState
from runtime_tests.contributors import Contributor, contributors, in_words
from runtime_tests.jobs import Job
from runtime_tests.process import Failure, child_command, child_environment, phases

_TIMEOUT_S = 7200.0  # a context of thousands of tokens takes a large model minutes to read on two cores
_PHASES = 5  # baseline, load, a driver's first use, steady, a long conversation
_SPEED: tuple[tuple[str, str, Direction], ...] = (
    ("time_to_first_token", "s", "at most"),
    ("decode", "tok/s", "at least"),
    ("first_frame", "s", "at most"),
    ("frame_time", "s", "at most"),
)
_BESIDE = ("decode_short", "decode_sustained")  # modelled and shown, and limited by no recipe
_NOT_COUNTED = "no latency data: nothing of this model counts such a figure"


@dataclass(frozen=True)
class Limits:
    """A recipe's limits on one phone: bytes, seconds (of a first token or frame, and of each frame), tokens per second;
    None where there is none.

    The memory limit can make the phone's own smaller, never larger. max_tiles: of an image, which an app there makes.
    os_version, app_state, increased_memory_limit: which of the phone's own limits hold, see `Profile.budget`.
    """

    max_tiles: int | None = None
    peak_memory: int | None = None
    time_to_first_token: float | None = None
    decode: float | None = None
    first_frame: float | None = None
    frame_time: float | None = None
    os_version: str | None = None
    app_state: AppState | None = None
    increased_memory_limit: bool = False

    def budget(self, phone: Profile) -> MemoryBudget:
        """What an app may hold on the phone under these limits. Raises ProfileError where no figure is known."""
        return phone.budget(
            self.peak_memory,
            os_version=self.os_version,
            increased=self.increased_memory_limit,
            app_state=self.app_state,
        )


@dataclass(frozen=True)
class ProfileResult:
    """One phone: figures (bytes over the interpreter's baseline), checks, and the run (without its events).

    run: None where memory was modelled and where the phone's platform cannot run the artifact; several phones may
    share one. phase: where the run held most; largest: what that was made of. warnings: what gates nothing.
    safe_bytes: what the phone's limit leaves certain of itself (`MemoryBudget.comfortable_bytes`).
    """

    profile: str
    platform: Literal["android", "ios"]
    figures: tuple[Figure, ...]
    checks: tuple[Check, ...]
    verdict: Literal["passed", "failed", "not for this platform"]
    run: SandboxResult | None
    phase: str | None = None
    largest: tuple[Contributor, ...] = ()
    warnings: tuple[str, ...] = ()
    safe_bytes: int | None = None


@dataclass(frozen=True)
class Rules:
    """What passes: `strict` fails verdicts of "tight", `allow_unassessed` passes what nothing can assess,
    `allow_throttled` what Android 17 slows down."""

    strict: bool = False
    allow_unassessed: bool = False
    allow_throttled: bool = False

    def accept(self, checks: Sequence[Check]) -> bool:
        """Whether none of the checks fails."""
        return passes(
            checks,
            strict=self.strict,
            allow_unassessed=self.allow_unassessed,
            allow_throttled=self.allow_throttled,
        )


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
    _limited: dict[tuple[object, ...], SandboxResult] = field(default_factory=dict)

    def on(self, phone: Profile, budget: MemoryBudget, tiles: int | None) -> tuple[Check, SandboxResult]:
        """The verdict on a phone, and the run that gave it."""
        run, at = by_rule(self.free(tiles), budget.rule), self.load(tiles)
        check = assess_memory(run, budget, phone.name, at)
        groups = available_mechanisms()[0] != "watchdog"  # without one no limit is kept but the watchdog's
        if run.outcome == "ok" and groups and limit_needed(check, budget):
            key = (tiles, budget.limit_bytes, budget.swap_bytes, budget.limiter, budget.background_bytes)
            if key not in self._limited:
                self._limited[key] = self._run(f"memory on {phone.name}", f"validating {phone.name}", budget, tiles)
            run = self._limited[key]
            check = assess_memory(run, budget, phone.name, at)
        return check, run

    def free(self, tiles: int | None) -> SandboxResult:
        """The run without a limit, charged as Android does."""
        if tiles not in self._shared:
            self._shared[tiles] = self._run("memory", "measuring memory", None, tiles)
        return self._shared[tiles]

    def weakened(self) -> list[str]:
        """What of this machine takes from the runs so far."""
        runs = [*self._shared.values(), *self._limited.values()]
        return list(dict.fromkeys(f"memory: {line}" for run in runs for line in run.weakened))

    def _run(self, step: str, stage: str, budget: MemoryBudget | None, tiles: int | None) -> SandboxResult:
        with scratch_folder() as folder:
            run = run_in_sandbox(
                child_command(self.job.model_copy(update={"tiles": tiles}), folder),
                limit_bytes=budget.limit_bytes if budget else None,
                rule=budget.rule if budget else "android",  # which charges file pages too, so either can be read off
                swap_bytes=budget.swap_bytes if budget else 0,
                cold_paths=[self.job.artifact],
                on_event=phases(stage, self.progress, _PHASES),
                env=child_environment(),
                timeout_s=_TIMEOUT_S,
                mechanism=None if budget else "watchdog",
                limiter=budget.limiter if budget else None,
                background_bytes=budget.background_bytes if budget else 0,
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
    manifest: Manifest,
    speed: Callable[[Profile], Found],
) -> list[ProfileResult]:
    """Every phone in its order.

    platforms: those that can run the artifact; None: any. modelled: figures of its memory where it has no runtime
    here (None: it has one and is run). manifest: of the artifact. speed: what is modelled of it on a phone.
    """
    results = []
    for phone, limits in phones:
        if platforms is not None and phone.platform not in platforms:
            check = not_for_platform(phone.name, phone.platform, platforms)
            results.append(ProfileResult(phone.name, phone.platform, (), (check,), "not for this platform", None))
            continue
        budget = limits.budget(phone)
        if modelled is not None:
            figures = tuple(item for item in modelled if item.name.startswith("modelled_footprint"))
            check = modelled_check(figures, budget, phone.name)
            word: Literal["passed", "failed"] = "passed" if rules.accept([check]) else "failed"
            result = ProfileResult(phone.name, phone.platform, figures, (check,), word, None)
        else:
            result = _measured(runs, phone, limits, budget, rules, manifest)
        fast = speed(phone)
        figures = tuple(item.figure(f"modelled_{name}") for name, item in fast.items() if not isinstance(item, str))
        judged = latency(phone.name, limits, fast)
        results.append(
            dataclasses.replace(
                result,
                figures=(*result.figures, *figures),
                checks=(*result.checks, *judged),
                verdict=result.verdict if rules.accept(judged) else "failed",
                safe_bytes=budget.comfortable_bytes,
            )
        )
    return results


def _measured(
    runs: MemoryRuns, phone: Profile, limits: Limits, budget: MemoryBudget, rules: Rules, manifest: Manifest
) -> ProfileResult:
    check, run = runs.on(phone, budget, limits.max_tiles)
    figures = _figures(run, runs.load(limits.max_tiles))
    warnings: tuple[str, ...] = ()
    # what a phone's limit has changed or ended does not tell what it would have held
    free = by_rule(runs.free(limits.max_tiles), budget.rule)
    largest, phase = contributors(free, manifest), peak_phase(free)
    if check.verdict in ("tight", "throttled", "does not fit") and largest:
        check = check.model_copy(update={"reason": f"{check.reason} Largest without a limit: {in_words(largest)}."})
    if free.outcome == "ok" and budget.play_p90_bytes is not None:
        figure, warnings = play(free, budget.play_p90_bytes, phone.name, runs.load(limits.max_tiles))
        figures = (*figures, figure)
    passed = rules.accept([check]) and run.outcome in ("ok", "over_budget")
    return ProfileResult(
        phone.name,
        phone.platform,
        figures,
        (check,),
        "passed" if passed else "failed",
        run,
        phase.phase if phase else None,
        largest,
        warnings,
    )


def play(run: SandboxResult, limit_bytes: int, phone: str, at: str) -> tuple[Figure, tuple[str, ...]]:
    """Google Play's figure, and a warning where it is beyond what Play asks for from February 2027 on.

    It is the 90th percentile over sessions and users of anonymous and swapped memory in the foreground; here it is over
    the time of the one run, without its load.
    """
    loaded = run.phases[0].end_s if run.phases else 0.0
    held = sorted(sample.unreclaimable_bytes for sample in run.time_line if sample.time_s >= loaded)
    value = held[(9 * len(held) - 1) // 10] if held else 0
    figure = ran_here("p90_anonymous_swap", value, "bytes", stand_in(run), at=at)
    if value <= limit_bytes:
        return figure, ()
    return figure, (
        f"{phone}: from February 2027 Google Play asks for {limit_bytes / 1e9:.2f} GB of anonymous and swapped memory "
        f"at the 90th percentile on such a phone, and this artifact alone has {value / 1e9:.2f} GB",
    )


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


def modelled_check(figures: Sequence[Figure], budget: MemoryBudget, phone: str) -> Check:
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
    return checks + [
        assess_latency(phone, name, "decode", None, "at least", "tok/s", known)
        for name in _BESIDE
        if not isinstance(known := found.get(name, ""), str)
    ]
