"""Validation of one artifact: digests, parity, quality, speed on this host, and memory on each phone profile.

What lives here: which child runs when, what its answers become, and the one verdict. What must not: running a runtime
in this process, the formulas (``parity.py``, ``quality.py``) behind the figures, and which run judges which phone
(``phones.py``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter

from artifacts import Check, Figure, Manifest, Progress, ran_here, require_intact, silent
from artifacts.payload import app_bytes
from device_farm import Profile
from device_farm import modelled as modelled_speed
from runtime_tests.drivers import Driver, Judged, driver_of
from runtime_tests.emulated import on_cpu, require
from runtime_tests.jobs import Job
from runtime_tests.on_device import on_device
from runtime_tests.phones import Limits, MemoryRuns, ProfileResult, Rules, on_phones
from runtime_tests.process import Ended, Failure, failure_of, forward, phases, run_child
from runtime_tests.quality import QualityLimits
from runtime_tests.task import TaskLimits, carries_task, judge, read_questions

__all__ = ["Failure", "Limits", "ProfileResult", "Validation", "validate"]


@dataclass(frozen=True)
class Validation:
    """All that was found.

    ``verdict``: passed when every check and phone passed and nothing failed; "not assessed" when phones were asked for
    and the platform of none can run the artifact. ``held_out_text``: what the golden tokens are. ``warnings``: what the
    runtime lacks on this machine, and what could not be tested for it. ``film``: something to look at.
    """

    artifact: Path
    target: str
    figures: tuple[Figure, ...]
    checks: tuple[Check, ...]
    profiles: tuple[ProfileResult, ...]
    failures: tuple[Failure, ...]
    verdict: Literal["passed", "failed", "not assessed"]
    held_out_text: str = ""
    warnings: tuple[str, ...] = ()
    film: Path | None = None

    @property
    def passed(self) -> bool:
        """Whether all of it passed."""
        return self.verdict == "passed"

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, with the names of the fields."""
        data: dict[str, Any] = TypeAdapter(Validation).dump_python(self, mode="json")
        return data


@dataclass
class _Found:
    """What the steps have found so far."""

    figures: list[Figure]
    checks: list[Check]
    failures: list[Failure]
    warnings: list[str]
    held_out_text: str = ""
    film: Path | None = None


def validate(
    artifact: Path,
    profiles: Sequence[tuple[Profile, Limits]] = (),
    quality: QualityLimits | None = None,
    task: TaskLimits | None = None,
    *,
    strict: bool = False,
    allow_unassessed: bool = False,
    allow_throttled: bool = False,
    threads: int = 2,
    prompt_tokens: int = 512,
    decode_tokens: int = 32,
    film: Path | None = None,
    arm64: Sequence[str] = (),
    device: str | None = None,
    progress: Progress = silent,
) -> Validation:
    """Test an artifact in its real runtime, in child processes, and judge it.

    The digests are verified first: an artifact that differs from its manifest is never executed. ``strict`` fails
    verdicts of "tight", ``allow_unassessed`` passes what nothing can assess, ``allow_throttled`` what Android 17 slows
    down. ``prompt_tokens`` is the prompt of the speed figures; memory is measured at the artifact's whole context,
    whose last ``decode_tokens`` are decoded, and in several turns that fill it. ``film``: where an artifact that has
    something to look at leaves it.
    ``arm64``: CPUs on which it also runs in the ARM64 tier (`emulated.py`). ``device``: serial number of an attached
    Android phone, on which it runs too (`on_device.py`).

    Raises EdgewrightError for a damaged artifact, MissingTool where the runtime is not installed or the memory
    sandbox cannot run. A runtime that crashes is no exception: it becomes a Failure.
    """
    artifact = artifact.resolve()
    manifest = require_intact(artifact, progress)
    driver = driver_of(artifact, manifest)
    if arm64 or device is not None:
        require(manifest, artifact, emulated=bool(arm64))
    rules = Rules(strict, allow_unassessed, allow_throttled)
    sizes = app_bytes(artifact, manifest)
    job = Job(
        kind="memory",
        artifact=artifact,
        threads=threads,
        prompt_tokens=prompt_tokens,
        steps=decode_tokens,
        limits=quality or QualityLimits(),
    )
    found = _Found([], [], [], [])
    with _aside(film) as written:
        _check_quality(driver, manifest, job.model_copy(update={"film": written}), found, progress)
        if film and written and found.film:
            found.film = written.replace(film.resolve())
    if carries_task(manifest):
        _check_task(job, task or TaskLimits(), found, progress)
    elsewhere = [partial(on_cpu, job, manifest, cpu, progress) for cpu in arm64]
    elsewhere += [partial(on_device, job, manifest, device, progress)] if device is not None else []
    for there in elsewhere:
        emulated = there()
        found.figures += emulated.figures
        found.checks += emulated.checks
        found.failures += emulated.failures
        found.warnings += [line for line in emulated.warnings if line not in found.warnings]
    modelled: list[Figure] | None = None
    if manifest.runtime.get("memory") == "modelled":
        modelled = _model_memory(job, found, progress)
    else:
        _measure_speed(driver, job, found, progress)
    if manifest.runtime.get("packing") is not None:
        _measure_packed(job, found, progress)
    runs = MemoryRuns(
        job.model_copy(update={"prompt_tokens": None}),
        partial(driver.load, artifact, manifest),
        found.failures,
        progress,
    )
    speed = partial(modelled_speed, manifest.work, manifest.target)
    results = on_phones(runs, profiles, None if sizes is None else sorted(sizes), modelled, rules, manifest, speed)
    found.warnings += [*runs.weakened(), *(line for phone in results for line in phone.warnings)]
    return Validation(
        artifact,
        manifest.target,
        tuple(found.figures),
        tuple(found.checks),
        tuple(results),
        tuple(found.failures),
        _verdict(found, results, rules),
        found.held_out_text,
        tuple(found.warnings),
        found.film,
    )


def _verdict(
    found: _Found, results: Sequence[ProfileResult], rules: Rules
) -> Literal["passed", "failed", "not assessed"]:
    if found.failures or not rules.accept(found.checks) or any(item.verdict == "failed" for item in results):
        return "failed"
    if results and all(item.verdict == "not for this platform" for item in results):
        return "not assessed"
    return "passed"


@contextmanager
def _aside(film: Path | None) -> Iterator[Path | None]:
    """An empty file beside a film's, the one that the child may write there, and gone afterwards."""
    if film is None:
        yield None
        return
    aside = film.resolve().with_name(f".{film.name}")
    aside.touch()
    try:
        yield aside
    finally:
        aside.unlink(missing_ok=True)


def _check_quality(driver: Driver, manifest: Manifest, job: Job, found: _Found, progress: Progress) -> None:
    ended = run_child(job.model_copy(update={"kind": "quality"}), forward(progress))
    if (failure := failure_of("parity and quality", ended)) is not None:
        found.failures.append(failure)
        return
    result: Mapping[str, Any] = ended.result
    judged = Judged(
        [Figure.model_validate(item) for item in result["figures"]],
        [Check.model_validate(item) for item in result["checks"]],
        result["warnings"],
        result["held_out_text"],
        result["more"],
        result["film"],
    )

    def ask(stage: str, **changes: Any) -> Ended:
        progress(stage, 0, 1)
        ended = run_child(job.model_copy(update=changes), forward(progress))
        progress(stage, 1, 1)
        return ended

    found.failures += driver.conclude(manifest, judged, ask)
    found.held_out_text = judged.held_out_text
    found.film = job.film if judged.film else None
    found.warnings += judged.warnings
    found.figures += judged.figures
    found.checks += judged.checks


def _check_task(job: Job, limits: TaskLimits, found: _Found, progress: Progress) -> None:
    questions = read_questions(job.artifact)
    ended = run_child(job.model_copy(update={"kind": "task"}), forward(progress))
    if (failure := failure_of("task", ended)) is not None:
        found.failures.append(failure)
        return
    figures, checks = judge(questions, ended.result["answers"], limits, ended.result["stand_in"])
    found.figures += figures
    found.checks += checks


def _measure_speed(driver: Driver, job: Job, found: _Found, progress: Progress) -> None:
    """Time to load and what the driver times on this host, with no memory limit and a warm page cache."""
    ended = run_child(job, phases("measuring speed", progress))
    if (failure := failure_of("speed", ended)) is not None:
        found.failures.append(failure)
        return
    events = {event["phase"]: event for event in ended.events if "phase" in event}
    found.figures.append(ran_here("host_load", events["load"]["seconds"], "s", events["load"]["stand_in"]))
    found.figures += driver.speed(events)


def _measure_packed(job: Job, found: _Found, progress: Progress) -> None:
    """Anonymous memory after a load, with packed weights and without."""
    for name, plain in (("host_loaded_anonymous", False), ("host_loaded_anonymous_plain", True)):
        job = job.model_copy(update={"kind": "load", "plain": plain})
        ended = run_child(job, phases("measuring packed weights", progress))
        if (failure := failure_of("loading", ended)) is not None:
            found.failures.append(failure)
        elif ended.result is not None:
            found.figures.append(ran_here(name, ended.result, "bytes"))


def _model_memory(job: Job, found: _Found, progress: Progress) -> list[Figure]:
    """Footprint figures of a package that has no runtime here, counted from its program."""
    ended = run_child(job.model_copy(update={"kind": "model_memory"}), forward(progress))
    if (failure := failure_of("modelled memory", ended)) is not None:
        found.failures.append(failure)
        return []
    figures = [Figure.model_validate(item) for item in ended.result]
    found.figures += figures
    return figures
