"""The report of a run: `report.json`, its versioned schema, and how findings of the rooms below become one.

What lives here: the pydantic models (`Report.model_json_schema()` is the documentation of the file) and writing it.
What must not: how a report looks (`render.py`, `markdown.py`).

`schema_version` changes when a key is renamed, removed or changes its meaning; new keys may come without.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from artifacts import EdgewrightError, Manifest
from artifacts.manifest import Figure, Obtained, QuantizationGroup
from device_farm import Assessment, PhaseMemory
from runtime_tests.parity import Gate
from runtime_tests.validate import ProfileResult, Validation

SCHEMA_VERSION: Final = 1
REPORT_JSON = "report.json"
REPORT_MD = "report.md"

CheckVerdict = Literal["passed", "failed", "fits", "tight", "does not fit", "not assessed"]
RunVerdict = Literal["passed", "failed", "not validated"]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Check(_Model):
    """One figure against one limit, both in `unit`. A figure that could not be obtained is null and does not pass.

    `verdict` is passed or failed for parity and quality; fits, tight, does not fit or not assessed for a phone.
    """

    name: str
    value: float | None
    limit: float | None
    comparison: Literal["at most", "at least"]
    unit: str
    obtained: Obtained | None
    verdict: CheckVerdict
    reason: str = ""


class MemoryRun(_Model):
    """How a phone's memory was measured. Sizes in bytes over the interpreter's baseline.

    `mechanism` enforced the limit: a control group (cgroup2, cgroup1) or the watchdog on anonymous memory.
    """

    rule: Literal["android", "ios"]
    mechanism: Literal["cgroup2", "cgroup1", "watchdog"]
    limit_bytes: int | None
    outcome: Literal["ok", "over_budget", "crashed", "error"]
    detail: str
    phases: tuple[PhaseMemory, ...]
    thrash_percent: float | None
    page_cache_left_warm_bytes: int


class PhoneReport(_Model):
    """One phone profile: its checks, its figures, the run they come from (None: modelled), and whether it passed."""

    profile: str
    passed: bool
    checks: tuple[Check, ...]
    figures: tuple[Figure, ...]
    run: MemoryRun | None


class FailedStep(_Model):
    """A step that did not end by itself: a runtime that crashed, a child that was killed."""

    step: str
    detail: str
    stderr_tail: str


class TargetReport(_Model):
    """One target's artifact and all that was found about it. `artifact` is its folder, `bytes` its files' size.

    `created`: when this was found. `kept`: by an earlier run, from the same recipe and the same quantized weights.
    `manifest`: the identity of what was built, by which a result is told from one of an earlier build.
    """

    target: str
    artifact: str
    created: str = ""
    kept: bool = False
    manifest: str = ""
    bytes: int
    quantization: tuple[QuantizationGroup, ...]
    checks: tuple[Check, ...] = ()
    figures: tuple[Figure, ...] = ()
    phones: tuple[PhoneReport, ...] = ()
    failed_steps: tuple[FailedStep, ...] = ()
    warnings: tuple[str, ...] = ()
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
    """The recipe as it ran: targets chosen on the command line change the digest."""

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

    schema_version: Literal[1] = SCHEMA_VERSION
    verdict: RunVerdict
    created: str = Field(description="time of the end of the run, UTC, ISO 8601")
    recipe: RecipeUsed
    checkpoint: CheckpointUsed
    host: Host
    tools: dict[str, str] = Field(description="versions of what took part")
    targets: tuple[TargetReport, ...]
    stale: tuple[StaleArtifact, ...] = ()
    warnings: tuple[str, ...] = ()
    seconds: float
    folder: str = Field(description="where the artifacts and the report are")


def overall(targets: Sequence[TargetReport]) -> RunVerdict:
    """failed if any target failed, passed if all passed."""
    found = {target.verdict for target in targets}
    return "failed" if "failed" in found else "passed" if found == {"passed"} else "not validated"


def target_report(artifact: Path, manifest: Manifest, validation: Validation | None) -> TargetReport:
    """What is known of an artifact, from its manifest and from its validation if there was one."""
    built = TargetReport(
        target=manifest.target,
        artifact=str(artifact),
        created=now(),
        manifest=manifest.identity,
        bytes=manifest.total_bytes,
        quantization=manifest.quantization,
    )
    if validation is None:
        return built
    units = {figure.name: figure.unit for figure in validation.figures}
    return built.model_copy(
        update={
            "checks": tuple(_check(gate, units.get(gate.name, "")) for gate in validation.gates),
            "figures": validation.figures,
            "phones": tuple(_phone(result) for result in validation.profiles),
            "failed_steps": tuple(
                FailedStep(step=f.step, detail=f.detail, stderr_tail=f.stderr_tail) for f in validation.failures
            ),
            "warnings": validation.warnings,
            "verdict": "passed" if validation.passed else "failed",
        }
    )


def _check(gate: Gate, unit: str) -> Check:
    return Check(
        name=gate.name,
        value=gate.value,
        limit=gate.limit,
        comparison=gate.comparison,
        unit=unit,
        obtained=None if gate.value is None else "measured",
        verdict="passed" if gate.passed else "failed",
    )


def _phone(result: ProfileResult) -> PhoneReport:
    run = result.run
    return PhoneReport(
        profile=result.profile,
        passed=result.passed,
        checks=tuple(_assessment(item) for item in result.assessments),
        figures=result.figures,
        run=run
        and MemoryRun(
            rule=run.rule,
            mechanism=run.mechanism,
            limit_bytes=run.limit_bytes,
            outcome=run.outcome,
            detail=run.detail,
            phases=run.phases,
            thrash_percent=run.thrash_percent,
            page_cache_left_warm_bytes=run.cache.warm_bytes,
        ),
    )


def _assessment(item: Assessment) -> Check:
    return Check(
        name=item.subject,
        value=item.figure,
        limit=item.limit,
        comparison="at least" if item.unit == "tok/s" else "at most",
        unit=item.unit,
        obtained=item.obtained,
        verdict=item.verdict.value,
        reason=item.reason,
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
