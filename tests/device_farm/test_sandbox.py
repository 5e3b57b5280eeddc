"""A child under a phone's limit: what it held, how it ended, and that nothing of it stays."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from artifacts.errors import EdgewrightError, MissingTool
from device_farm import assess_memory, available_mechanisms, cgroup, load_profile, run
from device_farm.host import HostMemory, read_host, weaknesses
from device_farm.sandbox import Mechanism
from device_farm.watch import Rule
from tests.device_farm import sandbox_acceptance
from tests.device_farm.sandbox_acceptance import attempt, rules

Command = Callable[..., list[str]]
MB = 1_000_000


def groups_of_ours() -> list[Path]:
    parents = {parent for version in (1, 2) if (parent := cgroup.usable_parent(version))}
    return [folder for parent in parents for folder in parent.glob("edgewright-*")]


@pytest.mark.parametrize(("rule", "mechanism"), rules())
@pytest.mark.parametrize("way", ["arrays", "memset", "weights"])
def test_five_percent_decides(rule: Rule, mechanism: Mechanism, way: str, weights: Path) -> None:
    over = attempt(rule, mechanism, way, 1.05, weights)
    assert over.outcome == "over_budget", over
    assert over.exit_code == -signal.SIGKILL
    assert over.mechanism == mechanism
    under = attempt(rule, mechanism, way, 0.95, weights)
    assert under.outcome == "ok", under
    assert under.peak_unreclaimable_bytes == pytest.approx(475 * MB, abs=5 * MB)


@pytest.mark.nightly
def test_five_percent_decides_ten_times_of_ten() -> None:
    assert sandbox_acceptance.main(10) == 0


@pytest.mark.parametrize(("rule", "mechanism"), rules())
def test_each_phase_has_its_split_and_its_peak_over_the_baseline(
    rule: Rule, mechanism: Mechanism, child: Command
) -> None:
    result = run(child("phases"), limit_bytes=200 * MB, rule=rule, mechanism=mechanism)
    assert result.outcome == "ok", result
    assert [phase.phase for phase in result.phases] == ["load", "prefill", "steady"]
    held = [phase.anonymous_bytes for phase in result.phases]
    assert held == pytest.approx([40 * MB, 40 * MB, 0], abs=2 * MB)
    assert result.phases[1].peak_anonymous_bytes == pytest.approx(70 * MB, abs=2 * MB)
    assert result.peak_anonymous_bytes == pytest.approx(70 * MB, abs=2 * MB)
    assert result.phases[0].payload == {"tokens_per_second": 12.5}
    assert result.baseline is not None and result.baseline.anonymous > MB


@pytest.mark.parametrize("way", ["dies slowly", "ends at once"])
def test_a_dying_process_gives_no_sample_of_its_last_phase(way: str, child: Command) -> None:
    """It announces its last phase and goes on to its end; the parent is busy meanwhile and reads the line too late."""

    def busy(event: dict[str, Any]) -> None:
        time.sleep(0.3 if event["phase"] == "load" else 0)

    result = run(child(way), limit_bytes=None, rule="ios", on_event=busy)
    assert result.outcome == "error"
    assert result.detail == "did not wait for the sample of its last phase 'steady'"
    assert result.peak_anonymous_bytes == pytest.approx(40 * MB, abs=2 * MB)
    if way == "ends at once":  # it holds nothing any more that would be of any phase
        assert [phase.phase for phase in result.phases] == ["load"]


def test_clean_mapped_files_are_free_on_ios_and_charged_on_android(child: Command, weights: Path) -> None:
    ios = run(child("reread", weights, 1), limit_bytes=100 * MB, rule="ios", cold_paths=[weights])
    assert ios.outcome == "ok"
    assert ios.peak_file_bytes == pytest.approx(300 * MB, abs=3 * MB)
    assert ios.peak_charged_bytes < 5 * MB
    android = run(child("reread", weights, 1), limit_bytes=400 * MB, rule="android", cold_paths=[weights])
    assert android.outcome == "ok"
    assert android.peak_charged_bytes == pytest.approx(300 * MB, abs=5 * MB)


@pytest.mark.parametrize("mechanism", available_mechanisms())
def test_files_beyond_the_limit_are_read_again_in_a_group_and_only_measured_without(
    mechanism: Mechanism, child: Command, weights: Path
) -> None:
    command = child("reread", weights, 3)
    result = run(command, limit_bytes=200 * MB, rule="android", mechanism=mechanism, cold_paths=[weights])
    assert result.outcome == "ok"
    assert result.cache.total_bytes == 300 * MB
    if mechanism == "watchdog":
        assert result.thrash_percent is None
        assert result.peak_file_bytes == pytest.approx(300 * MB, abs=3 * MB)
    else:
        assert result.thrash_percent is not None and result.thrash_percent > 100
        assert result.peak_file_bytes <= 205 * MB


@pytest.mark.parametrize("mechanism", available_mechanisms())
def test_anonymous_memory_near_the_limit_is_not_called_thrashing(
    mechanism: Mechanism, child: Command, weights: Path
) -> None:
    result = attempt("android", mechanism, "memset", 0.95, weights)
    assert result.outcome == "ok"
    assert (result.thrash_percent or 0.0) < 30


def test_what_comes_and_goes_between_two_samples_counts(child: Command) -> None:
    result = run(child("spikes", 60 * MB), limit_bytes=50 * MB, rule="ios", period_s=0.2)
    assert result.outcome == "over_budget"


def test_shared_memory_without_a_file_counts_as_anonymous(child: Command) -> None:
    assert run(child("shared", 60 * MB), limit_bytes=50 * MB, rule="ios").outcome == "over_budget"
    assert run(child("shared", 60 * MB), limit_bytes=70 * MB, rule="ios").outcome == "ok"


@pytest.mark.parametrize(("rule", "mechanism"), rules())
def test_a_crash_is_told_apart_from_the_budget(rule: Rule, mechanism: Mechanism, child: Command) -> None:
    for name in ("SIGSEGV", "SIGKILL"):
        result = run(child("signal", name), limit_bytes=100 * MB, rule=rule, mechanism=mechanism)
        assert (result.outcome, result.exit_code) == ("crashed", -signal.Signals[name])
        assert name in result.detail and "after the phase 'load'" in result.detail
        assert "about to die" in result.stderr_tail


@pytest.mark.parametrize("mechanism", available_mechanisms())
def test_a_group_limits_the_childs_own_children_too(mechanism: Mechanism, child: Command) -> None:
    result = run(child("worker", 130 * MB), limit_bytes=100 * MB, rule="android", mechanism=mechanism)
    expected = ("ok", 0) if mechanism == "watchdog" else ("over_budget", 1)
    assert (result.outcome, result.exit_code) == expected


@pytest.mark.parametrize("way", [("forks",), ("worker", 30 * MB)])
def test_processes_that_it_starts_are_found_and_no_figure_is_trusted(way: tuple[object, ...], child: Command) -> None:
    """Those that still run, and those that it has waited for."""
    result = run(child(*way, "phase"), limit_bytes=None, rule="android", mechanism="watchdog")
    assert (result.outcome, result.others) == ("ok", True)
    found = assess_memory(result, load_profile("android-8gb").budget(), "android-8gb", "a load")
    assert (found.verdict, found.reason.split(",")[0]) == ("not assessed", "It started other processes")
    assert not run(child("memset", MB), limit_bytes=None, rule="android").others


def test_other_apps_make_it_read_again_sooner(child: Command, weights: Path) -> None:
    """Room for the weights alone; with others who read their own files some of them go."""
    if available_mechanisms()[0] == "watchdog":
        with pytest.raises(EdgewrightError, match="background pressure needs a control group"):
            run(child("silent"), limit_bytes=MB, rule="android", background_bytes=MB)
        return
    command, limit = child("reread", weights, 6), 330 * MB
    alone = run(command, limit_bytes=limit, rule="android", cold_paths=[weights])
    beside = run(command, limit_bytes=limit, rule="android", cold_paths=[weights], background_bytes=200 * MB)
    assert (alone.outcome, beside.outcome) == ("ok", "ok")
    assert alone.thrash_percent is not None and beside.thrash_percent is not None
    assert alone.thrash_percent < 5 and beside.thrash_percent > 50
    assert not groups_of_ours()


def test_what_falls_short_of_a_group_says_what_that_weakens(child: Command) -> None:
    result = run(child("memset", MB), limit_bytes=100 * MB, rule="android", mechanism="watchdog")
    assert len(result.weakened) >= 1 and "limits anonymous memory alone" in result.weakened[0]
    assert not any("control group" in line for line in run(child("memset", MB), limit_bytes=None, rule="ios").weakened)


def test_swap_and_pressure_on_this_machine_are_reported() -> None:
    quiet, swaps, pressed = HostMemory(0, 1_000_000), HostMemory(2 << 30, 1_000_000), HostMemory(0, 1_500_000)
    assert weaknesses(quiet, quiet, 10.0, limited=False) == ()
    assert "swap is on on this machine (2.1 GB)" in weaknesses(swaps, swaps, 10.0, limited=False)[0]
    assert (
        "another process pressed on this machine's memory in 5 %" in weaknesses(quiet, pressed, 10.0, limited=False)[0]
    )
    assert weaknesses(quiet, pressed, 10.0, limited=True) == (), "a limited run waits for memory by itself"
    assert weaknesses(HostMemory(0, None), HostMemory(0, None), 10.0, limited=False) == ()


def test_the_machines_own_figures_are_read(tmp_path: Path) -> None:
    (tmp_path / "pressure").mkdir()
    (tmp_path / "meminfo").write_text("MemTotal: 100 kB\nSwapTotal:       2048 kB\n")
    assert read_host(tmp_path) == HostMemory(2048 * 1024, None)
    line = "some avg10=0.00 avg60=0.00 avg300=0.00 total=1234\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=9\n"
    (tmp_path / "pressure/memory").write_text(line)
    assert read_host(tmp_path).stalled_us == 1234


@pytest.mark.parametrize(
    ("way", "detail", "tail"),
    [
        (["raise"], "exit code 1", "no such operator: FusedNonsense"),
        (["silent"], "without announcing its baseline", ""),
        (["twice"], "baseline twice", "plain text of a chatty library"),
    ],
)
def test_errors_of_the_child_are_errors(way: list[str], detail: str, tail: str, child: Command) -> None:
    result = run(child(*way), limit_bytes=None, rule="ios")
    assert result.outcome == "error"
    assert detail in result.detail
    assert tail in result.stderr_tail


def test_a_child_that_hangs_is_ended(child: Command, tmp_path: Path) -> None:
    begin = time.monotonic()
    result = run(child("hang", tmp_path), limit_bytes=100 * MB, rule="android", timeout_s=3)
    assert time.monotonic() - begin < 60  # it sleeps for so long
    assert (result.outcome, result.detail) == ("error", "did not end within 3 s")
    assert not Path(f"/proc/{(tmp_path / 'pid').read_text()}").exists()


def test_without_a_limit_it_only_measures(child: Command) -> None:
    result = run(child("memset", 50 * MB), limit_bytes=None, rule="android")
    assert (result.outcome, result.limit_bytes) == ("ok", None)
    assert result.peak_unreclaimable_bytes == pytest.approx(50 * MB, abs=2 * MB)


def test_events_arrive_as_they_are_written(child: Command) -> None:
    seen: list[str] = []
    result = run(child("phases"), limit_bytes=None, rule="ios", on_event=lambda event: seen.append(event["phase"]))
    assert seen == ["baseline", "load", "prefill", "steady"] == [event["phase"] for event in result.events]


@pytest.mark.parametrize("rule", ["ios", "android"])
def test_an_exception_while_it_runs_leaves_nothing(rule: Rule, child: Command, tmp_path: Path) -> None:
    pids: list[int] = []

    def interrupt(event: dict[str, Any]) -> None:
        pids.append(event["pid"])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(child("hang", tmp_path), limit_bytes=100 * MB, rule=rule, on_event=interrupt)
    assert not runs(pids[0])
    assert not groups_of_ours()


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_after_ctrl_c_and_kill_nothing_stays(how: signal.Signals, child: Command, tmp_path: Path) -> None:
    script = f"import device_farm; device_farm.run({child('hang', tmp_path)!r}, limit_bytes=10**8, rule='android')"
    parent = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE)
    written = tmp_path / "pid"
    while not (written.exists() and written.read_text()):
        assert parent.poll() is None, parent.communicate()
        time.sleep(0.02)
    pid = int(written.read_text())
    parent.send_signal(how)
    parent.wait(timeout=30)
    if how == signal.SIGKILL and available_mechanisms()[0] == "watchdog":
        os.kill(pid, signal.SIGKILL)  # without a group nobody can find it again
    available_mechanisms()  # any later run clears what a dead one left
    deadline = time.monotonic() + 5
    while runs(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    parent.communicate()
    assert not runs(pid)
    assert not groups_of_ours()


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_what_cannot_be_run_says_why(child: Command) -> None:
    with pytest.raises(MissingTool, match="no-such-program"):
        run(["no-such-program"], limit_bytes=None, rule="ios")
    with pytest.raises(EdgewrightError, match="must be more than 0"):
        run(child("silent"), limit_bytes=0, rule="ios")
    with pytest.raises(EdgewrightError, match="cannot enforce the ios rule"):
        run(child("silent"), limit_bytes=MB, rule="ios", mechanism="cgroup1")
    groups: tuple[Mechanism, ...] = ("cgroup2", "cgroup1")
    for name in set(groups) - set(available_mechanisms()):
        with pytest.raises(EdgewrightError, match="does not work here; available: "):
            run(child("silent"), limit_bytes=MB, rule="android", mechanism=name)
