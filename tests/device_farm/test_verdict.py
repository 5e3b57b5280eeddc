"""The rule of each platform, figure by figure, and the gate over the verdicts."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from artifacts import Check
from device_farm import (
    CacheDrop,
    MemoryBudget,
    PhaseMemory,
    SandboxResult,
    Split,
    assess_memory,
    by_rule,
    limit_needed,
    not_assessed,
    not_for_platform,
)
from device_farm.host import Mapped

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


def assessed(result: SandboxResult, budget: MemoryBudget) -> Check:
    return assess_memory(result, budget, "a phone", "2,048 tokens")


def android(**changes: Any) -> str | None:
    return assessed(dataclasses.replace(RESULT, **changes), ANDROID).verdict


def ios(charged: int, **changes: Any) -> str | None:
    peaks = {"peak_unreclaimable_bytes": charged, "peak_charged_bytes": charged}
    return assessed(dataclasses.replace(RESULT, rule="ios", **{**WATCHDOG, **peaks, **changes}), IOS).verdict


def test_ios_charges_the_footprint_alone() -> None:
    assert ios(400 * MB, peak_file_bytes=3000 * MB) == "fits"
    assert ios(401 * MB) == "tight"
    assert ios(500 * MB) == "tight"
    assert ios(501 * MB) == "does not fit"
    assert ios(501 * MB, limit_bytes=None) == "does not fit"


def test_android_fits_when_everything_stays() -> None:
    assert android() == "fits"
    assert android(**WATCHDOG) == "fits"
    assert android(**ONLY_MEASURED) == "fits"


def test_android_is_tight_between_the_comfortable_limit_and_the_limit() -> None:
    assert android(peak_charged_bytes=450 * MB) == "tight"
    assert android(peak_charged_bytes=450 * MB, **WATCHDOG) == "tight"
    assert android(peak_unreclaimable_bytes=450 * MB, peak_charged_bytes=460 * MB) == "tight"


def test_android_kills_what_rereads_its_file_cache() -> None:
    assert android(thrash_percent=99.0) == "fits"
    assert android(thrash_percent=100.0) == "does not fit"
    # without a limit nothing was under pressure
    assert android(thrash_percent=100.0, limit_bytes=None) == "fits"


def test_android_is_not_assessed_where_nothing_shows_what_dropping_pages_does() -> None:
    over: dict[str, Any] = {"peak_charged_bytes": 900 * MB}
    assert android(**over, **WATCHDOG) == "not assessed"
    assert android(**over, **ONLY_MEASURED) == "not assessed"
    assert android(peak_charged_bytes=490 * MB, thrash_source="pgmajfault") == "not assessed"
    # pages that stayed in the page cache are charged to nobody
    assert android(peak_charged_bytes=490 * MB, cache=CacheDrop(1, 900 * MB, 300 * MB)) == "not assessed"
    # anonymous memory beyond the limit needs no such evidence
    assert android(peak_unreclaimable_bytes=501 * MB, **over, **ONLY_MEASURED) == "does not fit"


def test_processes_of_its_own_count_against_it_but_not_the_compilers_of_a_stand_in() -> None:
    assert android(others=True) == "not assessed"
    phase = PhaseMemory("load", 0, 0, 0, 0, 0, 0, {"stand_in": "kernels compiled for this machine"})
    assert android(others=True, phases=(phase,)) == "fits"


def test_what_is_no_measurement_is_not_assessed() -> None:
    """Swap in use, and peaks below the mapped model's size; what is over the limit stays over it."""
    assert android(peak_swap_bytes=MB) == ios(100 * MB, peak_swap_bytes=MB) == "not assessed"
    assert ios(501 * MB, peak_swap_bytes=MB) == "does not fit"
    assert android(**ONLY_MEASURED, mapped=Mapped(300 * MB, 300 * MB)) == "fits"
    assert android(**ONLY_MEASURED, mapped=Mapped(320 * MB, 320 * MB)) == "not assessed"
    assert android(mapped=Mapped(320 * MB, 320 * MB)) == "fits", "a limit made it drop them"


def test_ios_maps_so_much_of_a_file_at_once() -> None:
    budget = dataclasses.replace(IOS, single_mapping_bytes=150 * MB)
    free = dataclasses.replace(RESULT, rule="ios", **ONLY_MEASURED, peak_charged_bytes=100 * MB)
    for largest, verdict in ((150 * MB, "fits"), (151 * MB, "does not fit")):
        mapped = dataclasses.replace(free, mapped=Mapped(200 * MB, largest))
        assert assessed(mapped, budget).verdict == verdict


def test_how_a_run_ended_comes_first() -> None:
    killed = dataclasses.replace(RESULT, outcome="over_budget", detail="killed after the phase 'load'", exit_code=-9)
    found = assessed(killed, ANDROID)
    assert found.verdict == "does not fit"
    assert found.reason == "It needs more than the limit of 500 MB: killed after the phase 'load'."
    assert android(outcome="crashed") == "not assessed"
    assert android(outcome="error") == "not assessed"


def test_a_check_carries_its_figure_and_how_it_was_obtained() -> None:
    found = assessed(RESULT, ANDROID)
    assert (found.group, found.name, found.label) == ("a phone", "peak_memory", "peak memory at 2,048 tokens")
    assert (found.value, found.limit, found.unit, found.direction) == (300 * MB, 500 * MB, "bytes", "at most")
    assert found.reason.count(".") == 1
    nothing = assessed(dataclasses.replace(RESULT, outcome="error", baseline=None), ANDROID)
    assert (nothing.value, nothing.obtained, nothing.stand_in) == (None, None, None)


def test_a_phone_is_emulated_and_the_mechanism_named() -> None:
    """Nothing here is measured: this machine under a byte limit stands in for the phone."""
    found = assessed(RESULT, ANDROID)
    assert (found.obtained, found.stand_in) == ("emulated", "this machine under a limit of 500 MB (cgroup1)")
    unlimited = assessed(dataclasses.replace(RESULT, **ONLY_MEASURED), ANDROID)
    assert unlimited.stand_in == "this machine without a limit, memory by kind"


def test_a_run_is_judged_by_the_budget_that_it_ran_under() -> None:
    with pytest.raises(ValueError, match="judged by ios"):
        assessed(RESULT, IOS)
    with pytest.raises(ValueError, match="under 500000000"):
        assessed(RESULT, dataclasses.replace(ANDROID, limit_bytes=1))


def test_a_run_without_a_limit_says_what_ios_would_charge() -> None:
    free = dataclasses.replace(RESULT, **ONLY_MEASURED)
    assert by_rule(free, "android") is free
    footprint = by_rule(free, "ios")
    assert (footprint.rule, footprint.peak_charged_bytes, footprint.peak_file_bytes) == ("ios", 100 * MB, 200 * MB)
    assert assessed(footprint, IOS).verdict == "fits"
    with pytest.raises(ValueError, match="says nothing of ios"):
        by_rule(RESULT, "ios")
    with pytest.raises(ValueError, match="says nothing of android"):
        by_rule(footprint, "android")


@pytest.mark.parametrize(
    ("charged", "held", "needed"),
    [(300, 100, False), (400, 100, False), (401, 100, True), (900, 100, True), (900, 501, False)],
)
def test_a_limit_is_needed_where_it_would_drop_file_pages(charged: int, held: int, needed: bool) -> None:
    """Not where all of it stays within what is certain, and not where no dropping would help."""
    peaks = {"peak_charged_bytes": charged * MB, "peak_unreclaimable_bytes": held * MB}
    free = dataclasses.replace(RESULT, **ONLY_MEASURED, **peaks)
    assert limit_needed(assessed(free, ANDROID), ANDROID) is needed
    assert not limit_needed(assessed(by_rule(free, "ios"), IOS), IOS)


def test_what_has_no_figure_says_so() -> None:
    found = not_assessed("a phone", "decode", "decode", 12.0, "tok/s", "at least", "There is no model.")
    assert (found.verdict, found.value, found.limit, found.direction) == ("not assessed", None, 12.0, "at least")


def test_another_platform_gives_no_verdict() -> None:
    found = not_for_platform("a phone", "android", ["ios"])
    assert (found.verdict, found.value, found.limit) == ("not for this platform", None, None)
    assert found.reason == "This package runs on ios alone, and the phone is android: nothing was judged."
    assert "runs on no phone" in not_for_platform("a phone", "android", []).reason
