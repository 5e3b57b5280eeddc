"""Validation of one artifact: digests, parity, quality, speed on this host, and memory on each phone profile.

What lives here: which child runs when, what its answers become, and the one verdict. What must not: running a runtime
in this process, and the formulas (``parity.py``, ``quality.py``) and rules (``device_farm``) behind the figures.
"""

from __future__ import annotations

import dataclasses
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from artifacts import EdgewrightError, Figure, Manifest, MissingTool, Progress, require_intact, scratch_folder, silent
from device_farm import (
    Assessment,
    MemoryBudget,
    Profile,
    SandboxResult,
    assess_memory,
    assess_modelled_memory,
    latency_not_assessed,
    passes,
)
from device_farm import run as run_in_sandbox
from runtime_tests.child import Job
from runtime_tests.genai import CONFIG, same_continuation
from runtime_tests.golden import Tolerances
from runtime_tests.parity import AT_LEAST, Gate, figure, gate, parity_gates
from runtime_tests.process import Ended, child_command, child_environment, run_child
from runtime_tests.quality import QualityLimits, quality_gates

_PHASES = ("baseline", "load", "prefill", "steady")


@dataclass(frozen=True)
class Limits:
    """A recipe's limits on one phone: bytes, seconds, tokens per second; None where there is none.

    The memory limit can make the phone's own smaller, never larger.
    """

    peak_memory: int | None = None
    time_to_first_token: float | None = None
    decode: float | None = None


@dataclass(frozen=True)
class Failure:
    """A step that did not end by itself: its name, what happened, and the end of what it wrote on stderr."""

    step: str
    detail: str
    stderr_tail: str


@dataclass(frozen=True)
class ProfileResult:
    """One phone: figures (bytes over the interpreter's baseline), verdicts, and the run (without its events).

    run: None where memory was modelled.
    """

    profile: str
    figures: tuple[Figure, ...]
    assessments: tuple[Assessment, ...]
    passed: bool
    run: SandboxResult | None


@dataclass(frozen=True)
class Validation:
    """All that was found. ``passed``: every gate and verdict passed and nothing failed.

    ``warnings``: what the runtime lacks on this machine.
    """

    artifact: Path
    target: str
    figures: tuple[Figure, ...]
    gates: tuple[Gate, ...]
    profiles: tuple[ProfileResult, ...]
    failures: tuple[Failure, ...]
    passed: bool
    warnings: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, with the names of the fields."""
        data: dict[str, Any] = TypeAdapter(Validation).dump_python(self, mode="json")
        return data


def validate(
    artifact: Path,
    profiles: Sequence[tuple[Profile, Limits]] = (),
    quality: QualityLimits | None = None,
    *,
    strict: bool = False,
    allow_unassessed: bool = False,
    threads: int = 2,
    prompt_tokens: int = 512,
    decode_tokens: int = 32,
    progress: Progress = silent,
) -> Validation:
    """Test an artifact in its real runtime, in child processes, and judge it.

    The digests are verified first: an artifact that differs from its manifest is never executed. ``strict`` fails
    verdicts of "tight", ``allow_unassessed`` passes what nothing can assess. ``prompt_tokens`` and ``decode_tokens``
    size the speed and memory runs.

    Raises EdgewrightError for a damaged artifact, MissingTool where the runtime is not installed or the memory
    sandbox cannot run. A runtime that crashes is no exception: it becomes a Failure.
    """
    artifact = artifact.resolve()
    manifest = require_intact(artifact, progress)
    job = Job(
        kind="memory", artifact=artifact, threads=threads, prompt_tokens=prompt_tokens, decode_tokens=decode_tokens
    )
    figures: list[Figure] = []
    gates: list[Gate] = []
    failures: list[Failure] = []
    warnings: list[str] = []
    _check_quality(manifest, job, quality or QualityLimits(), figures, gates, failures, warnings, progress)
    modelled = manifest.runtime.get("memory") == "modelled"
    if modelled:
        figures += _model_memory(job, failures, progress)
    else:
        _measure_speed(job, figures, failures, progress)
    platforms = manifest.runtime.get("platforms")
    results = []
    for profile, limits in profiles:
        if isinstance(platforms, list) and profile.platform not in platforms:
            continue
        if modelled:
            results.append(_judge_model(profile, limits, figures, strict, allow_unassessed))
        else:
            results.append(_check_profile(job, profile, limits, failures, strict, allow_unassessed, progress))
    passed = not failures and all(item.passed for item in gates) and all(item.passed for item in results)
    return Validation(
        artifact,
        manifest.target,
        tuple(figures),
        tuple(gates),
        tuple(results),
        tuple(failures),
        passed,
        tuple(warnings),
    )


def _check_quality(
    manifest: Manifest,
    job: Job,
    limits: QualityLimits,
    figures: list[Figure],
    gates: list[Gate],
    failures: list[Failure],
    warnings: list[str],
    progress: Progress,
) -> None:
    ended = run_child(job.model_copy(update={"kind": "quality"}), _forward(progress))
    if (failure := _failure("parity and quality", ended)) is not None:
        failures.append(failure)
        return
    result = ended.result
    warnings += result["warnings"]
    figures += [Figure.model_validate(item) for item in result["figures"]]
    values = {item.name: float(item.value) for item in figures}
    gates += parity_gates(values, Tolerances.model_validate(result["tolerances"]))
    gates += quality_gates(values, limits)
    if any(entry.path == CONFIG for entry in manifest.files):
        progress("comparing with onnxruntime-genai", 0, 1)
        plain: list[int] = result["greedy"]
        update = {"kind": "genai", "prompt": tuple(result["prompt"]), "decode_tokens": len(plain)}
        ended = run_child(job.model_copy(update=update), _forward(progress))
        if (failure := _failure("onnxruntime-genai", ended)) is not None:
            failures.append(failure)
            return
        equal = same_continuation(job.artifact, ended.result, plain)
        figures.append(figure("genai_greedy_equal", equal, "boolean"))
        gates.append(gate("genai_greedy_equal", float(equal), 1.0, AT_LEAST))
        progress("comparing with onnxruntime-genai", 1, 1)


def _measure_speed(job: Job, figures: list[Figure], failures: list[Failure], progress: Progress) -> None:
    """Time to load, to the first token and per token on this host, with no memory limit and a warm page cache."""
    ended = run_child(job, _phases("measuring speed", progress))
    if (failure := _failure("speed", ended)) is not None:
        failures.append(failure)
        return
    phases = {event["phase"]: event for event in ended.events if "phase" in event}
    figures += [
        figure("host_load", phases["load"]["seconds"], "s"),
        figure("host_prompt_tokens", phases["prefill"]["tokens"], "tokens"),
        figure("host_time_to_first_token", phases["prefill"]["seconds"], "s"),
        figure("host_decode", 1.0 / phases["steady"]["median_seconds"], "tok/s"),
    ]


def _model_memory(job: Job, failures: list[Failure], progress: Progress) -> list[Figure]:
    """Footprint figures of a package that has no runtime here, counted from its program."""
    ended = run_child(job.model_copy(update={"kind": "model_memory"}), _forward(progress))
    if (failure := _failure("modelled memory", ended)) is not None:
        failures.append(failure)
        return []
    return [Figure.model_validate(item) for item in ended.result]


def _judge_model(
    profile: Profile, limits: Limits, figures: Sequence[Figure], strict: bool, allow_unassessed: bool
) -> ProfileResult:
    """The verdict over figures "modelled_footprint…": the largest decides."""
    budget = profile.budget(limits.peak_memory)
    found = [item for item in figures if item.name.startswith("modelled_footprint")]
    assessments = [] if not found else [_assess_model(found, budget)]
    assessments += _latency_limits(limits)
    passed = passes([item.verdict for item in assessments], strict=strict, allow_unassessed=allow_unassessed)
    return ProfileResult(profile.name, tuple(found), tuple(assessments), passed, None)


def _assess_model(figures: Sequence[Figure], budget: MemoryBudget) -> Assessment:
    worst = max(figures, key=lambda item: float(item.value))
    low, high = worst.band or (0.0, float(worst.value))
    return assess_modelled_memory(int(worst.value), (int(low), int(high)), budget)


def _latency_limits(limits: Limits) -> list[Assessment]:
    """What a recipe asks of speed and nothing can assess yet."""
    found = []
    if limits.time_to_first_token is not None:
        found.append(latency_not_assessed("time to first token", limits.time_to_first_token, "s"))
    if limits.decode is not None:
        found.append(latency_not_assessed("decode", limits.decode, "tok/s"))
    return found


def _check_profile(
    job: Job,
    profile: Profile,
    limits: Limits,
    failures: list[Failure],
    strict: bool,
    allow_unassessed: bool,
    progress: Progress,
) -> ProfileResult:
    budget = profile.budget(limits.peak_memory)
    with scratch_folder() as folder:
        run = run_in_sandbox(
            child_command(job, folder),
            limit_bytes=budget.limit_bytes,
            rule=budget.rule,
            swap_bytes=budget.swap_bytes,
            cold_paths=[job.artifact],
            on_event=_phases(f"validating {profile.name}", progress),
            env=child_environment(),
        )
    assessments = [assess_memory(run, budget), *_latency_limits(limits)]
    if run.outcome in ("crashed", "error"):
        failures.append(Failure(f"memory on {profile.name}", _explain(run), run.stderr_tail))
    figures = (
        figure("peak_charged_memory", run.peak_charged_bytes, "bytes"),
        figure("peak_anonymous_memory", run.peak_anonymous_bytes, "bytes"),
        figure("peak_file_memory", run.peak_file_bytes, "bytes"),
        figure("peak_swap", run.peak_swap_bytes, "bytes"),
    )
    passed = passes([item.verdict for item in assessments], strict=strict, allow_unassessed=allow_unassessed)
    quiet = dataclasses.replace(run, events=())
    finished = run.outcome in ("ok", "over_budget")
    return ProfileResult(profile.name, figures if finished else (), tuple(assessments), passed and finished, quiet)


def _explain(run: SandboxResult) -> str:
    """The child's own message where it gave one."""
    return next((str(event["error"]) for event in run.events if "error" in event), run.detail)


def _failure(step: str, ended: Ended) -> Failure | None:
    """None after a good end. What the user has to mend (a bad artifact, a missing tool) is raised instead."""
    for kind in (EdgewrightError, MissingTool):
        if ended.error is not None and ended.exit_code == kind.exit_code:
            raise kind(ended.error)
    if ended.exit_code == 0:
        return None
    how = f"exit code {ended.exit_code}" if ended.exit_code > 0 else signal.Signals(-ended.exit_code).name
    return Failure(step, ended.error or f"the runtime ended with {how}", ended.stderr_tail)


def _forward(progress: Progress) -> Callable[[dict[str, Any]], None]:
    def on_event(event: dict[str, Any]) -> None:
        if "progress" in event:
            progress(*event["progress"])

    return on_event


def _phases(stage: str, progress: Progress) -> Callable[[dict[str, Any]], None]:
    def on_event(event: dict[str, Any]) -> None:
        if event.get("phase") in _PHASES:
            progress(stage, _PHASES.index(event["phase"]) + 1, len(_PHASES))

    return on_event
