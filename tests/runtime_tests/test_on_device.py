"""An artifact on a phone of a scripted adb that really runs the ARM64 code which was pushed. No phone was attached."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from artifacts import EdgewrightError, read_manifest, silent
from device_farm import adb, arm64_tier
from runtime_tests import on_device
from runtime_tests.jobs import Job
from tests.device_farm.test_adb import LIMITS, a_phone, attach


@pytest.fixture
def tier() -> Path:
    arm64_tier.install()
    return arm64_tier.place()


@pytest.mark.nightly
def test_answers_memory_and_times_come_from_there(
    package: Path, tier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(on_device, "CONTEXTS", (64,))
    folder = attach(tmp_path / "bin", monkeypatch, X=a_phone(overlay=str(tier / "dotprod")), Y=a_phone())
    job = Job(kind="memory", artifact=package, threads=1, steps=4, golden_tokens=32)
    found = on_device.on_device(job, read_manifest(package), "X", silent)
    assert found.failures == []
    assert len(found.checks) == 5 and {check.verdict for check in found.checks} == {"passed"}
    assert all(item.obtained == "emulated" and "Pixel 9" in str(item.stand_in) for item in found.checks)
    values = {figure.name: figure.value for figure in found.figures}
    assert values["device_limiter"] == LIMITS
    assert {"device_load_64", "device_time_to_first_token_64", "device_decode_64"} <= set(values)
    assert 0 < float(values["device_peak_anonymous_shared_swap_64"]) <= float(values["device_peak_pss_64"])
    assert "not an app" in found.warnings[0] and "scripted adb" in found.warnings[0]
    asked = [json.loads(line) for line in (folder / "commands").read_text().splitlines()]
    runs = [line for line in asked if "runtime_tests.child" in line[-1]]
    assert [Path(line[-1].split()[-1]).stem for line in runs] == ["quality"] + ["memory"] * 4  # a warm-up, three runs
    assert all(line == ["devices"] or line[:2] == ["-s", "X"] for line in asked)
    left = {path.name for path in (folder / "X" / adb.PLACE.lstrip("/")).iterdir()}
    assert left == {"root", "site", "code", "tier"}  # what the next run needs, and nothing of the artifact

    phones = json.loads((folder / "phones.json").read_text())
    pushes = sum("push" in line for line in asked)
    assert pushes == 3 + 5  # tier, code, artifact, and each run's job
    phones["X"]["disconnects"] = 22  # in the middle of the runs
    (folder / "phones.json").write_text(json.dumps(phones))
    with pytest.raises(EdgewrightError, match="device X was disconnected"):
        on_device.on_device(job, read_manifest(package), "X", silent)


def test_contexts_are_those_that_the_artifact_has_room_for(package: Path) -> None:
    assert on_device.CONTEXTS == (512, 1024, 4096)
    manifest = read_manifest(package)
    assert on_device._contexts(manifest) == (256,)
    assert manifest.driver is not None
    larger = manifest.driver.model_copy(update={"constants": {**manifest.driver.constants, "max_tokens": 2048}})
    assert on_device._contexts(manifest.model_copy(update={"driver": larger})) == (512, 1024)


def test_a_phone_without_room_is_said_to_be_full(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "cache" / "edgewright" / "arm64"
    for name in ("root", "site"):
        (folder / name).mkdir(parents=True)
    (folder / "site" / "module.py").write_bytes(os.urandom(4096))
    (folder / "tier.json").write_text("{}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    attach(tmp_path / "bin", monkeypatch, X=a_phone(free=100))
    with pytest.raises(EdgewrightError, match=r"Pixel 9: no room for copying tier.tar in /data/local/tmp"):
        on_device.on_device(Job(kind="memory", artifact=package), read_manifest(package), "X", silent)
