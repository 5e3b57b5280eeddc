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
LIMITER = """Memory limiter
  enabled                  limits=true              monitoring=true          killing=true             ignored=none
  visibleMem=8192MB        visibleSwap=4096MB       notVisibleMem=4096MB     notVisibleSwap=4096MB
  started=36               watched=36               watch-failed=0           events=0
  processes=36             process-hwm=36"""
LIMITS = (
    "enabled limits=true monitoring=true killing=true ignored=none "
    "visibleMem=8192MB visibleSwap=4096MB notVisibleMem=4096MB notVisibleSwap=4096MB"
)


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
    assert phone.limiter() == LIMITS
    assert phone.thermal() == "severe"
    info, held = phone.meminfo(os.getpid()), phone.held(os.getpid())
    assert info.rss >= info.pss > 0 and held > 0 and held < info.rss
    with pytest.raises(EdgewrightError, match="dumpsys meminfo says nothing of process 4194303"):
        phone.meminfo(4_194_303)
    attach(tmp_path, monkeypatch, X=a_phone(limiter="Memory limiter\n  disabled", thermal=-(1 << 31)))
    assert (phone.limiter(), phone.thermal()) == ("disabled", "not known")
    older = {**PIXEL, "ro.build.version.release": "14", "ro.build.version.sdk": "34"}
    attach(tmp_path, monkeypatch, X=a_phone(props=older))
    assert adb.connect("X").limiter() == "none, Android 14"


def test_a_process_that_android_has_not_listed_yet_is_asked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adb, "_ASK_AGAIN_S", 0.0)
    folder = attach(tmp_path, monkeypatch, X=a_phone(unlisted=2))
    assert adb.connect("X").meminfo(os.getpid()).pss > 0
    asked = [json.loads(line)[-1] for line in (folder / "commands").read_text().splitlines()]
    assert asked.count(f"dumpsys meminfo {os.getpid()}") == 3


@pytest.mark.parametrize(
    ("totals", "expected"),
    [
        ("TOTAL:    24371      TOTAL SWAP PSS:       52", (24371, 0, 52)),  # Android 8 to 10
        ("TOTAL:    24371      TOTAL SWAP (KB):       52", (24371, 0, 52)),
        ("TOTAL PSS:    24371            TOTAL RSS:    98765       TOTAL SWAP PSS:       52", (24371, 98765, 52)),
        ("TOTAL PSS:    24371            TOTAL RSS:    98765      TOTAL SWAP (KB):       52", (24371, 98765, 52)),
    ],
)
def test_meminfo_of_every_android_is_read(totals: str, expected: tuple[int, int, int]) -> None:
    rows = "        TOTAL    11111     2222        0        0        0        0        0\n \n App Summary\n"
    text = f"{rows}         Native Heap:     1000\n \n           {totals}\n"
    assert adb.read_meminfo(text, 7) == adb.Meminfo(*(size << 10 for size in expected))
    with pytest.raises(EdgewrightError, match="says nothing of process 7"):
        adb.read_meminfo(rows, 7)


def test_the_command_line_refuses_an_absent_artifact_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(["validate", str(tmp_path / "absent"), "--device", "X"])
    assert "absent" in capsys.readouterr().err
