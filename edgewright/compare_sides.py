"""What `edgewright compare` is given, as sides: an artifact, a target of a run's report, a folder of another tool.

What lives here: which of these a path is, and what is recorded of it. What must not: running anything
(`compare_measure.py`), and differences (`compare.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from artifacts import MANIFEST, Check, EdgewrightError, Figure, Manifest, read_manifest, user_path
from artifacts.manifest import payload_file
from artifacts.payload import app_bytes
from edgewright import text
from edgewright.ci.baseline import Baseline, Target, described, tensors_of
from edgewright.report import REPORT_JSON, TargetReport, read_report_file, target_report
from edgewright.standing import WEIGHTS
from runtime_tests import foreign
from runtime_tests.golden import GOLDEN, Golden, read_golden

QUALITY = ("parity", "quality", "task")  # groups that say nothing between different checkpoints
HOST = "this host"
SIZE = "size"
ONE = ""  # the name of the only target of a side, so that sides of different targets can be explained
_NAMES = {
    "host_load": "load",
    "host_time_to_first_token": "first token",
    "host_decode": "decode",
    "host_first_frame": "first frame",
    "host_frame_time": "frame time",
}
Key = tuple[str, str, str]
"""Group, name and load of a check: what has another load is another figure."""


@dataclass
class Side:
    """One column. checks: what is known, by group, name and load. folder and manifest: None where the report alone is
    left, or was of an earlier build. kind: of a folder of another tool. notes: what is missing, and why."""

    letter: str
    path: Path
    what: str
    scheme: str
    checkpoint: str
    known: Baseline
    checks: dict[Key, Check]
    folder: Path | None
    manifest: Manifest | None
    kind: str | None = None
    notes: list[str] = field(default_factory=list)

    @cached_property
    def golden(self) -> Golden | None:
        """The golden vectors of a text decoder, where they are on this machine."""
        if self.folder is None or self.manifest is None or self.kind is not None:
            return None
        if all(file.path != GOLDEN for file in self.manifest.files):
            return None
        return read_golden(payload_file(self.folder, GOLDEN))

    @property
    def identity(self) -> str:
        """By which a checkpoint is told from another: digests of its weights, else its name. Empty: nobody says."""
        if self.kind is not None:
            return ""
        files = self.manifest.checkpoint.files if self.manifest else ()
        weights = sorted(file.sha256 for file in files if not file.path.endswith(".json"))
        return " ".join(weights) or self.checkpoint

    def put(self, checks: Sequence[Check]) -> None:
        """Add what was found."""
        self.checks |= {key_of(check): check for check in checks}

    def drop(self, *groups: str) -> None:
        """Forget what is recorded of groups, which is measured anew."""
        self.checks = {key: check for key, check in self.checks.items() if key[0] not in groups}


def key_of(check: Check) -> Key:
    """By which checks of two sides are the same."""
    return check.group, check.name, check.at or ""


def sides(given: Sequence[str], target: str | None) -> list[Side]:
    """Every side that the paths hold, in their order.

    Raises EdgewrightError with one message for a path that is none of these, and where fewer than two sides are left.
    """
    found: list[Side] = []
    for one in given:
        here = list(_of(user_path(one, "PATH"), target))
        if target is not None and not here:
            raise EdgewrightError(f"--target: {one} has no {target!r}")
        found += here
    if len(found) < 2:
        raise EdgewrightError(f"{given[0]}: there is nothing to compare it with; name two artifacts or more")
    for at, side in enumerate(found):
        side.letter = _letter(at)
    return found


def require_validated(found: Sequence[Side]) -> None:
    """Raises EdgewrightError for a side of which nothing was ever measured."""
    for side in found:
        if side.known.targets[ONE].verdict == "not validated":
            raise EdgewrightError(
                f"{side.path}: {side.what} was not validated, so there are no figures to compare; run the recipe "
                "without --no-validate, `edgewright validate` the artifact, or compare with --measure"
            )


def figure_check(figure: Figure, group: str, label: str) -> Check:
    """A figure as a check that nothing limits."""
    direction = "at least" if figure.unit in ("tok/s", "rounds/s", "fraction") else "at most"
    known = figure.model_dump(exclude={"value"})
    value = float(figure.value)
    return Check(group=group, label=label, value=value, limit=None, direction=direction, verdict=None, **known)


def host_checks(figures: Sequence[Figure]) -> list[Check]:
    """Speed on a host."""
    return [figure_check(item, HOST, _NAMES[item.name]) for item in figures if item.name in _NAMES]


def no_speed(stand_in: str) -> str:
    """Why a side's speed is left out."""
    return f"no speed: {stand_in} stand in here, which says nothing of a device"


def _of(path: Path, target: str | None) -> Iterator[Side]:
    if path.is_file():
        yield from _report(path, target)
    elif (path / MANIFEST).exists():
        yield _artifact(path)
    elif (path / REPORT_JSON).exists():
        yield from _report(path / REPORT_JSON, target)
    elif path.is_dir() and (kind := foreign.kind_of(path)) is not None:
        yield _foreign(path, kind)
    elif below := sorted(place.parent for place in path.glob(f"*/{MANIFEST}")):
        for folder in below:
            if read_manifest(folder).target != WEIGHTS and target in (None, folder.name):
                yield _artifact(folder)
    else:
        raise EdgewrightError(
            f"{path}: nothing to compare: no artifact ({MANIFEST}), no run ({REPORT_JSON}), no folder of "
            "onnxruntime-genai (genai_config.json) or of the mlx-community (config.json with `quantization`, "
            "model*.safetensors)"
            if path.exists()
            else f"{path}: no such file or folder"
        )


def _artifact(folder: Path) -> Side:
    manifest = read_manifest(folder)
    if manifest.target == WEIGHTS:
        raise EdgewrightError(f"{folder}: holds quantized weights, which nothing runs; name a package built from them")
    records = sorted(manifest.validations, key=lambda record: record.created)
    built = target_report(folder, manifest, None)
    checks = [check for record in records for check in record.checks]
    known = Baseline(
        recipe=manifest.recipe.name,
        digest=manifest.recipe.digest,
        checkpoint=manifest.checkpoint.revision or manifest.checkpoint.source,
        created=records[-1].created if records else "",
        host=records[-1].host if records else "",
        tools=manifest.created_by,
        targets={ONE: Target(verdict=manifest.verdict, figures={}, tensors=tensors_of(folder, manifest))},
    )
    return _side(folder, built, known, checks, folder, manifest)


def _report(path: Path, target: str | None) -> Iterator[Side]:
    report = read_report_file(path)
    for item in report.targets:
        if target not in (None, item.target):
            continue
        folder, manifest, notes = _folder(path.parent, item)
        checks = [*item.checks, *(check for phone in item.phones for check in phone.checks)]
        stand_in = next((figure.stand_in for figure in item.figures if figure.name == "host_load"), None)
        checks += [] if stand_in else host_checks(item.figures)
        kl = next((figure for figure in item.figures if figure.name == "mean_kl"), None)
        if kl is not None and all(check.name != "mean_kl" for check in checks):
            checks.append(figure_check(kl, "quality", "mean KL to unquantized, lower bound"))
        tensors = tensors_of(folder, manifest) if folder and manifest else {}
        known = described(report, {ONE: Target(verdict=item.verdict, figures={}, tensors=tensors)})
        side = _side(path.parent / item.target if folder else path, item, known, checks, folder, manifest)
        side.notes += [*notes, *([no_speed(stand_in)] if stand_in else [])]
        yield side


def _folder(beside: Path, item: TargetReport) -> tuple[Path | None, Manifest | None, list[str]]:
    """The artifact that a report speaks of, if it is on this machine as it was."""
    for folder in (beside / item.target, Path(item.artifact)):
        if (folder / MANIFEST).is_file():
            manifest = read_manifest(folder)
            if item.manifest in ("", manifest.identity):
                return folder, manifest, []
            return None, None, [f"{folder} was built anew since the report, which is compared without it"]
    return None, None, ["the artifact of the report is not here: its tensors and tokens are not compared"]


def _side(
    path: Path,
    item: TargetReport,
    known: Baseline,
    checks: Sequence[Check],
    folder: Path | None,
    manifest: Manifest | None,
) -> Side:
    scheme = text.scheme(item)
    side = Side("", path, item.target, scheme, known.checkpoint, known, {}, folder, manifest)
    side.put([_size(name, count) for name, count in (item.app_bytes or {"folder": item.folder_bytes}).items()])
    side.put(checks)
    return side


def _foreign(folder: Path, kind: str) -> Side:
    empty = Target(verdict="not validated", figures={}, tensors={})
    known = Baseline(
        recipe="", digest="", checkpoint="", created="", host="", tools={foreign.NAMES[kind]: ""}, targets={ONE: empty}
    )
    side = Side("", folder, foreign.NAMES[kind], foreign.scheme(folder, kind), "", known, {}, folder, None, kind)
    side.put([_size(platform, foreign.size(folder)) for platform in foreign.PLATFORMS[kind]])
    return side


def _size(platform: str, count: int) -> Check:
    label = "of its folder" if platform == "folder" else f"in an app ({platform})"
    figure = Figure(name=platform, value=count, unit="bytes", obtained="declared")
    return figure_check(figure, SIZE, label)


def platforms(side: Side) -> list[str] | None:
    """Those that can run a side; None: any."""
    if side.kind is not None:
        return sorted(foreign.PLATFORMS[side.kind])
    assert side.folder is not None and side.manifest is not None
    sizes = app_bytes(side.folder, side.manifest)
    return None if sizes is None else sorted(sizes)


def _letter(at: int) -> str:
    return chr(65 + at) if at < 26 else f"{_letter(at // 26 - 1)}{chr(65 + at % 26)}"
