"""Figures as text: units, signs and the names that checks have for people. Knows no terminal and no file."""

from __future__ import annotations

from dataclasses import dataclass

from artifacts import Figure
from edgewright.report import Check, TargetReport

_NAMES = {
    "exact_max_abs_logit": "prefill, exact: max |Δlogit|",
    "decode_exact_max_abs_logit": "cached decode, exact: max |Δlogit|",
    "shipped_mean_kl": "prefill, as shipped: mean KL",
    "decode_shipped_mean_kl": "cached decode, as shipped: mean KL",
    "shipped_top1": "prefill, as shipped: same token",
    "genai_greedy_equal": "onnxruntime-genai: same text",
    "perplexity_increase": "perplexity, change",
    "top1_agreement": "same token as unquantized",
    "mean_kl": "mean KL to unquantized",
}
_PARITY = ("exact_", "decode_", "shipped_", "genai_")
_CHANGES = ("perplexity_increase",)


@dataclass(frozen=True)
class Row:
    """One line of a report: a check in words. `group` is parity, quality, or the name of a phone profile."""

    group: str
    name: str
    figure: str
    limit: str
    obtained: str
    verdict: str
    reason: str = ""


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


def quantity(value: float | None, unit: str, *, change: bool = False) -> str:
    """A figure in its unit; `change` puts a sign before it."""
    if value is None:
        return "none"
    if unit == "bytes":
        return size(value)
    if unit == "boolean":
        return "yes" if value else "no"
    if unit == "fraction":
        return f"{100 * value:{'+' if change else ''}.2f} %"
    if unit in ("logit", "nat"):
        return f"{value:.1e}"
    if unit == "s":
        return f"{1000 * value:.0f} ms" if value < 1 else f"{value:.1f} s"
    if unit == "tok/s":
        return f"{value:.0f} tok/s" if value >= 10 else f"{value:.1f} tok/s"
    return f"{value:,.3f}".rstrip("0").rstrip(".") + (f" {unit}" if unit not in ("", "perplexity") else "")


def figure(found: Figure) -> str:
    """A figure's value in its unit; text as it is."""
    return found.value if isinstance(found.value, str) else quantity(float(found.value), found.unit)


def group(check: Check) -> str:
    """Whether a check that belongs to no phone is one of parity or of quality."""
    return "parity" if check.name.startswith(_PARITY) else "quality"


def check_name(name: str) -> str:
    """What a check is called where people read it."""
    return _NAMES.get(name, name.replace("_", " "))


def rows(target: TargetReport) -> list[Row]:
    """Every check of a target in the order in which to read it: parity, quality, phones."""
    parity = [_row("parity", check) for check in target.checks if group(check) == "parity"]
    quality = [_row("quality", check) for check in target.checks if group(check) == "quality"]
    gated = {check.name for check in target.checks}
    for name in ("perplexity_increase", "top1_agreement"):
        value = target.value(name)
        if value is not None and name not in gated:
            shown = quantity(value, "fraction", change=name in _CHANGES)
            quality.append(Row("quality", _NAMES[name], shown, "", "measured", ""))
    phones = [
        Row(
            phone.profile,
            row.name,
            row.figure,
            row.limit,
            _how(row.obtained, phone.run.mechanism if phone.run else ""),
            row.verdict,
            row.reason,
        )
        for phone in target.phones
        for row in (_row(phone.profile, check) for check in phone.checks)
    ]
    return parity + quality + phones


def scheme(target: TargetReport) -> str:
    """What the weights are stored as: `INT4 group 32, INT8 group 32`, the largest part first."""
    parts = sorted((group for group in target.quantization if group.bits < 16), key=lambda group: -group.parameters)
    named = [
        f"INT{group.bits} {'per channel' if group.group == 'channel' else f'group {group.group}'}" for group in parts
    ]
    return ", ".join(dict.fromkeys(named)) or "half precision"


def quality(target: TargetReport) -> str | None:
    """Where the quality figures come from, in one line; None when there are none."""
    own, original, kl = (target.value(name) for name in ("perplexity", "perplexity_original", "mean_kl"))
    if own is None or original is None or kl is None:
        return None
    return (
        f"on held-out text: perplexity {own:.3f}, unquantized {original:.3f}; mean KL {quantity(kl, 'nat')} "
        f"over {target.value('golden_positions') or 0:,.0f} tokens"
    )


def speed(target: TargetReport) -> str | None:
    """What was measured on this host, in one line; None when nothing was."""
    load, first, decode = (target.value(name) for name in ("host_load", "host_time_to_first_token", "host_decode"))
    if load is None or first is None or decode is None:
        return None
    prompt = target.value("host_prompt_tokens") or 0
    return (
        f"on this host: load {quantity(load, 's')}, {prompt:.0f}-token prompt {quantity(first, 's')}, "
        f"decode {quantity(decode, 'tok/s')}"
    )


def _row(group: str, check: Check) -> Row:
    limit = ""
    if check.limit is not None:
        sign = "≤" if check.comparison == "at most" else "≥"
        limit = "yes" if check.unit == "boolean" else f"{sign} {quantity(check.limit, check.unit)}"
    value = quantity(check.value, check.unit, change=check.name in _CHANGES)
    return Row(group, check_name(check.name), value, limit, check.obtained or "", check.verdict, check.reason)


def _how(obtained: str, mechanism: str) -> str:
    return ", ".join(filter(None, (obtained, mechanism))) if obtained else ""
