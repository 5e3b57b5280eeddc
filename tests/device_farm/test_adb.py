"""Phones over adb, with a scripted one that answers in AOSP's formats. No phone has ever been attached to these."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from artifacts import EdgewrightError, MissingTool
from device_farm import adb
from edgewright import cli

PIXEL = {
    "ro.product.model": "Pixel 9",
    "ro.build.version.release": "17",
    "ro.build.version.sdk": "37",
    "ro.build.id": "CP1A.260505.005",
    "ro.product.cpu.abi": "arm64-v8a",
}
LIMITER = "MemoryLimiter: enabled\n  visible: 8192 MiB\n  not visible: 4096 MiB"


def a_phone(**changes: Any) -> dict[str, Any]:
    return {"state": "device", "props": PIXEL, "limiter": LIMITER, "thermal": 0, **changes}


def attach(folder: Path, monkeypatch: pytest.MonkeyPatch, **phones: dict[str, Any]) -> Path:
    """These phones, behind an adb that is found before any other."""
    folder.mkdir(exist_ok=True)
    shutil.copy(Path(__file__).with_name("scripted_adb.py"), folder / "adb")
    (folder / "adb").chmod(0o755)
    (folder / "phones.json").write_text(json.dumps(phones))
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ("unauthorized", "has not allowed this machine: unlock it and confirm the question about USB debugging"),
        ("offline", "is offline: plug it in again"),
        ("no permissions (missing udev rules?); see [http://developer.android.com/tools/device.html]", "udev rule"),
        ("recovery", "is in the state 'recovery', not running Android"),
    ],
)
def test_a_phone_that_does_not_answer_is_said_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: str, said: str
) -> None:
    attach(tmp_path, monkeypatch, R58N=a_phone(state=state))
    with pytest.raises(EdgewrightError, match="--device R58N: the phone ") as caught:
        adb.connect("R58N")
    assert said in str(caught.value)


def test_the_phones_that_are_attached_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    attach(tmp_path, monkeypatch)
    with pytest.raises(EdgewrightError, match="--device R58N: no such phone is attached; none is"):
        adb.connect("R58N")
    two = {"3A101FDJH": a_phone(), "R58M": a_phone(state="unauthorized")}
    attach(tmp_path, monkeypatch, **two)
    with pytest.raises(EdgewrightError, match=r"3A101FDJH \(device\), R58M \(unauthorized\)"):
        adb.connect("R58N")
    found = adb.connect("3A101FDJH")
    assert (found.model, found.android, found.api) == ("Pixel 9", "17", 37)
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(MissingTool, match="no adb"):
        adb.connect("3A101FDJH")


def test_a_phone_with_other_code_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    attach(tmp_path, monkeypatch, X=a_phone(props={**PIXEL, "ro.product.cpu.abi": "armeabi-v7a"}))
    with pytest.raises(EdgewrightError, match="Pixel 9 runs armeabi-v7a code; phones with arm64-v8a"):
        adb.connect("X")


def test_full_storage_and_a_lost_phone_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    payload = tmp_path / "payload"
    payload.write_bytes(bytes(1000))
    folder = attach(tmp_path / "bin", monkeypatch, X=a_phone(free=999))
    with pytest.raises(EdgewrightError, match=r"no room for copying payload in /data/local/tmp \(.*100%"):
        adb.connect("X").push(payload, f"{adb.PLACE}/payload")
    attach(folder, monkeypatch, X=a_phone(disconnects=1))
    with pytest.raises(EdgewrightError, match="device X was disconnected, or restarted"):
        adb.connect("X").push(payload, f"{adb.PLACE}/payload")
    attach(folder, monkeypatch, X=a_phone())
    adb.connect("X").push(payload, f"{adb.PLACE}/payload")
    assert (folder / "X" / adb.PLACE.lstrip("/") / "payload").read_bytes() == bytes(1000)


def test_what_a_phone_says_of_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    attach(tmp_path, monkeypatch, X=a_phone(thermal=3))
    phone = adb.connect("X")
    assert phone.limiter() == "MemoryLimiter: enabled visible: 8192 MiB not visible: 4096 MiB"
    assert phone.thermal() == "severe"
    info, held = phone.meminfo(os.getpid()), phone.held(os.getpid())
    assert info.rss >= info.pss > 0 and held > 0 and held < info.rss
    with pytest.raises(EdgewrightError, match="dumpsys meminfo says nothing of process 4194303"):
        phone.meminfo(4_194_303)
    older = {**PIXEL, "ro.build.version.release": "14", "ro.build.version.sdk": "34"}
    attach(tmp_path, monkeypatch, X=a_phone(props=older))
    assert adb.connect("X").limiter() == "none, Android 14"


def test_meminfo_of_older_androids_is_read() -> None:
    text = "               TOTAL:    24371      TOTAL SWAP (KB):     0\n"
    with pytest.raises(EdgewrightError, match="says nothing of process 7"):
        adb.read_meminfo(text, 7)
    eight = "           TOTAL PSS:    24,371            TOTAL RSS:    98765      TOTAL SWAP PSS:       52\n"
    assert adb.read_meminfo(eight, 7) == adb.Meminfo(24371 << 10, 98765 << 10, 52 << 10)


def test_the_command_line_refuses_an_absent_artifact_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(["validate", str(tmp_path / "absent"), "--device", "X"])
    assert "absent" in capsys.readouterr().err
