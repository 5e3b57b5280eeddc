"""Android 17's Memory Limiter: its machine over samples with a simulated clock, and over what real runs held."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_farm import available_mechanisms, run
from device_farm.cgroup import Group
from device_farm.limiter import LimiterLimits, MemoryLimiter, judge
from device_farm.timeline import Held, TimeLine

MIB = 1 << 20
MB = 1_000_000
LIMITS = LimiterLimits("visible", 1000 * MIB, 200 * MIB)


def held(time_s: float, anonymous: int, file: int = 0, swap: int = 0) -> Held:
    return Held(time_s, anonymous * MIB, file * MIB, swap * MIB)


def stages(*samples: Held) -> list[str]:
    machine = MemoryLimiter(LIMITS)
    return [machine.update(sample) for sample in samples]


def test_below_the_limit_nothing_happens() -> None:
    machine = MemoryLimiter(LIMITS)
    for second in range(200):
        assert machine.update(held(second, 600, 400)) == "watching"
    assert (machine.high_bytes, machine.evicted_bytes, machine.kill_s) == (1000 * MIB, 0, None)


def test_clean_pages_beyond_the_limit_are_evicted_and_nobody_dies() -> None:
    machine = MemoryLimiter(LIMITS)
    assert machine.update(held(0, 300, 900)) == "over"
    assert machine.high_bytes == 1100 * MIB, "raised by 100 MiB at the first event"
    assert {machine.update(held(second, 300, 900)) for second in range(1, 500)} == {"over"}
    assert machine.evicted_bytes == 200 * MIB
    assert judge([held(0, 300, 900)], LIMITS).outcome == "throttled"


def test_anonymous_memory_beyond_memory_and_swap_together_is_killed_30_s_later() -> None:
    assert stages(held(0, 900), held(5, 1201), held(34.9, 1201), held(35, 1201)) == [
        "watching",
        "doomed",
        "doomed",
        "killed",
    ]
    assert stages(held(5, 1200), held(500, 1200)) == ["over", "over"], "memory and swap limit together are allowed"


def test_swap_counts_as_anonymous_memory_does() -> None:
    assert stages(held(0, 700, 400, 501), held(31, 700, 400, 501)) == ["doomed", "killed"]
    assert stages(held(0, 700, 400, 500), held(60, 700, 400, 500)) == ["over", "over"]


def test_what_recovers_within_30_s_is_killed_all_the_same() -> None:
    assert stages(held(0, 1300), held(1, 100), held(29.9, 100), held(30, 100)) == [
        "doomed",
        "doomed",
        "doomed",
        "killed",
    ]


def test_between_two_polls_nobody_looks() -> None:
    """The event's own look finds it clean; it grows and shrinks before the next, 30 s later."""
    assert stages(held(0, 500, 600), held(10, 1300), held(29, 500, 600), held(30, 500, 600)) == ["over"] * 4
    assert stages(held(0, 500, 600), held(10, 1300), held(30, 1300), held(60, 1300))[-2:] == ["doomed", "killed"]
    # here its moments say nothing of a phone's: what is beyond the limit at one is taken to be found
    assert judge([held(0, 500, 600), held(10, 1300), held(29, 500, 600)], LIMITS).outcome == "killed"


def test_it_watches_again_10_mib_below_the_limit() -> None:
    machine = MemoryLimiter(LIMITS)
    machine.update(held(0, 500, 600))
    assert machine.update(held(30, 500, 495)) == "over", "not below yet"
    assert machine.update(held(60, 500, 489)) == "watching"
    assert machine.high_bytes == 1000 * MIB
    assert machine.update(held(61, 500, 501)) == "over", "a new event"


@given(st.lists(st.tuples(st.integers(0, 1500), st.integers(0, 1500), st.integers(0, 400)), min_size=1, max_size=40))
def test_mapped_files_never_kill_and_a_kill_has_no_way_back(sizes: list[tuple[int, int, int]]) -> None:
    machine = MemoryLimiter(LIMITS)
    seen = [machine.update(held(7.0 * at, *size)) for at, size in enumerate(sizes)]
    if max(anonymous + swap for anonymous, _, swap in sizes) <= 1200:
        assert not {"doomed", "killed"} & set(seen)
    if "doomed" in seen:
        assert set(seen[seen.index("doomed") :]) <= {"doomed", "killed"}


@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 10**6)), max_size=300))
def test_a_time_line_keeps_every_peak_in_few_samples(sizes: list[tuple[int, int, int]]) -> None:
    line, samples = TimeLine(spans=10), [Held(0.004 * at, *size) for at, size in enumerate(sizes)]
    for sample in samples:
        line.add(sample)
    kept = line.samples()
    assert len(kept) <= 20 and set(kept) <= set(samples) and list(kept) == sorted(kept)

    def peaks(of: Iterable[Held]) -> tuple[int, int]:
        found = [(one.unreclaimable_bytes, one.resident_bytes + one.swap_bytes) for one in of]
        return max((a for a, _ in found), default=0), max((b for _, b in found), default=0)

    assert peaks(kept) == peaks(samples)


@pytest.mark.parametrize(
    ("memory", "outcome"), [(500, "free"), (250, "throttled"), (40, "killed")], ids=["under", "clean over", "anonymous"]
)
def test_what_a_real_run_held_is_judged(
    memory: int, outcome: str, child: Callable[..., list[str]], weights: Path
) -> None:
    """60 MB of anonymous memory beside 300 MB of mapped weights, sampled every 5 ms."""
    result = run(child("weights", 60 * MB, weights), limit_bytes=None, rule="android", cold_paths=[weights])
    found = judge(result.time_line, LimiterLimits("visible", memory * MB, 0))
    assert found.outcome == outcome
    assert found.unreclaimable_bytes == pytest.approx(60 * MB, rel=0.02, abs=MB)


def test_the_supervisor_kills_where_no_group_can_evict(
    child: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same machine beside a real process; its 30 s are cut short."""
    monkeypatch.setattr("device_farm.limiter.GRACE_S", 0.2)
    mechanism = next(name for name in available_mechanisms() if name != "cgroup2")
    result = run(
        child("dies slowly"),
        limit_bytes=None,
        rule="android",
        mechanism=mechanism,
        limiter=LimiterLimits("not visible", 20 * MB, 0),
    )
    assert result.outcome == "over_budget"
    # found as it grew beyond 20 MB, and killed when it had given all of its 40 MB back
    assert "killed by the Memory Limiter's rule for " in result.detail and "after the phase 'steady'" in result.detail
    assert any("nothing evicts file pages beyond memory.high" in line for line in result.weakened)


def test_a_group_of_version_2_has_the_soft_limit_and_1_has_none(tmp_path: Path) -> None:
    first, second = tmp_path / "1", tmp_path / "2"
    for folder in (first, second):
        folder.mkdir()
    (second / "memory.high").write_text("max")
    Group(first, 1).high(500)
    Group(second, 2).high(500)
    assert (second / "memory.high").read_text() == "500"
    assert not list(first.iterdir())
    shutil.rmtree(second)
