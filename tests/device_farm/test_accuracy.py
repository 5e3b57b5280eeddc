"""Figures against known amounts: a probe in every sandbox mode, totals that others published, runs that died."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from device_farm import SandboxResult, assess_memory, by_rule, load_profile, run
from device_farm.host import read_host
from device_farm.memory import Split
from device_farm.sandbox import Mechanism
from device_farm.thrash import ThrashMeter
from device_farm.timeline import Held
from device_farm.watch import Rule, Watch
from tests.device_farm.sandbox_acceptance import rules
from tests.device_farm.test_verdict import RESULT

MB, MIB = 1_000_000, 1 << 20
WITHIN = 0.02


@pytest.mark.parametrize("limited", [True, False], ids=["limited", "only measured"])
@pytest.mark.parametrize(("rule", "mechanism"), rules())
def test_known_amounts_are_measured_within_2_percent(
    rule: Rule, mechanism: Mechanism, limited: bool, child: Callable[..., list[str]], weights: Path
) -> None:
    anonymous, shared, file = 150 * MB, 90 * MB, 300 * MB
    swapped = 60 * MB if read_host().swap_total_bytes > 200 * MB else 0
    result = run(
        child("probe", anonymous, shared, swapped, weights),
        limit_bytes=900 * MB if limited else None,
        rule=rule,
        mechanism=mechanism,
        swap_bytes=200 * MB if swapped else 0,
        cold_paths=[weights],
    )
    assert result.outcome == "ok", result
    steady = result.phases[-1]
    assert steady.anonymous_bytes == pytest.approx(anonymous + shared, rel=WITHIN)
    assert steady.file_bytes == pytest.approx(file, rel=WITHIN)
    assert steady.swap_bytes == pytest.approx(swapped, rel=WITHIN)
    everything = anonymous + shared + swapped + (file if rule == "android" else 0)
    assert result.peak_charged_bytes == pytest.approx(everything, rel=WITHIN)
    assert result.mapped.all_bytes == pytest.approx(file, rel=WITHIN)
    line = result.time_line
    assert max(sample.unreclaimable_bytes for sample in line) == pytest.approx(anonymous + shared + swapped, rel=WITHIN)


def test_swapped_bytes_of_a_status_are_charged_where_this_machine_has_no_swap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two statuses as a kernel with zram writes them, in place of a process that swaps."""
    before = Split(anonymous=20 * MB, file=30 * MB, swap=0, high_water=50 * MB)
    after = Split(anonymous=120 * MB, file=330 * MB, swap=60 * MB, high_water=450 * MB)
    watch = Watch("ios", None, 0, None, None, thrash=ThrashMeter())
    watch.baseline = watch._last = before
    monkeypatch.setattr(Watch, "_read_split", lambda self: after)
    assert watch._sample(FakeProcess())  # type: ignore[arg-type]
    assert (watch.total.swap, watch.total.unreclaimable, watch.total.charged) == (60 * MB, 160 * MB, 160 * MB)
    assert watch.time_line.samples()[0][1:] == (100 * MB, 300 * MB, 60 * MB)


class FakeProcess:
    """Only its id is looked at."""

    pid = 4194305


def held(anonymous: int, file: int = 0, **changes: object) -> SandboxResult:
    """A run without a limit that held this at its peak, in bytes."""
    peaks = {
        "peak_anonymous_bytes": anonymous,
        "peak_unreclaimable_bytes": anonymous,
        "peak_file_bytes": file,
        "peak_charged_bytes": anonymous + file,
    }
    line = (Held(1.0, anonymous, file, 0),)
    free = {"mechanism": "watchdog", "limit_bytes": None, "thrash_percent": None, "thrash_source": None}
    return dataclasses.replace(RESULT, **free, **peaks, time_line=line, **changes)  # type: ignore[arg-type]


def verdict(result: SandboxResult, phone: str, **how: object) -> str | None:
    budget = load_profile(phone).budget(**how)  # type: ignore[arg-type]
    return assess_memory(by_rule(result, budget.rule), budget, phone, "a context").verdict


def test_the_iphone_13_pro_is_judged_by_what_it_showed() -> None:
    """A mapped model of 1.7 GB: 1.72 GB resident, 0.43 GB footprint; footprint and what was left: 3,072 MiB."""
    shown = held(430 * MB, 1290 * MB)
    assert verdict(shown, "iphone-13-pro") == "fits"
    left = load_profile("iphone-13-pro").budget().limit_bytes - 430 * MB
    assert verdict(held(430 * MB + left), "iphone-13-pro") == "tight", "to the last byte"
    assert verdict(held(430 * MB + left + 1), "iphone-13-pro") == "does not fit"
    assert verdict(held(3500 * MB), "iphone-13-pro") == "does not fit"
    assert verdict(held(3500 * MB), "iphone-13-pro", increased=True) == "fits", "with the entitlement"


def test_the_pixel_9_is_judged_by_what_it_showed() -> None:
    """A mapped 1.7B model: PSS from 236 to 1,817 MB, weights counted; none of it is killed by the Memory Limiter."""
    loaded = held(236 * MB, (1817 - 236) * MB)
    assert loaded.peak_charged_bytes == 1817 * MB, "Android charges mapped weights, as PSS does"
    assert verdict(loaded, "pixel-9") == "fits"
    assert verdict(loaded, "pixel-9", app_state="not visible") == "fits"
    assert verdict(held(236 * MB, 4300 * MB), "pixel-9", app_state="not visible") == "throttled"
    assert verdict(held(4300 * MB), "pixel-9", app_state="not visible") == "does not fit", "a foreground service"
    assert verdict(held(4300 * MB), "pixel-9") == "fits", "on screen"


@pytest.mark.parametrize(
    ("phone", "mib", "ran", "expected"),
    [
        ("android-8gb", 3500, True, {"fits"}),
        ("android-8gb", 3907, True, {"tight"}),  # others died from 3,849 on
        ("android-8gb", 3849, False, {"tight"}),
        ("android-8gb", 4052, False, {"does not fit"}),
        ("poco-x7", 4319, True, {"fits", "tight"}),
        ("poco-x7", 4400, None, {"tight"}),  # between the largest that ran and the smallest that died
        ("poco-x7", 4548, False, {"does not fit"}),
        ("android-4gb", 900, True, {"fits"}),  # a 1B model on a Redmi Note 12
        ("android-4gb", 2000, False, {"does not fit"}),  # a 3B model there: a token in 57 s
        ("iphone-15-pro", 3625, False, {"does not fit"}),  # 3.80 GB: where iOS killed on an iPhone 16
        ("iphone-xr", 1710, False, {"does not fit"}),  # crashed at 1,792 MB
        ("iphone-11", 1973, False, {"does not fit"}),  # crashed at 2,068 MB
    ],
)
def test_runs_that_others_saw_live_or_die(phone: str, mib: int, ran: bool | None, expected: set[str]) -> None:
    """Anonymous memory of the run. What ran never gets "does not fit", what died never "fits"."""
    found = verdict(held(mib * MIB), phone)
    assert found in expected
    assert ran is None or found != ("does not fit" if ran else "fits")
