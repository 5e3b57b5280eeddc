"""What a sweep found: a row for each variant and target, which of them others beat, and which is the best of a size.

What lives here: reading reports into rows, comparing rows, and rows as a Markdown table and JSON. What must not:
running anything (`sweep.py`), and drawing (`sweep_picture.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

from artifacts import EdgewrightError
from edgewright import text
from edgewright.markdown import table
from edgewright.report import RunVerdict, TargetReport
from edgewright.streams import plain
from edgewright.sweep import LeftOut, Ran
from recipes.quantities import parse_bytes, parse_fraction

SCHEMA_VERSION = 1
_RATES = ("tok/s", "rounds/s")
NOTE = (
    "A variant is dominated where another of the same target is no worse in divergence, bytes and modelled rate, and "
    "better in one of them. The rate on this host varies from run to run and decides nothing."
)


class Divergence(NamedTuple):
    """By which figure a model is compared with its unquantized self, the smaller the better."""

    figure: str
    words: str
    unit: str


# The first that a report has is what rows are compared by.
DIVERGENCES = (
    Divergence("mean_kl", "mean KL", "nat"),
    Divergence("psnr_drop", "PSNR drop", "dB"),
    Divergence("perplexity_increase", "perplexity, change", "change"),
)


@dataclass(frozen=True)
class Row:
    """One variant for one target.

    bytes: of what an app ships, on the platform where that is most. divergences: by `Divergence.figure`. host_rate: of
    this host, measured (tok/s, rounds/s). modelled: by phone, rates that a model gives. dominated_by: a variant's name.
    """

    variant: str
    bits: int
    group: int | str
    method: str
    target: str
    verdict: RunVerdict
    manifest: str
    artifact: str
    bytes: int
    divergences: Mapping[str, float]
    host_rate: float | None
    host_rate_unit: str
    modelled: Mapping[str, float]
    dominated_by: str | None = None

    @property
    def divergence(self) -> float | None:
        """By which it is compared."""
        return next((self.divergences[d.figure] for d in DIVERGENCES if d.figure in self.divergences), None)


def rows(ran: Sequence[Ran]) -> list[Row]:
    """Of the variants that came to their end, each with what dominates it."""
    found = [
        _row(item, target)
        for item in ran
        if item.report is not None
        for target in item.report.targets
        if not target.kept
    ]
    return with_dominated(found)


def _row(ran: Ran, target: TargetReport) -> Row:
    choice = ran.variant.choice
    rate = next(
        (figure for figure in target.figures if figure.name.startswith("host_") and figure.unit in _RATES), None
    )
    modelled = {
        phone.profile: float(figure.value)
        for phone in target.phones
        for figure in phone.figures
        if figure.obtained == "modelled" and figure.unit in _RATES
    }
    values = {d.figure: target.value(d.figure) for d in DIVERGENCES}
    return Row(
        variant=choice.name,
        bits=choice.bits,
        group=choice.group,
        method=choice.method,
        target=target.target,
        verdict=target.verdict,
        manifest=target.manifest,
        artifact=target.artifact,
        bytes=max(target.app_bytes.values()) if target.app_bytes else target.folder_bytes,
        divergences={name: value for name, value in values.items() if value is not None},
        host_rate=None if rate is None else float(rate.value),
        host_rate_unit=rate.unit if rate else "",
        modelled=modelled,
    )


def with_dominated(found: Sequence[Row]) -> list[Row]:
    """The same rows, each with the variant that beats it by most divergence, if any does."""
    made = []
    for row in found:
        better = [other for other in found if other is not row and dominates(other, row)]
        best = min(better, key=lambda other: (other.divergence, other.bytes), default=None)
        made.append(replace(row, dominated_by=None if best is None else best.variant))
    return made


def dominates(one: Row, other: Row) -> bool:
    """Whether a row is no worse than another of its target in everything, and better in something. A row without a
    divergence is not compared."""
    if one.target != other.target or one.divergence is None or other.divergence is None:
        return False
    phones = one.modelled.keys() & other.modelled.keys()
    mine = [one.divergence, one.bytes, *(-one.modelled[name] for name in sorted(phones))]
    its = [other.divergence, other.bytes, *(-other.modelled[name] for name in sorted(phones))]
    return all(a <= b for a, b in zip(mine, its, strict=True)) and mine != its


@dataclass(frozen=True)
class Pick:
    """`size=1.9GB`: the least divergence within a size. `kl=0.01`, `ppl=3%`, `psnr=0.5dB`: the least bytes within a
    divergence."""

    said: str
    limit: float
    figure: str | None

    def within(self, row: Row) -> bool:
        """Whether a row keeps the limit."""
        value = row.bytes if self.figure is None else row.divergences.get(self.figure)
        return value is not None and value <= self.limit


def _number(value: str) -> float:
    return float(value.removesuffix("dB"))


_PICKS: dict[str, tuple[Callable[[str], float], str | None]] = {
    "size": (parse_bytes, None),
    "kl": (_number, "mean_kl"),
    "ppl": (parse_fraction, "perplexity_increase"),
    "psnr": (_number, "psnr_drop"),
}


def parse_pick(said: str) -> Pick:
    """What `--pick` says. Raises EdgewrightError."""
    key, _, value = said.partition("=")
    if key not in _PICKS or not value:
        raise EdgewrightError(f"--pick: {said!r} is none of size=1.9GB, kl=0.01, ppl=3%, psnr=0.5dB")
    read, figure = _PICKS[key]
    try:
        return Pick(said, read(value), figure)
    except ValueError as error:
        raise EdgewrightError(f"--pick {said}: {error}") from error


def picked(found: Sequence[Row], wanted: Pick) -> str:
    """The variant that is best within the limit, for every target that the sweep has: the worst of its targets counts.

    Variants that failed a gate are none. Raises EdgewrightError where none is within, with the nearest.
    """
    targets = {row.target for row in found}
    by_variant: dict[str, list[Row]] = {}
    for row in found:
        by_variant.setdefault(row.variant, []).append(row)
    whole = {
        name: own
        for name, own in by_variant.items()
        if {row.target for row in own} == targets and all(row.verdict != "failed" for row in own)
    }

    def worst(name: str) -> tuple[float, float]:
        divergence = max(float("inf") if row.divergence is None else row.divergence for row in whole[name])
        size = float(max(row.bytes for row in whole[name]))
        return (divergence, size) if wanted.figure is None else (size, divergence)

    within = [name for name, own in whole.items() if all(map(wanted.within, own))]
    if within:
        return min(within, key=worst)
    nearest = min(whole, key=lambda name: worst(name)[::-1], default=None)
    if nearest is None:
        raise EdgewrightError(f"--pick {wanted.said}: every variant failed a gate; nothing was written")
    size, divergence = max(row.bytes for row in whole[nearest]), whole[nearest][0].divergence
    raise EdgewrightError(
        f"--pick {wanted.said}: no variant that passed is within; the nearest is {nearest} with {text.size(size)}"
        + (f" and a divergence of {divergence:.2g}" if divergence is not None else "")
    )


def columns(found: Sequence[Row]) -> list[str]:
    """Heads of the table; one that starts with > is of numbers."""
    known = [d for d in DIVERGENCES if any(d.figure in row.divergences for row in found)]
    phones = list(dict.fromkeys(name for row in found for name in row.modelled))
    return [
        "variant",
        *(["target"] if len({row.target for row in found}) > 1 else []),
        *(f">{d.words}" for d in known),
        ">in an app",
        ">on this host",
        *(f">{name}, modelled" for name in phones),
        "verdict",
        "dominated by",
    ]


def cells(row: Row, found: Sequence[Row]) -> list[str]:
    """A row under `columns(found)`."""
    known = [d for d in DIVERGENCES if any(d.figure in other.divergences for other in found)]
    phones = list(dict.fromkeys(name for other in found for name in other.modelled))
    unit = row.host_rate_unit
    return [
        row.variant,
        *([row.target] if len({other.target for other in found}) > 1 else []),
        *(text.quantity(row.divergences[d.figure], d.unit) if d.figure in row.divergences else "" for d in known),
        text.size(row.bytes),
        "" if row.host_rate is None else text.quantity(row.host_rate, unit),
        *(text.quantity(row.modelled[name], unit or _RATES[0]) if name in row.modelled else "" for name in phones),
        row.verdict,
        row.dominated_by or "",
    ]


def markdown(
    name: str, found: Sequence[Row], ran: Sequence[Ran], left: Sequence[LeftOut], pictures: Sequence[str]
) -> str:
    """sweep.md."""
    heads = [head.lstrip(">") for head in columns(found)]
    lines = [f"# Sweep of {name}", "", *table(heads, [cells(row, found) for row in found])]
    lines += ["", NOTE]
    lines += [line for picture in pictures for line in ("", f"![Divergence by size: {picture}]({picture})")]
    failed = [f"- {item.variant.choice.name}: {_line(item.error)}" for item in ran if item.report is None]
    lines += ["", "## Did not come to their end", "", *failed] if failed else []
    outside = [f"- {item.choice.name}: {_line(item.reason)}" for item in left]
    lines += ["", "## Left out", "", *outside] if outside else []
    return "\n".join(lines) + "\n"


def _line(words: str) -> str:
    return plain(" ".join(words.split()), lines=False)


def to_json(name: str, found: Sequence[Row], ran: Sequence[Ran], left: Sequence[LeftOut]) -> dict[str, Any]:
    """sweep.json."""
    return {
        "schema_version": SCHEMA_VERSION,
        "recipe": name,
        "variants": [asdict(row) for row in found],
        "failed": [
            {"variant": item.variant.choice.name, "message": item.error, "exit_code": item.exit_code}
            for item in ran
            if item.report is None
        ],
        "left_out": [{"variant": item.choice.name, "reason": item.reason} for item in left],
    }
