"""Memory on phones: at the context that the artifact promises, in as few runs as tell the truth."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

import device_farm
from artifacts import EdgewrightError
from device_farm import available_mechanisms, list_profiles, load_profile
from device_farm.profile_file import parse_profile
from runtime_tests import validate as validation
from runtime_tests.process import child_environment
from runtime_tests.validate import Limits, Validation, validate
from tests.runtime_tests.conftest import MAX_TOKENS, as_fake

MB = 1_000_000
ANDROID, IPHONE = load_profile("android-4gb"), load_profile("iphone-12")


@pytest.fixture
def only_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Phones alone: what the fake runtime computes is no model."""
    monkeypatch.setattr(validation, "_check_quality", lambda *args: None)


def test_memory_is_that_of_the_whole_context_whatever_the_speed_is_measured_with(package: Path) -> None:
    """Prefill to its end but for what is then decoded; the two lengths stand beside their own figures."""
    found = validate(package, [(IPHONE, Limits())], prompt_tokens=16, decode_tokens=32)
    phone, figures = found.profiles[0], {item.name: item for item in found.figures}
    tokens = {phase.phase: phase.payload.get("tokens") for phase in phone.run.phases}
    assert tokens == {"load": None, "prefill": MAX_TOKENS - 32, "steady": 32, "long conversation": MAX_TOKENS}
    assert phone.run.phases[-1].payload["turns"] == 4, "a question and its answer, until the context is full"
    assert (phone.checks[0].at, phone.checks[0].label) == ("256 tokens", "peak memory at 256 tokens")
    assert {item.at for item in phone.figures} == {"256 tokens"}
    assert figures["host_prompt_tokens"].value == 16
    assert figures["host_time_to_first_token"].at == "16 tokens" and figures["host_decode"].at == "after 16 tokens"


def test_the_last_phase_is_read_before_the_process_begins_to_end(fake_runtime: Path, only_memory: None) -> None:
    """The runtime frees its 40 MB as it ends, and the parent is busy when the last phase is announced."""
    as_fake(fake_runtime, "hold", bytes=40 * MB)

    def busy(stage: str, done: int, total: int) -> None:
        time.sleep(0.3 if (stage, done) in (("measuring memory", 4), ("validating iphone-12", 4)) else 0)

    phases = validate(fake_runtime, [(IPHONE, Limits())], progress=busy).profiles[0].run.phases
    assert [phase.phase for phase in phases] == ["load", "prefill", "steady", "long conversation"]
    assert phases[3].anonymous_bytes == pytest.approx(phases[1].anonymous_bytes, abs=2 * MB)
    assert phases[3].anonymous_bytes > 40 * MB


def memory_stages(artifact: Path, *phones: tuple[object, Limits]) -> tuple[Validation, list[str]]:
    stages: dict[str, None] = {}
    found = validate(
        artifact, phones, progress=lambda stage, done, total: stages.update({stage: None}), allow_unassessed=True
    )
    return found, [stage for stage in stages if stage.startswith(("measuring memory", "validating"))]


def test_phones_on_which_no_limit_would_act_share_one_run(fake_runtime: Path, only_memory: None) -> None:
    as_fake(fake_runtime, "hold", bytes=40 * MB)
    phones = [(ANDROID, Limits()), (IPHONE, Limits()), (IPHONE, Limits(peak_memory=30 * MB))]
    found, stages = memory_stages(fake_runtime, *phones)
    assert stages == ["measuring memory"]
    assert [phone.checks[0].verdict for phone in found.profiles] == ["fits", "fits", "does not fit"]
    assert {phone.run.limit_bytes for phone in found.profiles} == {None}
    assert {phone.checks[0].stand_in for phone in found.profiles} == {"this machine without a limit, memory by kind"}
    values = [phone.checks[0].value for phone in found.profiles]
    assert values[1] == values[2] >= 40 * MB, "the figure of a run that nothing killed"


def test_where_file_pages_would_have_to_go_the_phone_has_a_run_of_its_own(
    fake_runtime: Path, only_memory: None
) -> None:
    (fake_runtime / "weights.bin").write_bytes(b"w" * (60 * MB))
    as_fake(fake_runtime, "map")
    found, stages = memory_stages(fake_runtime, (ANDROID, Limits(peak_memory=40 * MB)), (IPHONE, Limits()))
    android, iphone = found.profiles
    assert iphone.checks[0].verdict == "fits" and iphone.checks[0].value < 10 * MB, "mapped weights are free on iOS"
    if available_mechanisms()[0] == "watchdog":
        assert stages == ["measuring memory"] and android.checks[0].verdict == "not assessed"
        return
    assert stages == ["measuring memory", "validating android-4gb"]
    assert (android.run.limit_bytes, iphone.run.limit_bytes) == (40 * MB, None)
    assert android.checks[0].stand_in == f"this machine under a limit of 40 MB ({android.run.mechanism})"
    assert android.run.thrash_percent is not None
    assert android.run.peak_file_bytes <= 42 * MB, "the limit was kept: pages went"


def test_all_phones_that_ship_share_one_run_where_no_limit_would_act(fake_runtime: Path, only_memory: None) -> None:
    as_fake(fake_runtime, "hold", bytes=40 * MB)
    found, stages = memory_stages(fake_runtime, *((load_profile(name), Limits()) for name in list_profiles()))
    assert stages == ["measuring memory"]
    assert [phone.profile for phone in found.profiles] == list_profiles()
    assert {phone.checks[0].verdict for phone in found.profiles} == {"fits"}
    assert {(phone.phase is not None, phone.largest[0].bytes > 30 * MB) for phone in found.profiles} == {(True, True)}


def test_phones_of_one_budget_share_a_limited_run(fake_runtime: Path, only_memory: None) -> None:
    if available_mechanisms()[0] == "watchdog":
        pytest.skip("without a control group no phone has a run of its own")
    (fake_runtime / "weights.bin").write_bytes(b"w" * (60 * MB))
    as_fake(fake_runtime, "map")
    same = Limits(peak_memory=40 * MB)
    _, stages = memory_stages(fake_runtime, (ANDROID, same), (load_profile("android-4gb-helio-g85"), same))
    assert stages == ["measuring memory", "validating android-4gb"]


def test_files_that_android_17_evicts_are_throttled_and_fail_unless_allowed(
    fake_runtime: Path, only_memory: None
) -> None:
    (fake_runtime / "weights.bin").write_bytes(b"w" * (60 * MB))
    as_fake(fake_runtime, "map")
    shipped = (Path(device_farm.__file__).parent / "profiles/pixel-9.yaml").read_text()
    small = shipped.replace("8_589_934_592", "50_000_000").replace("4_294_967_296", "40_000_000")
    phone = parse_profile(small.encode(), "pixel.yaml")
    phone = phone.model_copy(update={"name": "small-pixel"})
    found = validate(fake_runtime, [(phone, Limits())])
    check = found.profiles[0].checks[0]
    assert (check.verdict, found.passed) == ("throttled", False)
    assert "evicts what a visible app on Android 17 holds beyond 50 MB" in check.reason
    assert "Largest without a limit: weights, mapped 60 MB" in check.reason
    assert validate(fake_runtime, [(phone, Limits())], allow_throttled=True).passed
    assert validate(fake_runtime, [(phone, Limits(os_version="16"))]).profiles[0].checks[0].verdict == "fits"


def test_an_artifact_that_hangs_is_ended(
    fake_runtime: Path, only_memory: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_fake(fake_runtime, "hang")
    monkeypatch.setattr("runtime_tests.process._SILENT_S", 3.0)
    monkeypatch.setattr("runtime_tests.phones._TIMEOUT_S", 3.0)
    begin = time.monotonic()
    found = validate(fake_runtime, [(IPHONE, Limits())])
    assert time.monotonic() - begin < 300, "its call sleeps for ten minutes, in each of two runs"
    assert {failure.step: failure.detail for failure in found.failures} == {
        "speed": "it said nothing for 3 s and was ended: it hangs",
        "memory": "did not end within 3 s",
    }
    assert found.profiles[0].checks[0].verdict == "not assessed" and not found.passed


def test_an_artifact_writes_to_its_own_folders_alone(fake_runtime: Path, tmp_path: Path, only_memory: None) -> None:
    if not confined():
        pytest.skip("this kernel has no Landlock")
    for path, failed in ((tmp_path / "elsewhere", True), (fake_runtime / "own", False)):
        as_fake(fake_runtime, "write", path=str(path))
        found = validate(fake_runtime, [])
        assert [failure.step for failure in found.failures] == (["speed"] if failed else [])
        assert path.exists() is not failed
        assert not failed or "PermissionError" in found.failures[0].stderr_tail
        path.unlink(missing_ok=True)


def confined() -> bool:
    """Whether this kernel has Landlock; asked in a process of its own, which is then held to its word."""
    script = "from runtime_tests import confine; print(confine.write_only_below([]))"
    done = subprocess.run([sys.executable, "-c", script], env=child_environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip() == "True"


@pytest.mark.parametrize("payload", [{}, {"ios": []}])
def test_a_phone_of_another_platform_has_no_verdict_and_is_shown(
    fake_runtime: Path, only_memory: None, payload: dict[str, list[str]]
) -> None:
    as_fake(fake_runtime, "hold", bytes=MB, payload=payload)
    found, stages = memory_stages(fake_runtime, (ANDROID, Limits(decode=1000.0)))
    assert stages == [], "nothing runs for it"
    phone = found.profiles[0]
    assert (phone.verdict, phone.run, phone.figures) == ("not for this platform", None, ())
    assert [check.verdict for check in phone.checks] == ["not for this platform"]
    assert found.verdict == "not assessed" and not found.passed
    if payload:
        both, _ = memory_stages(fake_runtime, (ANDROID, Limits()), (IPHONE, Limits()))
        assert [phone.verdict for phone in both.profiles] == ["not for this platform", "passed"]
        assert both.passed


def test_limits_of_speed_are_not_assessed_and_fail_unless_that_is_allowed(
    fake_runtime: Path, only_memory: None
) -> None:
    as_fake(fake_runtime, "hold", bytes=MB)
    asked = Limits(time_to_first_token=4.0, decode=12.0, first_frame=0.5, frame_time=0.04)
    allowed, _ = memory_stages(fake_runtime, (IPHONE, asked))
    found = {check.name: check for check in allowed.profiles[0].checks}
    assert allowed.passed and not validate(fake_runtime, [(IPHONE, asked)]).passed
    assert {
        name: (found[name].label, found[name].limit, found[name].direction, found[name].unit) for name in found
    } == {
        "peak_memory": (found["peak_memory"].label, found["peak_memory"].limit, "at most", "bytes"),
        "time_to_first_token": ("time to first token", 4.0, "at most", "s"),
        "decode": ("decode", 12.0, "at least", "tok/s"),
        "first_frame": ("first frame", 0.5, "at most", "s"),
        "frame_time": ("frame time", 0.04, "at most", "s"),
    }
    assert all(check.verdict == "not assessed" for name, check in found.items() if name != "peak_memory")


def test_limits_of_speed_are_judged_by_what_is_modelled_of_the_package(package: Path, only_memory: None) -> None:
    phone = load_profile("android-12gb")  # of the Snapdragon 8 Elite
    free = validate(package, [(phone, Limits())]).profiles[0]
    decode = next(check for check in free.checks if check.name == "decode")
    assert (decode.verdict, decode.obtained, decode.at) == (None, "modelled", f"{MAX_TOKENS} tokens")
    assert decode.band is not None and decode.value is not None
    assert next(item for item in free.figures if item.name == "modelled_decode").band == decode.band
    for limit, verdict, passed in (
        (decode.band[0], "passed", "passed"),
        (decode.value, "tight", "passed"),
        (2 * decode.value, "failed", "failed"),
    ):
        judged = validate(package, [(phone, Limits(decode=limit))]).profiles[0]
        check = next(check for check in judged.checks if check.name == "decode")
        assert (check.verdict, judged.verdict) == (verdict, passed)


def test_without_phones_nothing_is_said_of_them(fake_runtime: Path, only_memory: None) -> None:
    as_fake(fake_runtime, "hold", bytes=MB, payload={})
    assert memory_stages(fake_runtime)[0].verdict == "passed"


def test_a_payload_that_names_no_file_is_refused_before_anything_runs(fake_runtime: Path) -> None:
    as_fake(fake_runtime, "segfault", payload={"ios": ["../weights"]})
    with pytest.raises(EdgewrightError, match=r"runtime\.payload\.ios names '\.\./weights'"):
        validate(fake_runtime)
