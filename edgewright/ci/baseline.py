"""A baseline: the figures of a report that later ones are held against, and what explains those that got worse.

What lives here: the file, its comparison with a report, and the reasons. What must not: how any figure was obtained.

A figure has a kind, and a kind a tolerance (`recipes.delivery.Tolerances`): relative, but for shares and changes,
whose tolerance is a difference. A figure that got better never fails; one that is gone does, as nobody looks any more.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from artifacts import Check, EdgewrightError, Manifest, read_manifest
from artifacts.documents import first_error, read_bytes
from compiler.quantize import evidence
from edgewright import text
from edgewright.report import Report, TargetReport
from recipes.delivery import Kind, Tolerances

SCHEMA_VERSION: Final = 1
_MAX_BYTES = 32 << 20
_WORST = 5  # tensors that are named
_DIFFERENCES = ("fraction", "change")  # units in which a relative change means nothing
_OF_GROUPS: Mapping[str, Kind] = {"parity": "parity", "quality": "quality", "task": "quality"}
_OF_PHONES: Mapping[str, Kind] = {"peak_memory": "memory"}
_OF_UNITS: Mapping[str, Kind] = {"instructions": "instructions"}


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Known(_Frozen):
    """A figure that a limit could be set on. label: for people."""

    kind: Kind
    label: str
    value: float
    unit: str
    direction: Literal["at most", "at least"]
    verdict: str | None


class Tensor(_Frozen):
    """How a matrix was stored, and what that cost; see `TensorEvidence`."""

    bits: int
    group: int | Literal["channel"]
    symmetric: bool
    method: str
    snr_db: float

    @property
    def scheme(self) -> str:
        group = self.group if self.group == "channel" else f"group {self.group}"
        return f"INT{self.bits} {group} {self.method}" + ("" if self.symmetric else ", asymmetric")


class Target(_Frozen):
    """What a report says of one target. figures: by group and name; tensors: by slot."""

    verdict: str
    figures: dict[str, Known]
    tensors: dict[str, Tensor]


class Baseline(_Frozen):
    """The content of a baseline file."""

    schema_version: Literal[1] = SCHEMA_VERSION
    recipe: str
    digest: str = Field(description="of the recipe, with the targets of the run")
    checkpoint: str
    created: str
    host: str
    tools: dict[str, str]
    targets: dict[str, Target]

    def text(self) -> str:
        """The file's content, sorted so that a change of a line is a line of a diff."""
        return self.model_dump_json(indent=1) + "\n"


class Difference(_Frozen):
    """A figure then and now. then None: the baseline has it not. now None: it is gone."""

    target: str
    name: str
    label: str
    unit: str
    then: float | None
    now: float | None
    tolerance: float | None
    worse: bool

    @property
    def change(self) -> str:
        """In words: `5.00 MB, was 4.90 MB (+2.0 %, 1 % allowed)`."""
        if self.now is None:
            return f"gone, was {text.quantity(self.then, self.unit)}"
        now = text.quantity(self.now, self.unit)
        if self.then is None:
            return f"{now}, not in the baseline"
        if self.unit in _DIFFERENCES:
            shown = f"{100 * (self.now - self.then):+.2f} points"
        else:
            shown = f"{100 * (self.now / self.then - 1):+.1f} %" if self.then else "was nothing"
        allowed = "" if self.tolerance is None else f", {100 * self.tolerance:g} % allowed"
        return f"{now}, was {text.quantity(self.then, self.unit)} ({shown}{allowed})"


class Comparison(_Frozen):
    """differences: all that is not the same, the worse ones first. reasons: what else changed, and may explain it."""

    regressed: bool
    differences: tuple[Difference, ...]
    reasons: tuple[str, ...]


def baseline_of(report: Report) -> Baseline:
    """What a report says, to hold later ones against. Raises EdgewrightError where it says nothing yet."""
    unknown = [target.target for target in report.targets if target.verdict == "not validated"]
    if unknown or not report.targets:
        raise EdgewrightError(
            f"{report.folder}: {', '.join(unknown) or 'nothing'} was not validated, so there are no figures to hold "
            "on to; run the recipe without --no-validate"
        )
    return described(report, {target.target: _target(target) for target in report.targets})


def described(report: Report, targets: Mapping[str, Target]) -> Baseline:
    """What a report says of the whole run, with these targets."""
    return Baseline(
        recipe=report.recipe.name,
        digest=report.recipe.digest,
        checkpoint=report.checkpoint.revision or report.checkpoint.source,
        created=report.created,
        host=f"{report.host.cpu}, {report.host.system}",
        tools=dict(sorted(report.tools.items())),
        targets=dict(targets),
    )


def read_baseline(path: Path) -> Baseline:
    """A baseline from its file. Raises EdgewrightError."""
    raw = read_bytes(path, _MAX_BYTES)
    try:
        return Baseline.model_validate_json(raw)
    except ValidationError as error:
        raise EdgewrightError(
            f"{path}: is no baseline that this version reads ({first_error(error)}); write it anew: edgewright "
            "baseline update"
        ) from error


def compare(then: Baseline, now: Baseline, tolerances: Tolerances) -> Comparison:
    """What got worse beyond its tolerance, what else is different, and what may explain it."""
    if then.recipe != now.recipe:
        raise EdgewrightError(f"the baseline is of recipe {then.recipe}, and the report of {now.recipe}")
    found = [item for name in {**then.targets, **now.targets} for item in _differences(name, then, now, tolerances)]
    found.sort(key=lambda item: not item.worse)
    regressed = any(item.worse for item in found)
    return Comparison(
        regressed=regressed,
        differences=tuple(found),
        reasons=tuple(reasons(then, now)) if found else (),
    )


def _target(target: TargetReport) -> Target:
    folder = Path(target.artifact)
    checks = [*target.checks, *(check for phone in target.phones for check in phone.checks)]
    shipped = {
        f"size/{platform}": Known(
            kind="size",
            label=f"size in an app ({platform})",
            value=count,
            unit="bytes",
            direction="at most",
            verdict=None,
        )
        for platform, count in (target.app_bytes or {}).items()
    }
    measured = {f"{check.group}/{check.name}": _known(check) for check in checks if check.value is not None}
    tensors = tensors_of(folder, read_manifest(folder))
    return Target(verdict=target.verdict, figures=shipped | measured, tensors=tensors)


def tensors_of(folder: Path, manifest: Manifest) -> dict[str, Tensor]:
    """How an artifact's matrices are stored, by slot. Raises EdgewrightError."""
    return {
        item.slot: Tensor(**item.model_dump(include=set(Tensor.model_fields)))
        for item in evidence.read(folder, manifest).tensors
    }


def _known(check: Check) -> Known:
    assert check.value is not None
    return Known(
        kind=_kind(check),
        label=f"{check.group}: {check.label}",
        value=check.value,
        unit=check.unit,
        direction=check.direction,
        verdict=check.verdict,
    )


def _kind(check: Check) -> Kind:
    if (known := _OF_UNITS.get(check.unit) or _OF_GROUPS.get(check.group) or _OF_PHONES.get(check.name)) is not None:
        return known
    return "parity" if check.group.startswith("ARM64 ") else "latency"


def _differences(name: str, then: Baseline, now: Baseline, tolerances: Tolerances) -> Iterator[Difference]:
    old = then.targets[name].figures if name in then.targets else {}
    new = now.targets[name].figures if name in now.targets else {}
    for key, known in {**old, **new}.items():
        before, after = old.get(key), new.get(key)
        tolerance = tolerances.of(known.kind)
        if before is not None and after is not None and before.value == after.value:
            continue
        yield Difference(
            target=name,
            name=key,
            label=known.label,
            unit=known.unit,
            then=before and before.value,
            now=after and after.value,
            tolerance=None if before is None or after is None else tolerance,
            worse=before is not None and (after is None or _worse(before, after, tolerance)),
        )


def _worse(before: Known, after: Known, tolerance: float) -> bool:
    by = after.value - before.value if after.direction == "at most" else before.value - after.value
    return by > (tolerance if after.unit in _DIFFERENCES else tolerance * abs(before.value))


def reasons(then: Baseline, now: Baseline) -> Iterator[str]:
    """What else is different and may explain figures that are: tools, the machine, the checkpoint, rules, tensors."""
    for tool in sorted({*then.tools, *now.tools}):
        old, new = then.tools.get(tool, "none"), now.tools.get(tool, "none")
        if old != new:
            yield f"tool: {tool} {old} → {new}"
    if then.host != now.host:
        yield f"machine: {then.host} → {now.host}"
    if then.checkpoint != now.checkpoint:
        yield f"checkpoint: {then.checkpoint} → {now.checkpoint}"
    rules = dict.fromkeys(line for name in now.targets for line in _rules(name, then, now))
    yield from rules
    if then.digest != now.digest and not rules:
        yield "recipe: changed, but for its rules"
    yield from dict.fromkeys(line for name in now.targets for line in _tensors(name, then, now))


def _rules(name: str, then: Baseline, now: Baseline) -> Iterator[str]:
    """How tensors are stored otherwise than they were, those of one change together."""
    if name not in then.targets:
        return
    changed: dict[tuple[str, str], list[str]] = {}
    for slot, tensor in now.targets[name].tensors.items():
        before = then.targets[name].tensors.get(slot)
        if before is None or before.scheme != tensor.scheme:
            changed.setdefault((before.scheme if before else "none", tensor.scheme), []).append(slot)
    for (old, new), slots in changed.items():
        more = f" and {len(slots) - 1} more" if len(slots) > 1 else ""
        yield f"rule: {old} → {new} for {slots[0]}{more}"


def _tensors(name: str, then: Baseline, now: Baseline) -> Iterator[str]:
    """The tensors that lost most although they are stored as they were."""
    if name not in then.targets:
        return
    old = then.targets[name].tensors
    lost = {
        slot: old[slot].snr_db - tensor.snr_db
        for slot, tensor in now.targets[name].tensors.items()
        if slot in old and old[slot].scheme == tensor.scheme and old[slot].snr_db - tensor.snr_db > 0.05
    }
    for slot in sorted(lost, key=lambda slot: -lost[slot])[:_WORST]:
        yield f"tensor: {slot} {old[slot].snr_db:.1f} dB → {now.targets[name].tensors[slot].snr_db:.1f} dB"
