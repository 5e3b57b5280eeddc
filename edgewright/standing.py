"""What an artifact's manifest says of its validation: the record a validation leaves, and the record in words.

What must not live here: deciding a verdict (`runtime_tests`), and colours (`render.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from artifacts import EdgewrightError, Manifest, ValidationRecord, record_validation
from artifacts.manifest import RecipeEntry
from artifacts.manifest import Standing as Word
from edgewright import __version__, text
from edgewright.report import TargetReport, host

# A folder of quantized weights has a manifest too; targets are built from it, and nothing runs it.
WEIGHTS = "checkpoint"
GOOD = (None, "passed", "fits", "not for this platform")


@dataclass(frozen=True)
class Standing:
    """One sentence about an artifact, and the verdict that it is about."""

    verdict: Word
    words: str


def record(artifact: Path, validated: Manifest, found: TargetReport, recipe: RecipeEntry | None) -> TargetReport:
    """Write a validation's outcome into the artifact's manifest and return it; with a warning where that is impossible.

    recipe: whose limits were applied; None for the golden vectors' tolerances and the phones' own limits.
    """
    if found.verdict == "not validated":
        return found
    here = host()
    made = ValidationRecord(
        verdict=found.verdict,
        created=found.created,
        host=f"{here.cpu}, {here.system}",
        edgewright=__version__,
        limits=recipe,
        checks=(*found.checks, *(check for phone in found.phones for check in phone.checks)),
        failed_steps=tuple(f"{step.step}: {step.detail}" for step in found.failed_steps),
    )
    try:
        record_validation(artifact, validated, made)
    except EdgewrightError as error:
        warning = f"the artifact's manifest holds no record of this validation: {error}"
        return found.model_copy(update={"warnings": (*found.warnings, warning)})
    return found


def standings(manifest: Manifest, artifact: Path) -> Iterator[Standing]:
    """What was found out about an artifact, latest last; one sentence where nothing was."""
    if manifest.target == WEIGHTS:
        yield Standing("not validated", "quantized weights: packages are built from them, and those are validated")
    elif not manifest.validations:
        yield Standing(
            "not validated",
            f"never validated: nothing shows yet that it works. Run: edgewright validate {artifact}",
        )
    for item in sorted(manifest.validations, key=lambda record: record.created):
        by = f"the limits of recipe {item.limits.name}" if item.limits else "no recipe's limits"
        groups = ", ".join(dict.fromkeys(check.group for check in item.checks if check.verdict)) or "nothing"
        words = f"{item.verdict} on {item.created} by {by}; judged: {groups}"
        if item.verdict == "failed":
            words += f". Failed: {'; '.join([*_failed(item), *item.failed_steps]) or 'no check says why'}"
        yield Standing(item.verdict, words)


def reasons(found: TargetReport) -> list[str]:
    """Every check and step for which a target failed, one line each; empty when it did not."""
    if found.verdict != "failed":
        return []
    failing = {check.group for check in found.checks}
    failing |= {check.group for phone in found.phones if phone.verdict == "failed" for check in phone.checks}
    lines = [
        f"{row.group}: {row.name} {row.figure}" + (f", limit {row.limit}" if row.limit else "") + f": {row.verdict}"
        for row in text.rows(found)
        if row.group in failing and row.verdict and row.verdict not in GOOD
    ]
    lines += [f"{step.step}: {step.detail.splitlines()[0] if step.detail else 'failed'}" for step in found.failed_steps]
    return lines or ["the report that says why is gone; its manifest holds the verdict"]


def _failed(item: ValidationRecord) -> Iterator[str]:
    for check in item.checks:
        if check.verdict not in GOOD:
            yield f"{check.group}: {text.failed(check)}"
