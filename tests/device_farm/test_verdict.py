"""The rule of each platform, figure by figure, and the gate over the verdicts."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from device_farm import (
    CacheDrop,
    MemoryBudget,
    SandboxResult,
    Split,
    Verdict,
    assess_memory,
    latency_not_assessed,
    passes,
)

MB = 1_000_000
RESULT = SandboxResult(
    mechanism="cgroup1",
    rule="android",
    limit_bytes=500 * MB,
    outcome="ok",
    detail="ended with exit code 0",
    exit_code=0,
    baseline=Split(0, 0, 0, 0),
    phases=(),
    peak_anonymous_bytes=100 * MB,
    peak_unreclaimable_bytes=100 * MB,
    peak_file_bytes=200 * MB,
    peak_swap_bytes=0,
    peak_charged_bytes=300 * MB,
    thrash_percent=0.0,
    thrash_source="workingset_refault_file",
    cache=CacheDrop(1, 200 * MB, 0),
    wall_s=1.0,
    samples=200,
    longest_gap_ms=6.0,
    stderr_tail="",
    events=(),
)
ANDROID = MemoryBudget("android", 500 * MB, 400 * MB, 100.0, 0, "a policy", "policy")
IOS = MemoryBudget("ios", 500 * MB, 400 * MB, None, 0, "a table", "weak")
WATCHDOG: dict[str, Any] = {"mechanism": "watchdog", "thrash_percent": None, "thrash_source": None}
ONLY_MEASURED: dict[str, Any] = {**WATCHDOG, "limit_bytes": None}


def android(**changes: Any) -> Verdict:
    return assess_memory(dataclasses.replace(RESULT, **changes), ANDROID).verdict


def ios(charged: int, **changes: Any) -> Verdict:
    peaks = {"peak_unreclaimable_bytes": charged, "peak_charged_bytes": charged}
    return assess_memory(dataclasses.replace(RESULT, rule="ios", **{**WATCHDOG, **peaks, **changes}), IOS).verdict


def test_ios_charges_the_footprint_alone() -> None:
    assert ios(400 * MB, peak_file_bytes=3000 * MB) is Verdict.FITS
    assert ios(401 * MB) is Verdict.TIGHT
    assert ios(500 * MB) is Verdict.TIGHT
    assert ios(501 * MB) is Verdict.DOES_NOT_FIT
    assert ios(501 * MB, limit_bytes=None) is Verdict.DOES_NOT_FIT


def test_android_fits_when_everything_stays() -> None:
    assert android() is Verdict.FITS
    assert android(**WATCHDOG) is Verdict.FITS
    assert android(**ONLY_MEASURED) is Verdict.FITS


def test_android_is_tight_between_the_comfortable_limit_and_the_limit() -> None:
    assert android(peak_charged_bytes=450 * MB) is Verdict.TIGHT
    assert android(peak_charged_bytes=450 * MB, **WATCHDOG) is Verdict.TIGHT
    assert android(peak_unreclaimable_bytes=450 * MB, peak_charged_bytes=460 * MB) is Verdict.TIGHT


def test_android_kills_what_rereads_its_file_cache() -> None:
    assert android(thrash_percent=99.0) is Verdict.FITS
    assert android(thrash_percent=100.0) is Verdict.DOES_NOT_FIT
    # without a limit nothing was under pressure
    assert android(thrash_percent=100.0, limit_bytes=None) is Verdict.FITS


def test_android_is_not_assessed_where_nothing_shows_what_dropping_pages_does() -> None:
    over: dict[str, Any] = {"peak_charged_bytes": 900 * MB}
    assert android(**over, **WATCHDOG) is Verdict.NOT_ASSESSED
    assert android(**over, **ONLY_MEASURED) is Verdict.NOT_ASSESSED
    assert android(peak_charged_bytes=490 * MB, thrash_source="pgmajfault") is Verdict.NOT_ASSESSED
    # pages that stayed in the page cache are charged to nobody
    assert android(peak_charged_bytes=490 * MB, cache=CacheDrop(1, 900 * MB, 300 * MB)) is Verdict.NOT_ASSESSED
    # anonymous memory beyond the limit needs no such evidence
    assert android(peak_unreclaimable_bytes=501 * MB, **over, **ONLY_MEASURED) is Verdict.DOES_NOT_FIT


def test_how_a_run_ended_comes_first() -> None:
    killed = dataclasses.replace(RESULT, outcome="over_budget", detail="killed after the phase 'load'", exit_code=-9)
    assessed = assess_memory(killed, ANDROID)
    assert assessed.verdict is Verdict.DOES_NOT_FIT
    assert assessed.reason == "It needs more than the limit of 500 MB: killed after the phase 'load'."
    assert android(outcome="crashed") is Verdict.NOT_ASSESSED
    assert android(outcome="error") is Verdict.NOT_ASSESSED


def test_an_assessment_carries_its_figure_and_how_it_was_obtained() -> None:
    assessed = assess_memory(RESULT, ANDROID)
    assert (assessed.figure, assessed.limit, assessed.unit, assessed.obtained) == (
        300 * MB,
        500 * MB,
        "bytes",
        "measured",
    )
    assert assessed.reason.count(".") == 1
    nothing = assess_memory(dataclasses.replace(RESULT, outcome="error", baseline=None), ANDROID)
    assert (nothing.figure, nothing.obtained) == (None, None)


def test_a_run_is_judged_by_the_budget_that_it_ran_under() -> None:
    with pytest.raises(ValueError, match="judged by ios"):
        assess_memory(RESULT, IOS)
    with pytest.raises(ValueError, match="under 500000000"):
        assess_memory(RESULT, dataclasses.replace(ANDROID, limit_bytes=1))


def test_latency_has_no_verdict_yet() -> None:
    assessed = latency_not_assessed("time to first token", 4.0, "s")
    assert (assessed.verdict, assessed.figure, assessed.limit) == (Verdict.NOT_ASSESSED, None, 4.0)


@pytest.mark.parametrize(
    ("verdicts", "plain", "strict", "allowing"),
    [
        ([Verdict.FITS, Verdict.FITS], True, True, True),
        ([Verdict.FITS, Verdict.TIGHT], True, False, True),
        ([Verdict.FITS, Verdict.NOT_ASSESSED], False, False, True),
        ([Verdict.FITS, Verdict.DOES_NOT_FIT], False, False, False),
        ([], False, False, True),
    ],
)
def test_the_gate(verdicts: list[Verdict], plain: bool, strict: bool, allowing: bool) -> None:
    assert passes(verdicts) is plain
    assert passes(verdicts, strict=True) is strict
    assert passes(verdicts, allow_unassessed=True) is allowing
