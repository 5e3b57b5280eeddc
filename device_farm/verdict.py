"""Judgement over what the sandbox saw: does it fit this phone?

What lives here: the rules that turn figures and limits into verdicts, and the gate over them. What must not: taking
measurements and the numbers of a phone (they come as a ``MemoryBudget`` from ``profile.py``).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from device_farm.profile import MemoryBudget
from device_farm.sandbox import SandboxResult

Obtained = Literal["measured", "emulated", "modelled", "declared"]

# page cache that stayed warm is not charged to the run; up to this share of the limit it cannot turn a verdict
_WARM_SHARE = 0.02


class Verdict(StrEnum):
    """DESIGN.md, "Failure": tight passes with a warning unless strict, not assessed fails unless it is allowed."""

    FITS = "fits"
    TIGHT = "tight"
    DOES_NOT_FIT = "does not fit"
    NOT_ASSESSED = "not assessed"


@dataclass(frozen=True)
class Assessment:
    """A verdict on one limit of one phone; ``figure`` and ``limit`` are in ``unit``, None where there is none."""

    subject: str
    verdict: Verdict
    reason: str
    figure: float | None
    limit: float | None
    unit: str
    obtained: Obtained | None


def assess_memory(result: SandboxResult, budget: MemoryBudget) -> Assessment:
    """The memory verdict of a run that the sandbox made under ``budget``, or without a limit.

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
    return Assessment(
        subject="peak memory",
        verdict=verdict,
        reason=reason,
        figure=result.peak_charged_bytes if result.baseline else None,
        limit=budget.limit_bytes,
        unit="bytes",
        obtained="measured" if result.baseline else None,
    )


def _memory_verdict(result: SandboxResult, budget: MemoryBudget) -> tuple[Verdict, str]:
    held, limit, comfortable = result.peak_unreclaimable_bytes, _mb(budget.limit_bytes), _mb(budget.comfortable_bytes)
    if result.outcome == "over_budget":
        return Verdict.DOES_NOT_FIT, f"It needs more than the limit of {limit}: {result.detail}."
    if result.outcome != "ok":
        return Verdict.NOT_ASSESSED, f"The run did not finish: {result.detail}."
    if held > budget.limit_bytes:
        return Verdict.DOES_NOT_FIT, f"It holds {_mb(held)} that cannot be dropped, beyond the limit of {limit}."
    if result.rule == "android" and (verdict := _file_verdict(result, budget)):
        return verdict
    kind = "footprint" if result.rule == "ios" else "anonymous and file memory together"
    if result.peak_charged_bytes <= budget.comfortable_bytes:
        return (
            Verdict.FITS,
            f"Its {kind} peaks at {_mb(result.peak_charged_bytes)}, within the certain {comfortable} of {limit}.",
        )
    return (
        Verdict.TIGHT,
        f"Its {kind} peaks at {_mb(result.peak_charged_bytes)}, between the certain {comfortable} and {limit}.",
    )


def _file_verdict(result: SandboxResult, budget: MemoryBudget) -> tuple[Verdict, str] | None:
    """Android: what becomes of file pages that do not stay. None when the run did not depend on dropping any."""
    limit, charged, warm = budget.limit_bytes, result.peak_charged_bytes, result.cache.warm_bytes
    counted = result.limit_bytes is not None and result.thrash_source == "workingset_refault_file"
    thrash, allowed = result.thrash_percent or 0.0, budget.thrashing_limit_percent or 0.0
    if counted and thrash >= allowed:
        percent = f"{thrash:.0f} % of the file cache in a second"
        return Verdict.DOES_NOT_FIT, f"In {_mb(limit)} it reads {percent} again; Android kills at {allowed:.0f} %."
    if charged <= budget.comfortable_bytes:
        return None
    if counted and warm > _WARM_SHARE * limit:
        return Verdict.NOT_ASSESSED, f"{_mb(warm)} of its files stayed in the page cache, where no limit reaches them."
    if counted:
        return None
    limited = result.limit_bytes is not None and result.mechanism != "watchdog"
    if limited or charged > limit:
        why = f"no control group counted how much it reads again in {_mb(limit)}"
        return Verdict.NOT_ASSESSED, f"It peaks at {_mb(charged)}, and {why}."
    return None


def assess_modelled_memory(peak_bytes: int, band: tuple[int, int], budget: MemoryBudget) -> Assessment:
    """The memory verdict over a modelled footprint and its band (low, high): it fits only if the bad end does."""
    high, limit, comfortable = band[1], budget.limit_bytes, budget.comfortable_bytes
    figure = f"Its footprint is modelled as {_mb(peak_bytes)} ({_mb(band[0])} to {_mb(high)})"
    if high <= comfortable:
        verdict, reason = Verdict.FITS, f"{figure}, within the certain {_mb(comfortable)} of {_mb(limit)}."
    elif high <= limit:
        verdict, reason = Verdict.TIGHT, f"{figure}, between the certain {_mb(comfortable)} and {_mb(limit)}."
    elif peak_bytes <= limit:
        verdict, reason = Verdict.NOT_ASSESSED, f"{figure}, whose bad end is beyond {_mb(limit)}."
    else:
        verdict, reason = Verdict.DOES_NOT_FIT, f"{figure}, beyond {_mb(limit)}."
    return Assessment("peak memory", verdict, reason, peak_bytes, limit, "bytes", "modelled")


def latency_not_assessed(subject: str, limit: float, unit: str) -> Assessment:
    """The verdict on a latency limit (time to first token, decode rate): there is no model of a phone's speed yet."""
    reason = "There is no latency model for this phone yet, and this machine's speed says nothing about it."
    return Assessment(subject, Verdict.NOT_ASSESSED, reason, None, limit, unit, None)


def passes(verdicts: Iterable[Verdict], *, strict: bool = False, allow_unassessed: bool = False) -> bool:
    """The gate: every verdict fits; tight passes unless ``strict``, not assessed only if ``allow_unassessed``.

    No verdict at all is nothing assessed.
    """
    accepted = (
        {Verdict.FITS}
        | (set() if strict else {Verdict.TIGHT})
        | ({Verdict.NOT_ASSESSED} if allow_unassessed else set())
    )
    given = list(verdicts) or [Verdict.NOT_ASSESSED]
    return all(verdict in accepted for verdict in given)


def _mb(size: float) -> str:
    return f"{size / 1e6:,.0f} MB"
