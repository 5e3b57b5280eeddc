"""Judgement over what the sandbox saw: does it fit this phone?

What lives here: the rules that turn figures and limits into checks of a phone. What must not: taking measurements and
the numbers of a phone (they come as a ``MemoryBudget`` from ``profile.py``).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from artifacts.figures import Check, Direction, Figure, Verdict
from device_farm.latency_rates import Modelled
from device_farm.limiter import judge
from device_farm.profile import MemoryBudget
from device_farm.sandbox import SandboxResult
from device_farm.watch import PhaseMemory, Rule

MEMORY = "peak_memory"

# page cache that stayed warm is not charged to the run; up to this share of the limit it cannot turn a verdict
_WARM_SHARE = 0.02
# a peak is within 2 % of what was held
_WHOLE_SHARE = 0.98


def stand_in(result: SandboxResult) -> str:
    """What stood in for the phone's own memory management in a run, and for the runtime, if its phases name it."""
    limit = "without a limit, memory by kind"
    if result.limit_bytes is not None:
        limit = f"under a limit of {_mb(result.limit_bytes)} ({result.mechanism})"
    runtime = stands_in(result)
    return f"this machine {limit}" + (f"; {runtime}" if runtime else "")


def stands_in(result: SandboxResult) -> str | None:
    """What ran in place of the phone's runtime, as the run's phases name it; it may start compilers, a phone's not."""
    return next((str(phase.payload["stand_in"]) for phase in result.phases if phase.payload.get("stand_in")), None)


def by_rule(result: SandboxResult, rule: Rule) -> SandboxResult:
    """A run without a limit, as the rule of another platform charges it. Raises ValueError for a run that had one.

    Nothing acted on such a run, so what it held by kind is what it would have held on either; ios charges what cannot
    be dropped alone. A run that was charged by ios does not know what android would charge at one moment.
    """
    if result.rule == rule:
        return result
    if result.limit_bytes is not None or rule != "ios":
        raise ValueError(f"a run by {result.rule} under {result.limit_bytes} says nothing of {rule}")
    phases = tuple(
        dataclasses.replace(phase, peak_charged_bytes=phase.peak_unreclaimable_bytes) for phase in result.phases
    )
    return dataclasses.replace(result, rule="ios", peak_charged_bytes=result.peak_unreclaimable_bytes, phases=phases)


def peak_phase(result: SandboxResult) -> PhaseMemory | None:
    """The phase in which most was charged; None for a run that ended before any, or was killed after the last."""
    if result.outcome == "over_budget":
        return None
    return max(result.phases, key=lambda phase: phase.peak_charged_bytes, default=None)


def assess_memory(result: SandboxResult, budget: MemoryBudget, phone: str, at: str) -> Check:
    """The memory verdict of a run that the sandbox made under ``budget``, or without a limit; ``at`` is the load.

    ios: charged is anonymous + swap. Up to the comfortable limit (the limit less its uncertainty) it fits, up to the
    limit it is tight. A single mapping beyond what iOS maps at once does not fit.

    android: charged is anonymous + swap + file. Anonymous memory beyond the limit, or an out-of-memory kill, does not
    fit, and neither do refaults beyond lmkd's thrashing limit. Everything within the comfortable limit fits. In between
    the run depends on file pages being dropped and read again: tight when a control group made it do so and it did not
    thrash, otherwise not assessed. Where Android 17's Memory Limiter is on, what it kills does not fit, and what would
    fit but for file pages that it evicts is throttled.

    A run that is no measurement is not assessed: one that swapped where nothing may, that started other processes, or
    that held less than it had mapped although nothing limited it.

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
    comes near, and what becomes of the run then shows only when they are; so do other apps that want room for theirs.
    """
    if budget.rule == "ios":
        return False
    beside = (check.value or 0) + budget.background_bytes > budget.comfortable_bytes
    return check.verdict in ("tight", "not assessed") or (budget.background_bytes > 0 and beside)


def _memory_verdict(result: SandboxResult, budget: MemoryBudget) -> tuple[Verdict, str]:
    verdict, reason = _by_limit(result, budget)
    limits, limited = budget.limiter, None
    if limits is not None and result.outcome == "ok" and verdict != "does not fit":
        limited = judge(result.time_line, limits)
        state = f"{limits.state} app on Android 17"
        if limited.outcome == "killed":
            return "does not fit", (
                f"It holds {_mb(limited.unreclaimable_bytes)} of anonymous, shared and swapped memory; the Memory "
                f"Limiter kills a {state} beyond {_mb(limits.kill_bytes)}."
            )
    if verdict != "does not fit" and (why := _no_measurement(result, budget)):
        return "not assessed", why
    if limits is not None and limited is not None and limited.outcome == "throttled" and verdict in ("fits", "tight"):
        return "throttled", (
            f"{reason} The Memory Limiter evicts what a {state} holds beyond {_mb(limits.memory_bytes)}: up to "
            f"{_mb(limited.evicted_bytes)} of its files are read again and again, slow but not dead."
        )
    return verdict, reason


def _no_measurement(result: SandboxResult, budget: MemoryBudget) -> str | None:
    """Why what was read of a run is not what it holds on a phone; None when nothing speaks against it."""
    if result.outcome != "ok":
        return None
    if result.peak_swap_bytes and not budget.swap_bytes:
        return f"{_mb(result.peak_swap_bytes)} of it left for this machine's swap: no measurement; turn swap off."
    if result.others and not stands_in(result):
        return "It started other processes, and what they held is in no figure."
    held = result.peak_file_bytes + result.peak_unreclaimable_bytes
    if result.limit_bytes is None and held < _WHOLE_SHARE * result.mapped.all_bytes:
        mapped = _mb(result.mapped.all_bytes)
        return f"It mapped {mapped} and held {_mb(held)} at the most: its files were not all read, or did not stay."
    return None


def _by_limit(result: SandboxResult, budget: MemoryBudget) -> tuple[Verdict, str]:
    held, limit, comfortable = result.peak_unreclaimable_bytes, _mb(budget.limit_bytes), _mb(budget.comfortable_bytes)
    if result.outcome == "over_budget":
        return "does not fit", f"It needs more than the limit of {limit}: {result.detail}."
    if result.outcome != "ok":
        return "not assessed", f"The run did not finish: {result.detail}."
    if held > budget.limit_bytes:
        return "does not fit", f"It holds {_mb(held)} that cannot be dropped, beyond the limit of {limit}."
    largest, most = result.mapped.largest_bytes, budget.single_mapping_bytes
    if most is not None and largest > most:
        return "does not fit", (
            f"It maps {_mb(largest)} of a file at once, and iOS maps {_mb(most)} at the most without the "
            "extended-virtual-addressing entitlement."
        )
    if result.rule == "android" and (verdict := _file_verdict(result, budget)):
        return verdict
    kind = "footprint" if result.rule == "ios" else "anonymous and file memory together"
    phase = peak_phase(result)
    peak = f"Its {kind} peaks at {_mb(result.peak_charged_bytes)}" + (f" in the phase {phase.phase!r}" if phase else "")
    if result.peak_charged_bytes <= budget.comfortable_bytes:
        return "fits", f"{peak}, within the safe {comfortable} of {limit}."
    return "tight", f"{peak}, between the safe {comfortable} and {limit}."


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
