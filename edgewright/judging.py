"""A package's verdict: found out by testing it, or by an earlier run of the same bytes, limits, code and machine.

What must not live here: how a package is tested (`runtime_tests`), and how a verdict is shown.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from artifacts import Manifest, Progress
from artifacts.entries import core
from artifacts.sources import sources_digest
from artifacts.stages import Store
from compiler import keys, pipeline
from device_farm import Profile
from device_farm.arm64 import cpus_of
from edgewright import standing
from edgewright.again import limits_of, surroundings
from edgewright.conversion import first_divergence
from edgewright.report import TargetReport, target_report
from edgewright.rooms import ROOT
from recipes.schema import Recipe
from runtime_tests.emulated import TARGETS as EMULATED
from runtime_tests.quality import QualityLimits
from runtime_tests.task import TaskLimits
from runtime_tests.validate import Failure, Limits, Validation, validate

STAGE = "validation"
_CODE = ("artifacts", "device_farm", "runtime_tests", "edgewright/conversion.py", "edgewright/report.py")


def judge(
    recipe: Recipe,
    artifact: Path,
    manifest: Manifest,
    phones: Sequence[tuple[Profile, Limits]],
    quantized: Path,
    film: Path,
    store: Store,
    progress: Progress,
) -> TargetReport:
    """A package's verdict by a recipe's limits, which is written into its manifest. film: see `validate`.

    manifest: of the package, with the digest of the recipe. A verdict to which a step belongs that did not end by
    itself is no result that another run could use. Raises EdgewrightError and MissingTool as `validate` does.
    """
    key = _key(recipe, manifest, phones)
    found = _known(store, key)
    if found is not None and (found.film is None or film.is_file()):
        found = found.model_copy(
            update={"artifact": str(artifact), "manifest": manifest.identity, "reused": ("validation",)}
        )
        if any(item.limits == manifest.recipe and item.created == found.created for item in manifest.validations):
            return found
    else:
        film.unlink(missing_ok=True)
        validation = _explained(recipe, _validated(recipe, manifest, artifact, phones, film, progress), quantized)
        found = target_report(artifact, manifest, validation)
        if not found.failed_steps:
            words = {"recipe": recipe.name, "target": manifest.target, "verdict": found.verdict}
            store.note(STAGE, key, words, {"report": found.model_dump_json()})
    return standing.record(artifact, manifest, found, manifest.recipe)


def _key(recipe: Recipe, manifest: Manifest, phones: Sequence[tuple[Profile, Limits]]) -> str:
    wanted = recipe.validation
    return keys.digest(
        "validation",
        core(manifest),
        limits_of(phones),
        [
            part and part.model_dump(mode="json", exclude={"text", "clips", "file"})
            for part in (wanted.quality, wanted.task)
        ],
        [wanted.strict, wanted.allow_unassessed, wanted.allow_throttled, wanted.arm64],
        sources_digest(ROOT / name for name in _CODE),
        pipeline.tool_versions([manifest.target]),
        surroundings(recipe),
    )


def _known(store: Store, key: str) -> TargetReport | None:
    try:
        content = store.content(STAGE, key)
        return None if content is None else TargetReport.model_validate_json(str(content["report"]))
    except (KeyError, ValidationError):
        return None


def _validated(
    recipe: Recipe,
    manifest: Manifest,
    artifact: Path,
    phones: Sequence[tuple[Profile, Limits]],
    film: Path,
    progress: Progress,
) -> Validation:
    wanted = recipe.validation
    emulated = wanted.arm64 and manifest.target in EMULATED
    return validate(
        artifact,
        phones,
        QualityLimits(**wanted.quality.model_dump(exclude={"text", "clips"})) if wanted.quality else None,
        TaskLimits(**wanted.task.model_dump(include={"max_accuracy_drop", "min_agreement"})) if wanted.task else None,
        strict=wanted.strict,
        allow_unassessed=wanted.allow_unassessed,
        allow_throttled=wanted.allow_throttled,
        film=film,
        arm64=cpus_of(phone.cpu.isa.value for phone, _ in phones) if emulated else (),
        progress=progress,
    )


def _explained(recipe: Recipe, validation: Validation, quantized: Path) -> Validation:
    """The same, with the first operation that differs where exact parity failed and the target can tell."""
    if all(check.verdict == "passed" for check in validation.checks if "exact" in check.name):
        return validation
    found = first_divergence(recipe, validation.target, quantized, validation.artifact)
    failure = Failure("conversion", found, "") if found else None
    return dataclasses.replace(validation, failures=(*validation.failures, *filter(None, [failure])))
