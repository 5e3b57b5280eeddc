"""The report of a run: `report.json`, its versioned schema, and how findings of the rooms below become one.

What lives here: the pydantic models (`Report.model_json_schema()` is the documentation of the file) and writing it.
What must not: how a report looks (`render.py`, `markdown.py`).

`schema_version` changes when a key is renamed, removed or changes its meaning; new keys may come without.

Version 2, against version 1:

- a check is `artifacts.Check`: it has `group`, `label`, `stand_in`, `at`, `band` and `interval` beside what it had;
  `comparison` is `direction`; `verdict` is null where nothing limits the figure. `shipped_top1` is no check any more:
  `shipped_clear_top1` is, which passes over tokens that the limit of the divergence leaves open;
- `obtained` is `measured` for the real runtime on this machine alone. What ran in place of the runtime or of the phone
  is `emulated` and named in `stand_in`; counts and PyTorch's figures are `declared`;
- the unit of `perplexity_increase` is `change`, and it carries its 95 % interval;
- memory on a phone is that of the whole context (`at`, `run.context_tokens`), not of a prompt of 512 tokens; phones may
  share a run without a limit (`run.limit_bytes` null), so that a verdict needs no run of its own;
- `phones[].passed` is `phones[].verdict`, which may be `not for this platform`; a target, and a run, whose only phones
  are of other platforms is `not assessed`;
- `targets[].bytes` is `targets[].app_bytes`, by platform, and `targets[].folder_bytes`.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from artifacts import Check, EdgewrightError, Figure, Manifest
from artifacts.documents import first_error, parse_json, read_bytes
from artifacts.manifest import QuantizationGroup
from artifacts.payload import app_bytes
from device_farm import PhaseMemory
from device_farm.timeline import Held
from runtime_tests.contributors import Contributor
from runtime_tests.validate import ProfileResult, Validation

SCHEMA_VERSION: Final = 2
REPORT_JSON = "report.json"
REPORT_MD = "report.md"
REPORT_HTML = "report.html"

Reused = Literal["package", "validation"]
RunVerdict = Literal["passed", "failed", "not assessed", "not validated"]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class MemoryRun(_Model):
    """How a phone's memory came to be known. Sizes in bytes over the interpreter's baseline.

    `mechanism` enforced the limit: a control group (cgroup2, cgroup1) or the watchdog on anonymous memory.
    `limit_bytes` null: nothing limited the run, its memory was read by kind, and other phones may share it.
    `context_tokens` is prompt and answer together, null where a model knows no tokens; each phase says how many it ran.
    """

    rule: Literal["android", "ios"]
    mechanism: Literal["cgroup2", "cgroup1", "watchdog"]
    limit_bytes: int | None
    context_tokens: int | None
    outcome: Literal["ok", "over_budget", "crashed", "error"]
    detail: str
    phases: tuple[PhaseMemory, ...]
    thrash_percent: float | None
    page_cache_left_warm_bytes: int
    time_line: tuple[Held, ...] = Field((), description="seconds, then anonymous, file-backed and swapped bytes")
    weakened: tuple[str, ...] = Field((), description="what of this machine takes from the figures")


class PhoneReport(_Model):
    """One phone profile: its checks, its figures, and the run they come from (None: modelled, or none was made).

    `not for this platform`: the phone cannot run this artifact; it neither passed nor failed. `phase` is where a run
    without a limit holds most, `largest` what that is made of. `warnings` gate nothing. Up to `safe_bytes` memory fits
    for certain; from there to the limit lies what is not known of the phone.
    """

    profile: str
    platform: Literal["android", "ios"]
    verdict: Literal["passed", "failed", "not for this platform"]
    checks: tuple[Check, ...]
    figures: tuple[Figure, ...]
    run: MemoryRun | None
    phase: str | None = None
    largest: tuple[Contributor, ...] = ()
    warnings: tuple[str, ...] = ()
    safe_bytes: int | None = None


class FailedStep(_Model):
    """A step that did not end by itself: a runtime that crashed, a child that was killed."""

    step: str
    detail: str
    stderr_tail: str


class TargetReport(_Model):
    """One target's artifact and all that was found about it. `artifact` is its folder.

    `app_bytes` is what an app ships of it, by platform (null: the manifest does not say), without the runtime's own
    library; `folder_bytes` is everything but `edgewright.json`: golden vectors and libraries for other machines too.
    `created`: when this was found. `kept`: by an earlier run, from the same recipe and the same quantized weights.
    `reused`: what this run took as an earlier one had left it, since nothing changed that it depends on; the figures of
    a `validation` are then of `created`.
    `manifest`: the identity of what was built, by which a result is told from one of an earlier build. `film`: a file
    beside the report, in which a talking head is seen as its weights were, as they are quantized, and as it runs.
    """

    target: str
    artifact: str
    created: str = ""
    kept: bool = False
    reused: tuple[Reused, ...] = ()
    manifest: str = ""
    app_bytes: dict[str, int] | None
    folder_bytes: int
    quantization: tuple[QuantizationGroup, ...]
    held_out_text: str = Field("", description="what the tokens of parity and quality are")
    checks: tuple[Check, ...] = ()
    figures: tuple[Figure, ...] = ()
    phones: tuple[PhoneReport, ...] = ()
    failed_steps: tuple[FailedStep, ...] = ()
    warnings: tuple[str, ...] = ()
    film: str | None = None
    verdict: RunVerdict = "not validated"

    def value(self, name: str) -> float | None:
        """A figure's value by its name; None when the report has none."""
        return next((float(figure.value) for figure in self.figures if figure.name == name), None)


class StaleArtifact(_Model):
    """A package in the folder that another recipe or checkpoint left; no verdict of this report is about it."""

    target: str
    artifact: str
    reason: str


class RecipeUsed(_Model):
    """The recipe as it ran: targets chosen on the command line change the digest, as do those of a package alone,
    whose manifest has the digest of the recipe with its own target."""

    name: str
    digest: str
    file: str | None


class CheckpointUsed(_Model):
    """Where the weights came from: a folder as it was given, or a Hub id and the commit."""

    source: str
    revision: str | None


class Host(_Model):
    """The machine that everything `measured` was measured on."""

    system: str
    cpu: str
    cores: int
    memory_bytes: int
    python: str


class Report(_Model):
    """A recipe's folder after a run. `verdict` is failed if any target failed, passed if all passed.

    `targets` are those of the run, then those that it did not touch and that are still true (`kept`).
    """

    schema_version: Literal[2] = SCHEMA_VERSION
    verdict: RunVerdict
    created: str = Field(description="time of the end of the run, UTC, ISO 8601")
    recipe: RecipeUsed
    checkpoint: CheckpointUsed
    host: Host
    tools: dict[str, str] = Field(description="versions of what took part")
    targets: tuple[TargetReport, ...]
    stale: tuple[StaleArtifact, ...] = ()
    reused: tuple[str, ...] = Field((), description="what an earlier run had done for all targets together")
    warnings: tuple[str, ...] = ()
    seconds: float
    folder: str = Field(description="where the artifacts and the report are")


def read_report(folder: Path) -> Report:
    """The report in a recipe's folder. Raises EdgewrightError."""
    return read_report_file(folder / REPORT_JSON)


def read_report_file(path: Path) -> Report:
    """A report under any name. Raises EdgewrightError."""
    raw = read_bytes(path)
    try:
        return Report.model_validate_json(raw)
    except ValidationError as error:
        version = parse_json(raw, str(path)).get("schema_version")
        if isinstance(version, int) and version > SCHEMA_VERSION:
            raise EdgewrightError(
                f"{path}: schema version {version} is newer than this Edgewright reads ({SCHEMA_VERSION}); upgrade it"
            ) from error
        raise EdgewrightError(
            f"{path}: is no report that this version reads ({first_error(error)}); run the recipe again"
        ) from error


def overall(targets: Sequence[TargetReport]) -> RunVerdict:
    """failed if any target failed, passed if all passed, else what keeps it from that."""
    found = {target.verdict for target in targets}
    order: tuple[RunVerdict, ...] = ("failed", "not validated", "not assessed")
    return next((verdict for verdict in order if verdict in found), "passed" if found else "not validated")


def target_report(artifact: Path, manifest: Manifest, validation: Validation | None) -> TargetReport:
    """What is known of an artifact, from its manifest and from its validation if there was one."""
    built = TargetReport(
        target=manifest.target,
        artifact=str(artifact),
        created=now(),
        manifest=manifest.identity,
        app_bytes=app_bytes(artifact, manifest),
        folder_bytes=manifest.total_bytes,
        quantization=manifest.quantization,
    )
    if validation is None:
        return built
    found = manifest.driver.constants.get("max_tokens") if manifest.driver else None
    context = found if isinstance(found, int) else None
    return built.model_copy(
        update={
            "held_out_text": validation.held_out_text,
            "checks": validation.checks,
            "figures": validation.figures,
            "phones": tuple(_phone(result, context) for result in validation.profiles),
            "failed_steps": tuple(
                FailedStep(step=f.step, detail=f.detail, stderr_tail=f.stderr_tail) for f in validation.failures
            ),
            "warnings": validation.warnings,
            "film": validation.film and validation.film.name,
            "verdict": validation.verdict,
        }
    )


def _phone(result: ProfileResult, context: int | None) -> PhoneReport:
    run = result.run
    return PhoneReport(
        profile=result.profile,
        platform=result.platform,
        verdict=result.verdict,
        checks=result.checks,
        figures=result.figures,
        run=run
        and MemoryRun(
            rule=run.rule,
            mechanism=run.mechanism,
            limit_bytes=run.limit_bytes,
            context_tokens=context,
            outcome=run.outcome,
            detail=run.detail,
            phases=run.phases,
            thrash_percent=run.thrash_percent,
            page_cache_left_warm_bytes=run.cache.warm_bytes,
            time_line=run.time_line,
            weakened=run.weakened,
        ),
        phase=result.phase,
        largest=result.largest,
        warnings=result.warnings,
        safe_bytes=result.safe_bytes,
    )


def now() -> str:
    """This moment, UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def host() -> Host:
    """This machine."""
    return Host(
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        cpu=_cpu_name(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        python=platform.python_version(),
    )


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def write(folder: Path, name: str, text: str) -> Path:
    """Write a text file of the report aside and rename it. Raises EdgewrightError when the folder cannot be written."""
    path, aside = folder / name, folder / f".{name}.{os.getpid()}"
    try:
        aside.write_text(text, encoding="utf-8")
        aside.replace(path)
    except OSError as error:
        raise EdgewrightError(
            f"{path}: the report cannot be written ({error.strerror}); choose another --out"
        ) from error
    finally:
        aside.unlink(missing_ok=True)
    return path
