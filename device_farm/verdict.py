"""Judgement over what the sandbox saw: does it fit this phone?

What lives here: the rules that turn figures and limits into checks of a phone. What must not: taking measurements and
the numbers of a phone (they come as a ``MemoryBudget`` from ``profile.py``).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from artifacts.figures import Check, Direction, Figure, Verdict
from device_farm.latency_rates import Modelled
from device_farm.profile import MemoryBudget
from device_farm.sandbox import SandboxResult
from device_farm.watch import Rule

MEMORY = "peak_memory"

# page cache that stayed warm is not charged to the run; up to this share of the limit it cannot turn a verdict
_WARM_SHARE = 0.02


def stand_in(result: SandboxResult) -> str:
    """What stood in for the phone's own memory management in a run, and for the runtime, if its phases name it."""
    limit = "without a limit, memory by kind"
    if result.limit_bytes is not None:
        limit = f"under a limit of {_mb(result.limit_bytes)} ({result.mechanism})"
    runtime = next((str(phase.payload["stand_in"]) for phase in result.phases if phase.payload.get("stand_in")), None)
    return f"this machine {limit}" + (f"; {runtime}" if runtime else "")


def by_rule(result: SandboxResult, rule: Rule) -> SandboxResult:
    """A run without a limit, as the rule of another platform charges it. Raises ValueError for a run that had one.

    Nothing acted on such a run, so what it held by kind is what it would have held on either; ios charges what cannot
    be dropped alone. A run that was charged by ios does not know what android would charge at one moment.
    """
    if result.rule == rule:
        return result
    if result.limit_bytes is not None or rule != "ios":
        raise ValueError(f"a run by {result.rule} under {result.limit_bytes} says nothing of {rule}")
    return dataclasses.replace(result, rule="ios", peak_charged_bytes=result.peak_unreclaimable_bytes)


def assess_memory(result: SandboxResult, budget: MemoryBudget, phone: str, at: str) -> Check:
    """The memory verdict of a run that the sandbox made under ``budget``, or without a limit; ``at`` is the load.

    ios: charged is anonymous + swap. Up to the comfortable limit (the limit less its uncertainty) it fits, up to the
    limit it is tight.

    android: charged is anonymous + swap + file. Anonymous memory beyond the limit, or an out-of-memory kill, does not
    fit, and neither do refaults beyond lmkd's thrashing limit. Everything within the comfortable limit fits. In between
    the run depends on file pages being dropped and read again: tight when a control group made it do so and it did not
    thrash, otherwise not assessed.

    Raises ValueError when the run was made by another rule or under another limit.
    """
    if result.rule != budget.rule or result.limit_bytes not in (None, budget.limit_bytes):
        raise ValueError(
            f"run by {result.rule} under {result.limit_bytes}, judged by {budget.rule} under {budget.limit_bytes}"
        )
    verdict, reason = _memory_verdict(result, budget)
    known = result.baseline is not None
    return Check(
        group=phone,
        name=MEMORY,
        label=f"peak memory at {at}",
        value=result.peak_charged_bytes if known else None,
        limit=budget.limit_bytes,
        direction="at most",
        unit="bytes",
        obtained="emulated" if known else None,
        stand_in=stand_in(result) if known else None,
        at=at,
        verdict=verdict,
        reason=reason,
    )


def limit_needed(check: Check, budget: MemoryBudget) -> bool:
    """Whether a run without a limit left open what one under the phone's limit can tell.

    On ios it never does: the limit kills, and does nothing before that. On android file pages are dropped as the limit
    comes near, and what becomes of the run then shows only when they are.
    """
    return budget.rule == "android" and check.verdict in ("tight", "not assessed")


def _memory_verdict(result: SandboxResult, budget: MemoryBudget) -> tuple[Verdict, str]:
    held, limit, comfortable = result.peak_unreclaimable_bytes, _mb(budget.limit_bytes), _mb(budget.comfortable_bytes)
    if result.outcome == "over_budget":
        return "does not fit", f"It needs more than the limit of {limit}: {result.detail}."
    if result.outcome != "ok":
        return "not assessed", f"The run did not finish: {result.detail}."
    if held > budget.limit_bytes:
        return "does not fit", f"It holds {_mb(held)} that cannot be dropped, beyond the limit of {limit}."
    if result.rule == "android" and (verdict := _file_verdict(result, budget)):
        return verdict
    kind = "footprint" if result.rule == "ios" else "anonymous and file memory together"
    if result.peak_charged_bytes <= budget.comfortable_bytes:
        return (
            "fits",
            f"Its {kind} peaks at {_mb(result.peak_charged_bytes)}, within the safe {comfortable} of {limit}.",
        )
    return (
        "tight",
        f"Its {kind} peaks at {_mb(result.peak_charged_bytes)}, between the safe {comfortable} and {limit}.",
    )


def _file_verdict(result: SandboxResult, budget: MemoryBudget) -> tuple[Verdict, str] | None:
    """Android: what becomes of file pages that do not stay. None when the run did not depend on dropping any."""
    limit, charged, warm = budget.limit_bytes, result.peak_charged_bytes, result.cache.warm_bytes
    counted = result.limit_bytes is not None and result.thrash_source == "workingset_refault_file"
    thrash, allowed = result.thrash_percent or 0.0, budget.thrashing_limit_percent or 0.0
    if counted and thrash >= allowed:
        percent = f"{thrash:.0f} % of the file cache in a second"
        return "does not fit", f"In {_mb(limit)} it reads {percent} again; Android kills at {allowed:.0f} %."
    if charged <= budget.comfortable_bytes:
        return None
    if counted and warm > _WARM_SHARE * limit:
        return "not assessed", f"{_mb(warm)} of its files stayed in the page cache, where no limit reaches them."
    if counted:
        return None
    limited = result.limit_bytes is not None and result.mechanism != "watchdog"
    if limited or charged > limit:
        why = f"no control group counted how much it reads again in {_mb(limit)}"
        return "not assessed", f"It peaks at {_mb(charged)}, and {why}."
    return None


def assess_modelled_memory(figure: Figure, budget: MemoryBudget, phone: str) -> Check:
    """The memory verdict over a modelled footprint in bytes with its band: it fits only if the bad end does."""
    peak, limit, comfortable = float(figure.value), budget.limit_bytes, budget.comfortable_bytes
    low, high = figure.band or (0.0, peak)
    found = f"Its footprint is modelled as {_mb(peak)} ({_mb(low)} to {_mb(high)})"
    verdict: Verdict
    if high <= comfortable:
        verdict, reason = "fits", f"{found}, within the safe {_mb(comfortable)} of {_mb(limit)}."
    elif high <= limit:
        verdict, reason = "tight", f"{found}, between the safe {_mb(comfortable)} and {_mb(limit)}."
    elif peak <= limit:
        verdict, reason = "not assessed", f"{found}, whose bad end is beyond {_mb(limit)}."
    else:
        verdict, reason = "does not fit", f"{found}, beyond {_mb(limit)}."
    return Check(
        group=phone,
        name=MEMORY,
        label=f"peak memory at {figure.at}" if figure.at else "peak memory",
        value=peak,
        limit=limit,
        direction="at most",
        unit=figure.unit,
        obtained=figure.obtained,
        stand_in=figure.stand_in,
        at=figure.at,
        band=figure.band,
        verdict=verdict,
        reason=reason,
    )


def assess_latency(
    phone: str, name: str, label: str, limit: float | None, direction: Direction, unit: str, found: Modelled | str
) -> Check:
    """A limit of speed against a modelled figure: it passes only if the bad end of the band does, and where the limit
    lies within the band it is tight. Without a limit the figure is only reported.

    found: the figure, in `unit`, or the reason why there is none.
    """
    if isinstance(found, str):
        assert limit is not None, "what has neither a figure nor a limit is no check"
        return not_assessed(phone, name, label, limit, unit, direction, f"{found[0].upper()}{found[1:]}.")
    low, high = found.band
    verdict: Verdict | None = None
    if limit is not None:
        bad, good = (high, low) if direction == "at most" else (low, high)
        passed = [end <= limit if direction == "at most" else end >= limit for end in (bad, good)]
        verdict = "passed" if passed[0] else "tight" if passed[1] else "failed"
    return Check(
        group=phone,
        name=name,
        label=f"{label} at {found.at}" if unit == "tok/s" else f"{label}, {found.at}",
        value=found.value,
        limit=limit,
        direction=direction,
        unit=unit,
        obtained="modelled",
        at=found.at,
        band=found.band,
        verdict=verdict,
        reason=f"Modelled for {found.runtime}: {found.basis}.",
    )


def not_assessed(
    phone: str, name: str, label: str, limit: float, unit: str, direction: Direction, reason: str
) -> Check:
    """A limit of one phone for which there is no figure."""
    return Check(
        group=phone,
        name=name,
        label=label,
        value=None,
        limit=limit,
        direction=direction,
        unit=unit,
        obtained=None,
        verdict="not assessed",
        reason=reason,
    )


def not_for_platform(phone: str, platform: str, runs_on: Sequence[str]) -> Check:
    """The one row of a phone whose platform cannot run an artifact; `runs_on`: the platforms that can."""
    runs = f"on {' and '.join(runs_on)} alone" if runs_on else "on no phone"
    reason = f"This package runs {runs}, and the phone is {platform}: nothing was judged."
    return Check(
        group=phone,
        name=MEMORY,
        label="peak memory",
        value=None,
        limit=None,
        direction="at most",
        unit="bytes",
        obtained=None,
        verdict="not for this platform",
        reason=reason,
    )


def _mb(size: float) -> str:
    return f"{size / 1e6:,.{0 if size >= 1e7 else 1}f} MB"
