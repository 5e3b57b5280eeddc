"""Artifacts against phones: one cell for each pair, in the terminal's, JSON's and Markdown's shape.

What lives here: the cells, and the runs behind them. What must not: deciding a verdict, and files (`phone_files.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from device_farm.verdict import MEMORY
from edgewright import charts
from edgewright.report import MemoryRun, TargetReport
from edgewright.text import size


@dataclass(frozen=True)
class Cell:
    """One artifact on one phone. peak_bytes is what the phone's rule charges, over the interpreter's baseline; kind is
    what most of it is, phase where it was held, largest what it is made of. warnings gate nothing."""

    artifact: str
    phone: str
    platform: str
    passed: bool | None
    memory: str
    peak_bytes: int | None
    limit_bytes: int | None
    phase: str | None
    kind: str | None
    largest: tuple[str, ...]
    reason: str
    warnings: tuple[str, ...]

    @property
    def words(self) -> str:
        """The cell in a few words."""
        peak = "" if self.peak_bytes is None else f" {size(self.peak_bytes)}"
        limit = "" if self.limit_bytes is None or not peak else f" of {size(self.limit_bytes)}"
        return f"{self.memory}{peak}{limit}" + (f", {self.phase}" if self.phase and peak else "")


def cells(targets: Sequence[TargetReport]) -> list[Cell]:
    """Every artifact on every phone that it was judged on."""
    found = []
    for target in targets:
        for phone in target.phones:
            check = next(check for check in phone.checks if check.name == MEMORY)
            found.append(
                Cell(
                    artifact=target.target,
                    phone=phone.profile,
                    platform=phone.platform,
                    passed=None if phone.verdict == "not for this platform" else phone.verdict == "passed",
                    memory=check.verdict or "",
                    peak_bytes=None if check.value is None else round(check.value),
                    limit_bytes=None if check.limit is None else round(check.limit),
                    phase=phone.phase,
                    kind=None if phone.run is None else _kind(phone.run, phone.phase),
                    largest=tuple(map(str, phone.largest)),
                    reason=check.reason,
                    warnings=phone.warnings,
                )
            )
    return found


def _kind(run: MemoryRun, phase: str | None) -> str | None:
    for item in run.phases:
        if item.phase == phase:
            charged = 0 if run.rule == "ios" else item.peak_file_bytes
            return "anonymous" if item.peak_unreclaimable_bytes >= charged else "file-backed"
    return None


def rows(found: Sequence[Cell]) -> tuple[list[str], list[list[str]]]:
    """The matrix as a table: a row for each phone, a column for each artifact."""
    artifacts = list(dict.fromkeys(cell.artifact for cell in found))
    by_pair = {(cell.phone, cell.artifact): cell.words for cell in found}
    phones = dict.fromkeys(cell.phone for cell in found)
    return ["phone", *artifacts], [[phone, *(by_pair.get((phone, one), "") for one in artifacts)] for phone in phones]


def least(found: Sequence[Cell]) -> list[str]:
    """For the phones on which several artifacts pass: which of them the phone charges least, a line for each."""
    lines: dict[str, list[str]] = {}
    for phone in dict.fromkeys(cell.phone for cell in found):
        fitting = [(cell.peak_bytes, cell.artifact) for cell in found if cell.phone == phone and cell.passed]
        known = sorted((peak, name) for peak, name in fitting if peak is not None)
        if len(known) > 1:
            (peak, name), (other, second) = known[:2]
            lines.setdefault(f"{name} fits best: {size(peak)}, {second} {size(other)}", []).append(phone)
    return [f"{', '.join(phones)}: {line}" for line, phones in lines.items()]


def to_json(found: Sequence[Cell]) -> list[dict[str, Any]]:
    """Plain JSON values."""
    return [asdict(cell) for cell in found]


def runs(target: TargetReport) -> list[tuple[str, MemoryRun, list[str]]]:
    """The memory runs of a target, each once with its picture's file name and the phones that share it."""
    found: list[tuple[MemoryRun, list[str]]] = []
    for phone in target.phones:
        if phone.run is None:
            continue
        for run, phones in found:
            if (run.limit_bytes, run.time_line) == (phone.run.limit_bytes, phone.run.time_line) and _same(
                run, phone.run
            ):
                phones.append(phone.profile)
                break
        else:
            found.append((phone.run, [phone.profile]))
    return [(f"memory-{target.target}-{at}.svg", run, phones) for at, (run, phones) in enumerate(found, 1)]


def _same(one: MemoryRun, other: MemoryRun) -> bool:
    return [phase.payload for phase in one.phases] == [phase.payload for phase in other.phases]


def conditions(run: MemoryRun) -> str:
    """How a phone's memory was held to its limit, and at which length."""
    limit = "without a limit" if run.limit_bytes is None else f"under {size(run.limit_bytes)} by {run.mechanism}"
    return limit if run.context_tokens is None else f"{limit}, {run.context_tokens:,} tokens of context"


def pictures(target: TargetReport) -> Iterator[tuple[str, str]]:
    """File name and content of the memory time line of every run that has one; none where what draws is missing."""
    for name, run, names in runs(target) if charts.missing() is None else ():
        spec = charts.memory(run, [phone for phone in target.phones if phone.profile in names])
        if spec is not None:
            yield name, charts.svg(spec, f"{target.target}, {conditions(run)}")
