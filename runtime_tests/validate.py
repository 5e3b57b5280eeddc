"""Validation of one artifact: digests, parity, quality, speed on this host, and memory on each phone profile.

What lives here: which child runs when, what its answers become, and the one verdict. What must not: running a runtime
in this process, the formulas (``parity.py``, ``quality.py``) behind the figures, and which run judges which phone
(``phones.py``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter

from artifacts import Check, Figure, Manifest, Progress, ran_here, require_intact, silent
from artifacts.payload import app_bytes
from device_farm import Profile
from runtime_tests import genai
from runtime_tests.child import Job, context_tokens
from runtime_tests.from_text import TOKENIZER, no_tokens_check, options_in_words, text_check, tokens_checks
from runtime_tests.phones import Limits, MemoryRuns, ProfileResult, Rules, on_phones
from runtime_tests.process import Failure, failure_of, forward, phases, run_child
from runtime_tests.quality import QualityLimits

__all__ = ["Failure", "Limits", "ProfileResult", "Validation", "validate"]

_NO_TOKENIZER = f"the package has no {TOKENIZER}: nothing was tested from text"


@dataclass(frozen=True)
class Validation:
    """All that was found.

    ``verdict``: passed when every check and phone passed and nothing failed; "not assessed" when phones were asked for
    and the platform of none can run the artifact. ``held_out_text``: what the golden tokens are. ``warnings``: what the
    runtime lacks on this machine, and what could not be tested for it.
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
    verdicts of "tight", ``allow_unassessed`` passes what nothing can assess. ``prompt_tokens`` is the prompt of the
    speed figures; memory is measured at the artifact's whole context, whose last ``decode_tokens`` are decoded.

    Raises EdgewrightError for a damaged artifact, MissingTool where the runtime is not installed or the memory
    sandbox cannot run. A runtime that crashes is no exception: it becomes a Failure.
    """
    artifact = artifact.resolve()
    manifest = require_intact(artifact, progress)
    rules = Rules(strict, allow_unassessed)
    sizes = app_bytes(artifact, manifest)
    job = Job(
        kind="memory",
        artifact=artifact,
        threads=threads,
        prompt_tokens=prompt_tokens,
        decode_tokens=decode_tokens,
        limits=quality or QualityLimits(),
    )
    found = _Found([], [], [], [])
    _check_quality(manifest, job, found, progress)
    modelled: list[Figure] | None = None
    if manifest.runtime.get("memory") == "modelled":
        modelled = _model_memory(job, found, progress)
    else:
        _measure_speed(job, found, progress)
    at = f"{context_tokens(artifact, manifest):,} tokens"
    runs = MemoryRuns(job.model_copy(update={"prompt_tokens": None}), at, found.failures, progress)
    results = on_phones(runs, profiles, None if sizes is None else sorted(sizes), modelled, rules)
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
    )


def _verdict(
    found: _Found, results: Sequence[ProfileResult], rules: Rules
) -> Literal["passed", "failed", "not assessed"]:
    if found.failures or not rules.accept(found.checks) or any(item.verdict == "failed" for item in results):
        return "failed"
    if results and all(item.verdict == "not for this platform" for item in results):
        return "not assessed"
    return "passed"


def _check_quality(manifest: Manifest, job: Job, found: _Found, progress: Progress) -> None:
    ended = run_child(job.model_copy(update={"kind": "quality"}), forward(progress))
    if (failure := failure_of("parity and quality", ended)) is not None:
        found.failures.append(failure)
        return
    result: Mapping[str, Any] = ended.result
    found.held_out_text = result["held_out_text"]
    found.warnings += result["warnings"]
    if result["text"] is None:
        found.warnings.append(_NO_TOKENIZER)
    found.figures += [Figure.model_validate(item) for item in result["figures"]]
    found.checks += [Check.model_validate(item) for item in result["checks"]]
    eos = manifest.runtime.get("eos")
    if (own := result["own"]) is not None:
        name = own["runtime"]
        found.checks += tokens_checks(name, result["prompt"], own["ids"], own["ids"], "")
        found.checks.append(text_check(name, own["continuation"], result["greedy"], eos, result["stand_in"]))
    if any(entry.path == genai.CONFIG for entry in manifest.files):
        _check_genai(manifest, job, result, found, progress)


def _check_genai(manifest: Manifest, job: Job, result: Mapping[str, Any], found: _Found, progress: Progress) -> None:
    """The package in onnxruntime-genai, from the text on that the plain runner's prompt is of."""
    stage = f"comparing with {genai.NAME}"
    progress(stage, 0, 1)
    plain: list[int] = result["greedy"]
    update = {
        "kind": "genai",
        "prompt": tuple(result["prompt"]),
        "text": result["text"],
        "decode_tokens": len(plain),
    }
    ended = run_child(job.model_copy(update=update), forward(progress))
    if (failure := failure_of(genai.NAME, ended)) is not None:
        found.failures.append(failure)
        return
    said: Mapping[str, Any] = ended.result
    if said["problem"] is not None:
        found.checks.append(no_tokens_check(genai.SHORT, said["problem"]))
    elif said["as_asked"] is not None:
        options = manifest.runtime.get("genai_tokenizer_options")
        how = options_in_words(options) if isinstance(options, dict) else ""
        found.checks += tokens_checks(genai.SHORT, result["prompt"], said["by_default"], said["as_asked"], how)
    eos = manifest.runtime.get("eos")
    found.checks.append(text_check(genai.SHORT, said["continuation"], plain, eos))
    progress(stage, 1, 1)


def _measure_speed(job: Job, found: _Found, progress: Progress) -> None:
    """Time to load, to the first token and per token on this host, with no memory limit and a warm page cache."""
    ended = run_child(job, phases("measuring speed", progress))
    if (failure := failure_of("speed", ended)) is not None:
        found.failures.append(failure)
        return
    by_phase = {event["phase"]: event for event in ended.events if "phase" in event}
    stand_in, tokens = by_phase["load"]["stand_in"], by_phase["prefill"]["tokens"]
    prompt, after = f"{tokens:,} tokens", f"after {tokens:,} tokens"
    found.figures += [
        ran_here("host_load", by_phase["load"]["seconds"], "s", stand_in),
        Figure(name="host_prompt_tokens", value=tokens, unit="tokens", obtained="declared"),
        ran_here("host_time_to_first_token", by_phase["prefill"]["seconds"], "s", stand_in, at=prompt),
        ran_here("host_decode", 1.0 / by_phase["steady"]["median_seconds"], "tok/s", stand_in, at=after),
    ]


def _model_memory(job: Job, found: _Found, progress: Progress) -> list[Figure]:
    """Footprint figures of a package that has no runtime here, counted from its program."""
    ended = run_child(job.model_copy(update={"kind": "model_memory"}), forward(progress))
    if (failure := failure_of("modelled memory", ended)) is not None:
        found.failures.append(failure)
        return []
    figures = [Figure.model_validate(item) for item in ended.result]
    found.figures += figures
    return figures
