"""The split of a process, peaks between samples, thrashing, and the page cache made cold."""

from __future__ import annotations

import mmap
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from artifacts.errors import EdgewrightError
from device_farm.cgroup import Counters
from device_farm.memory import Split, anonymous_peak_between, cached_bytes, drop_page_cache, parse_status, read_split
from device_farm.thrash import ThrashMeter

MIB = 1 << 20


def test_the_split_tells_anonymous_from_file_pages(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 32 * MIB)
    before = read_split()
    # Pages of its own: an array may come out of pages that the interpreter has freed and still holds.
    held = mmap.mmap(-1, 24 * MIB, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for start in range(0, len(held), mmap.PAGESIZE):
        held[start] = 1
    middle = read_split()
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as area:
        assert sum(area[start] for start in range(0, len(area), mmap.PAGESIZE)) > 0
        after = read_split()
    assert middle.anonymous - before.anonymous == pytest.approx(len(held), abs=2 * MIB)
    assert after.file - middle.file == pytest.approx(32 * MIB, abs=2 * MIB)
    assert after.anonymous - middle.anonymous == pytest.approx(0, abs=2 * MIB)


def test_a_process_that_has_ended_has_no_split() -> None:
    assert parse_status(b"Name:\tpython\nState:\tZ (zombie)\n") is None
    assert parse_status(b"Name:\tpython\nState:\tZ (zombie)\nRssAnon:\t 6340 kB\n") is None
    assert parse_status(b"Name:\tpython\nState:\tR (running)\nRssAnon:\t 6340 kB\n") is not None
    with pytest.raises(EdgewrightError, match="cannot read the memory"):
        read_split(4194305)


@given(st.integers(0, 1 << 32), st.integers(0, 1 << 32), st.integers(0, 1 << 32), st.integers(0, 1 << 32))
def test_status_is_read_in_bytes(anonymous: int, file: int, shmem: int, swap: int) -> None:
    text = f"VmHWM:\t  9 kB\nRssAnon:\t{anonymous} kB\nRssFile:\t{file} kB\nRssShmem: {shmem} kB\nVmSwap:\t{swap} kB\n"
    split = parse_status(text.encode())
    assert split == Split(anonymous=(anonymous + shmem) * 1024, file=file * 1024, swap=swap * 1024, high_water=9 * 1024)


def test_a_high_water_mark_that_rose_betrays_what_came_and_went() -> None:
    before = Split(anonymous=100, file=50, swap=0, high_water=150)
    assert anonymous_peak_between(before, Split(anonymous=120, file=50, swap=5, high_water=170)) == 125
    assert anonymous_peak_between(before, Split(anonymous=100, file=50, swap=0, high_water=400)) == 350
    # an old mark says nothing about the time between
    assert anonymous_peak_between(Split(100, 50, 0, 400), Split(100, 50, 0, 400)) == 100
    # file pages that came in between are not taken for anonymous ones
    assert anonymous_peak_between(before, Split(anonymous=100, file=300, swap=0, high_water=400)) == 100


def test_dropping_makes_the_page_cache_cold(tmp_path: Path) -> None:
    folder = tmp_path / "artifact"
    folder.mkdir()
    for name in ("a", "b"):
        (folder / name).write_bytes(b"x" * 3 * MIB)
    (folder / "empty").touch()
    assert cached_bytes(folder / "a") == 3 * MIB
    drop = drop_page_cache([folder])
    assert (drop.files, drop.total_bytes, drop.warm_bytes) == (3, 6 * MIB, 0)
    assert cached_bytes(folder / "a") == 0
    (folder / "a").read_bytes()
    assert cached_bytes(folder / "a") == 3 * MIB


def test_pages_that_somebody_has_mapped_stay_and_are_reported(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 2 * MIB)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as area:
        assert area[MIB] == ord("x")
        assert 0 < drop_page_cache([path]).warm_bytes <= 2 * MIB


def test_a_missing_path_is_named(tmp_path: Path) -> None:
    with pytest.raises(EdgewrightError, match=r"gone\.bin: cannot be dropped"):
        drop_page_cache([tmp_path / "gone.bin"])


def meter_of(*readings: tuple[float, Counters]) -> ThrashMeter:
    meter = ThrashMeter()
    for now, counters in readings:
        meter.update(now, partial(Counters, **vars(counters)))
    return meter


def test_thrashing_is_the_worst_second_in_percent_of_the_file_cache() -> None:
    page = mmap.PAGESIZE
    meter = meter_of(
        (0.0, Counters(0, 0, 0)),
        (0.5, Counters(100 * page, 99, 0)),  # within the first second: not looked at
        (1.0, Counters(100 * page, 20, 0)),
        (2.1, Counters(100 * page, 70, 0)),
        (3.2, Counters(100 * page, 80, 0)),
    )
    assert meter.percent == pytest.approx(50.0)
    assert meter.source == "workingset_refault_file"


def test_without_refaults_major_faults_are_shown_as_such() -> None:
    meter = meter_of((0.0, Counters(mmap.PAGESIZE * 10, None, 5)), (1.0, Counters(mmap.PAGESIZE * 10, None, 6)))
    assert meter.percent == pytest.approx(10.0)
    assert meter.source == "pgmajfault"
