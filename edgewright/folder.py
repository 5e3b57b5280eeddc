"""A recipe's folder beyond one run: packages that an earlier run left there, and which of them are still true.

What lives here: the report that grows with a run, and telling a package that the recipe and its quantized weights
would give again from one that another checkpoint or an earlier recipe left. Nothing is moved or deleted. What must
not: building, validating and wording (`markdown.py`, `render.py`).
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from artifacts import MANIFEST, EdgewrightError, Manifest, read_manifest
from artifacts.payload import app_bytes
from artifacts.store import clean
from compiler.targets.base import TOKENIZER_FILES
from edgewright import html_report
from edgewright.markdown import markdown
from edgewright.matrix import pictures
from edgewright.report import (
    REPORT_HTML,
    REPORT_JSON,
    REPORT_MD,
    Report,
    Reused,
    StaleArtifact,
    TargetReport,
    now,
    overall,
    read_report,
    target_report,
    write,
)

if TYPE_CHECKING:
    from compiler.quantized import Quantized


class Ledger:
    """The report of a recipe's folder while a run goes on: what was built and found so far, and what else lies there.

    The report is written anew with every entry, so that it never speaks of a package that was replaced.
    """

    def __init__(self, head: Report, started: float, digests: Mapping[str, str], quantized: Quantized) -> None:
        """head: a report without targets; started: `time.monotonic()`; digests: of the recipe, narrowed to each target.

        quantized: the weights that every package of this run is built from.
        """
        self.report = head
        self._started = started
        self._digests = digests
        self._quantized = quantized
        self._entries: dict[str, TargetReport] = {}
        self._folder = Path(head.folder)
        self._earlier = _earlier_results(self._folder)

    def enter(self, found: TargetReport) -> None:
        """Put a target's result in the place of what was known of it, and write the report. Raises EdgewrightError."""
        self._entries[found.target] = found
        kept, stale = self._others()
        targets = (*self._entries.values(), *kept)
        self.report = self.report.model_copy(
            update={
                "verdict": overall(targets),
                "created": now(),
                "targets": targets,
                "stale": tuple(stale),
                "seconds": round(time.monotonic() - self._started, 1),
            }
        )
        write(self._folder, REPORT_JSON, self.report.model_dump_json(indent=2) + "\n")
        write(self._folder, REPORT_MD, markdown(self.report))
        for name, drawn in pictures(found):
            write(self._folder, name, drawn)
        (self._folder / REPORT_HTML).unlink(missing_ok=True)  # which is made once, at the end

    def close(self) -> Report:
        """The report, now that nothing more will be entered, and its page beside it. Raises EdgewrightError."""
        html_report.write_run(self.report)
        return self.report

    def enter_built(self, artifact: Path, manifest: Manifest, reused: tuple[Reused, ...] = ()) -> None:
        """Put a package that is now there in the place of what was known; what was found out about the same bytes
        still holds. Raises EdgewrightError."""
        if manifest.validations:
            found = _kept(artifact, manifest, self._earlier.get(manifest.target))
        else:
            found = target_report(artifact, manifest, None)
        self.enter(found.model_copy(update={"reused": reused}))

    def _others(self) -> tuple[list[TargetReport], list[StaleArtifact]]:
        """The packages that this run has not built (yet): results that still hold, and packages that are stale."""
        kept: list[TargetReport] = []
        stale: list[StaleArtifact] = []
        for name in sorted(self._digests.keys() - self._entries.keys()):
            artifact = self._folder / name
            if not (artifact / MANIFEST).is_file():
                continue
            try:
                manifest = read_manifest(artifact)
                reason = _stale(manifest, name, self._digests[name], self._quantized)
            except EdgewrightError as error:
                reason = str(error)
            if reason is not None:
                stale.append(StaleArtifact(target=name, artifact=str(artifact), reason=reason))
            else:
                kept.append(_kept(artifact, manifest, self._earlier.get(name)))
        return kept, stale


def clear(folder: Path, fresh: bool) -> None:
    """Remove what killed runs left beside the outputs; the caller is the only run of this folder. An unfinished
    calibration is gone on with, unless the run is a fresh one."""
    clean(folder)
    for name in (REPORT_JSON, REPORT_MD, REPORT_HTML, "digests.json"):
        for aside in folder.glob(f".{name}.[0-9]*"):
            aside.unlink(missing_ok=True)
    for work in folder.glob(".calibration-*") if fresh else ():
        shutil.rmtree(work, ignore_errors=True)


def _earlier_results(folder: Path) -> dict[str, TargetReport]:
    """What the report in a folder says of each target; nothing where there is none that can be read."""
    try:
        return {item.target: item for item in read_report(folder).targets}
    except EdgewrightError:
        return {}


def _stale(manifest: Manifest, target: str, digest: str, quantized: Quantized) -> str | None:
    """Why a package is not what the recipe would give now; None when it is."""
    now = quantized.checkpoint
    if manifest.target != target:
        return f"a package for {manifest.target}"
    if {file.sha256 for file in manifest.checkpoint.files} != {file.sha256 for file in now.files}:
        return f"built from another checkpoint ({manifest.checkpoint.source})"
    own, beside = ({f.path: f.sha256 for f in found.files} for found in (manifest, read_manifest(quantized.folder)))
    if any(own.get(name, sha) != sha for name, sha in beside.items() if name in TOKENIZER_FILES):
        return f"built with another tokenizer ({manifest.checkpoint.source})"
    if manifest.recipe.digest != digest:
        return f"built by another state of the recipe ({manifest.recipe.name}, digest {manifest.recipe.digest[:16]})"
    if manifest.weights_digest != quantized.digest:
        return "built from other quantized weights"
    return None


def _kept(artifact: Path, manifest: Manifest, earlier: TargetReport | None) -> TargetReport:
    if earlier and earlier.manifest == manifest.identity and earlier.verdict == manifest.verdict:
        return earlier.model_copy(update={"kept": True, "artifact": str(artifact)})
    return TargetReport(
        target=manifest.target,
        artifact=str(artifact),
        created=max((record.created for record in manifest.validations), default=""),
        kept=True,
        manifest=manifest.identity,
        app_bytes=app_bytes(artifact, manifest),
        folder_bytes=manifest.total_bytes,
        quantization=manifest.quantization,
        verdict=manifest.verdict,
    )
