"""Figures as text: units, signs and the names that checks have for people. Knows no terminal and no file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from artifacts import Check, Figure
from compiler.quantize.evidence import ActivationEvidence
from edgewright.report import TargetReport
from recipes.schema import Recipe

if TYPE_CHECKING:
    from compiler.plan import TargetPlan
    from edgewright.fit import PlanFit

_WORST = 8
_NOT_FOR = "not for this platform"


@dataclass(frozen=True)
class Row:
    """One line of a report: a check in words. `group` is parity, quality, or the name of a phone profile.

    `stand_in` is what an emulated figure was obtained with in place of the phone or its runtime.
    """

    group: str
    name: str
    figure: str
    limit: str
    obtained: str
    verdict: str
    reason: str = ""
    stand_in: str = ""

    @property
    def remarkable(self) -> bool:
        """Whether the reason says more than the row does: all reasons but that of what simply fits."""
        return bool(self.reason) and self.verdict != "fits"


def budget(recipe: Recipe) -> str | None:
    """What a plan does not know of a recipe that leaves bits to a budget; None without one."""
    wanted = recipe.quantize.budget
    if wanted is None:
        return None
    what = f"to a size of {size(wanted.size)}" if wanted.size is not None else "by measured sensitivity"
    return f"quantize.budget chooses bits and groups {what} while running; the sizes above are those of the rules."


def reused(item: TargetReport) -> str:
    """What a run took from an earlier one, and when its figures were found; empty where that is nothing."""
    if not item.reused:
        return ""
    when = f", its figures of {item.created}" if "validation" in item.reused else ""
    return f"reused, since nothing changed that it depends on: {' and '.join(item.reused)}{when}"


def activations(found: Sequence[ActivationEvidence]) -> list[str]:
    """What activations of 8 bits cost each component, and which convolutions were spared them."""
    lines = []
    for item in found:
        asked = f", {item.min_snr_db:g} dB asked for" if item.min_snr_db is not None else ""
        lines.append(
            f"{item.component}: {item.convolutions} of {item.of} convolutions ({item.products:.0%} of its "
            f"multiplications) on 8-bit activations; outputs keep {item.snr_db:.1f} dB of signal to noise{asked}"
        )
        if item.kept:
            worst = ", ".join(f"{slot} ({item.alone[slot]:.1f} dB alone)" for slot in item.kept[:_WORST])
            more = f" and {len(item.kept) - _WORST} more" if len(item.kept) > _WORST else ""
            lines.append(f"{item.component}: {item.all_snr_db:.1f} dB were it not for floats around {worst}{more}")
    return lines


def size(count: float) -> str:
    """Bytes, decimal: 512 B, 13.9 MB, 1.93 GB."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            amount = count / scale
            return (
                f"{amount:.2f} {unit}"
                if amount < 10
                else f"{amount:,.1f} {unit}"
                if amount < 100
                else f"{amount:,.0f} {unit}"
            )
    return f"{count:.0f} B"


def quantity(value: float | None, unit: str) -> str:
    """A figure in its unit; a change carries its sign."""
    if value is None:
        return "none"
    if unit == "bytes":
        return size(value)
    if unit == "boolean":
        return "yes" if value else "no"
    if unit == "fraction":
        return f"{100 * value:.2f} %"
    if unit == "change":
        return f"{100 * value:+.2f} %"
    if unit in ("logit", "nat", "relative", "RMS"):
        return f"{value:.1e}"
    if unit == "s":
        return f"{1000 * value:.{0 if value >= 0.01 else 1}f} ms" if value < 1 else f"{value:.1f} s"
    if unit == "instructions":
        return f"{value / 1e6:,.3f} M"
    if unit == "tok/s":
        return f"{value:.0f} tok/s" if value >= 10 else f"{value:.1f} tok/s"
    return f"{value:,.3f}".rstrip("0").rstrip(".") + (f" {unit}" if unit not in ("", "perplexity") else "")


def figure(found: Figure) -> str:
    """A figure's value in its unit, with the load that it is of; text as it is."""
    if isinstance(found.value, str):
        return found.value
    load = f" at {found.at}" if found.at and not found.at.startswith("after") else f" {found.at or ''}".rstrip()
    return _sampled(float(found.value), found) + load


def failed(check: Check) -> str:
    """A check that failed, in a few words."""
    limit = "" if check.limit is None else f" (limit {quantity(check.limit, check.unit)})"
    return f"{check.label} {quantity(check.value, check.unit)}{limit}: {check.verdict}"


def obtained(found: Figure | Check | Row) -> str:
    """How a figure was obtained, with the name of what stood in."""
    return f"{found.obtained or ''}" + (f": {found.stand_in}" if found.stand_in else "")


def rows(target: TargetReport) -> list[Row]:
    """Every check of a target in the order in which to read it: parity, quality, phones."""
    found = [*target.checks, *(check for phone in target.phones for check in phone.checks)]
    groups = list(dict.fromkeys(check.group for check in found))
    return [row(check) for check in sorted(found, key=lambda check: groups.index(check.group))]


def stand_ins(found: list[Row]) -> list[str]:
    """What stood in where rows say that they are emulated: one line for each, with the groups that it serves."""
    groups: dict[str, dict[str, None]] = {}
    for row in found:
        if row.stand_in:
            groups.setdefault(row.stand_in, {})[row.group] = None
    return [f"emulated ({', '.join(names)}): {name}" for name, names in groups.items()]


def sizes(app_bytes: dict[str, int] | None, folder_bytes: int | None = None) -> str:
    """What an app ships, by platform where they differ: `android 9.90 MB, ios 9.80 MB in an app`.

    Where there is none, or the manifest does not say, `folder_bytes` says what the folder holds.
    """
    if app_bytes:
        by_size = {size(count): None for count in app_bytes.values()}
        if len(by_size) == 1:
            return f"{next(iter(by_size))} in an app ({', '.join(app_bytes)})"
        return ", ".join(f"{name} {size(count)}" for name, count in app_bytes.items()) + " in an app"
    whole = [] if folder_bytes is None else [size(folder_bytes)]
    return " ".join([*whole, "in its folder"]) if app_bytes is None else ", ".join([*whole, "for no phone"])


def scheme(target: TargetReport) -> str:
    """What the weights are stored as: `INT4 group 32, INT8 group 32`, the largest part first.

    Half precision is named from a hundredth of the parameters on: norms and biases have no other choice.
    """
    whole = sum(group.parameters for group in target.quantization)
    parts = [group for group in target.quantization if group.bits < 16 or 100 * group.parameters >= whole]
    named = [
        "half precision"
        if group.bits == 16
        else f"INT{group.bits} {'per channel' if group.group == 'channel' else f'group {group.group}'}"
        for group in sorted(parts, key=lambda group: -group.parameters)
    ]
    return ", ".join(dict.fromkeys(named)) or "half precision"


def quality(target: TargetReport) -> str | None:
    """Where the quality figures come from, in one line; None when there are none."""
    own, reference, original, kl = (
        target.value(name) for name in ("perplexity", "perplexity_reference", "perplexity_original", "mean_kl")
    )
    if own is None or reference is None or original is None or kl is None:
        return None
    tokens, origin = target.value("golden_positions") or 0, target.held_out_text or "held-out text"
    length = target.value("golden_length") or 1
    predicted = tokens - tokens / length  # nothing comes before the first of a sequence
    return (
        f"on {predicted:,.0f} predicted tokens of {origin}, up to position {length:,.0f}: perplexity "
        f"{own:.3f} as it runs, {reference:.3f} in PyTorch with the same weights, {original:.3f} there unquantized; "
        f"mean KL at least {quantity(kl, 'nat')}"
    )


def speed(target: TargetReport) -> str | None:
    """What was measured on this host, in one line; None when nothing was."""
    emulated = next((f.stand_in for f in target.figures if f.name == "host_load" and f.stand_in), None)
    where = f"on this host ({emulated})" if emulated else "on this host"
    load, first, decode = (target.value(name) for name in ("host_load", "host_time_to_first_token", "host_decode"))
    if load is None:
        return None
    if first is not None and decode is not None:
        prompt = target.value("host_prompt_tokens") or 0
        return (
            f"{where}: load {quantity(load, 's')}, {prompt:,.0f}-token prompt {quantity(first, 's')}, "
            f"decode after it {quantity(decode, 'tok/s')}"
        )
    first, frame, ahead = (target.value(name) for name in ("host_first_frame", "host_frame_time", "lookahead"))
    if first is not None and frame is not None:
        return (
            f"{where}: load {quantity(load, 's')}, first frame {quantity(first, 's')} after its sound, then a frame in "
            f"{quantity(frame, 's')}; each waits for {quantity(ahead, 'ms')} of sound beyond its own"
        )
    first, rounds = target.value("host_first_round"), target.value("host_rounds")
    if first is None or rounds is None:
        return None
    return (
        f"{where}: load {quantity(load, 's')}, first round of all entries {quantity(first, 's')}, then "
        f"{quantity(rounds, 'rounds/s')}"
    )


def packed(target: TargetReport) -> str | None:
    """What packed weights save of memory, in one line; None without them."""
    held, plain = (target.value(f"host_loaded_anonymous{form}") for form in ("", "_plain"))
    if held is None or plain is None:
        return None
    return f"anonymous memory after the load, states included: {size(held)} with packed weights, {size(plain)} without"


def packable(item: TargetPlan) -> list[str]:
    """Both sizes of a package whose weights can be packed in its file, and what that saves; nothing for another."""
    packed = sum(part.packed_bytes for part in item.components)
    if not packed or item.refused:
        return []
    beside = any(part.prepacked for part in item.components)
    plain, copied = (item.file_bytes - packed, 0) if beside else (item.file_bytes, packed)
    which = "as the recipe says" if beside else "with prepacked: host"
    return [
        f"{size(plain)} plain, {size(plain + packed)} {which}, where copies for its processor stay mapped: "
        f"{size(item.held_bytes - copied)} of least need instead of {size(item.held_bytes - copied + packed)}"
    ]


def speeds(fits: Sequence[PlanFit]) -> list[str]:
    """What modelled figures of speed rest on, and why there are no others: a line each, with the phones."""
    lines: dict[str, dict[str, None]] = {}
    for item in fits:
        said = [
            check.reason if check.obtained else f"not assessed: {limited(check)}. {check.reason}"
            for check in item.latency
        ]
        for name, why in item.unknown.items():
            said.append(f"{name.replace('_', ' ')}: {why}.")
        for line in said:
            lines.setdefault(line, {})[f"{item.target} on {item.profile}"] = None
    together: dict[tuple[str, ...], list[str]] = {}
    for line, where in lines.items():
        together.setdefault(tuple(where), []).append(line)
    return [f"{', '.join(where)}: {' '.join(said)}" for where, said in together.items()]


def limited(check: Check) -> str:
    """What a check limits, and how: `frame time ≤ 40 ms`."""
    return f"{check.label} {_limit(check)}".strip()


def _limit(check: Check) -> str:
    if check.limit is None:
        return ""
    sign = "≤" if check.direction == "at most" else "≥"
    return "yes" if check.unit == "boolean" else f"{sign} {quantity(check.limit, check.unit)}"


def row(check: Check) -> Row:
    """A check in words."""
    if check.verdict == _NOT_FOR:
        return Row(check.group, f"{check.label}: {_NOT_FOR}", "", "", "", "", check.reason)
    return Row(
        check.group,
        check.label,
        _sampled(check.value, check),
        _limit(check),
        check.obtained or "",
        check.verdict or "",
        check.reason,
        check.stand_in or "",
    )


def banded(value: float, band: tuple[float, float], unit: str) -> str:
    """A modelled figure with its band, as in `12 (8 to 18) tok/s`."""
    shown = quantity(value, unit)
    ends = [quantity(end, unit) for end in band]
    number, _, behind = shown.partition(" ")
    if behind and all(end.endswith(f" {behind}") for end in ends):
        return f"{number} ({' to '.join(end.removesuffix(f' {behind}') for end in ends)}) {behind}"
    return f"{shown} ({' to '.join(ends)})"


def _sampled(value: float | None, found: Figure | Check) -> str:
    """A value with half the width of its interval behind it, or its band, if it has one."""
    shown = quantity(value, found.unit)
    if found.obtained == "modelled" and found.band is not None and value is not None:
        return banded(value, found.band, found.unit)
    if found.interval is None or value is None:
        return shown
    half = (found.interval[1] - found.interval[0]) / 2
    number, *unit = shown.rsplit(" ", 1)
    return " ".join([number, "±", quantity(half, found.unit).lstrip("+").rsplit(" ", 1)[0], *unit])
