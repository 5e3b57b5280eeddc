"""The ARM64 tier: what is missing is said, what was damaged is repaired, and what an emulated run reached is read."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from artifacts import EdgewrightError, MissingTool
from device_farm import arm64, arm64_counts, arm64_tier, list_profiles, load_profile
from edgewright import cli


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the user's."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "edgewright"


def scripted(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, script: str) -> None:
    """A program that is found before this machine's."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def test_reached_instructions_are_told_by_their_code(tmp_path: Path) -> None:
    # encoded by hand from the manual: sdot v0.4s, v1.16b, v2.16b; udot v3.4s, v4.16b, v5.4b[1];
    # smmla v6.4s, v7.16b, v8.16b; fmla v0.4s, v1.4s, v2.4s; and a line of an address alone
    known = {"4e829420": ("sdot",), "6fa5e083": ("udot",), "4e88a4e6": ("smmla",), "4e22cc20": ()}
    for code, found in known.items():
        (tmp_path / "log").write_text(f"----------------\nIN: \n0x5500000000:  {code}  .byte 0\n")
        assert arm64.integer_instructions(tmp_path / "log") == found, code
    lines = "".join(f"0x55:  {code}\n" for code in known)
    (tmp_path / "log").write_text(lines * 2)
    assert arm64.integer_instructions(tmp_path / "log") == ("sdot", "smmla", "udot")


def test_every_phone_has_a_cpu_to_be_emulated_by() -> None:
    cpus = {name: arm64.cpu_of(load_profile(name).cpu.isa.value) for name in list_profiles()}
    assert cpus["android-4gb-helio-g85"] == "dotprod"
    assert arm64.cpu_of(()) == "neon" and arm64.cpu_of(("dotprod", "i8mm")) == "i8mm"
    assert set(cpus.values()) <= set(arm64.CPUS)


def test_without_the_tier_it_is_said_how_to_get_it(
    cache: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(MissingTool, match=r"ARM64 tier cannot run \(not installed\); run: edgewright farm setup"):
        arm64_tier.python(["-c", "1"], cpu="neon")
    with pytest.raises(SystemExit, match="0"):
        cli.main(["doctor"])
    said = capsys.readouterr().out
    assert "ARM64 tier             not installed  → edgewright farm setup" in said
    assert "instruction counts     not installed  → edgewright farm setup" in said
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(SystemExit, match="3"):
        cli.main(["farm", "setup"])
    assert "needs apt-get, which is not on this machine" in capsys.readouterr().err


def test_a_failed_download_leaves_nothing(
    cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted(tmp_path / "bin", monkeypatch, "apt-get", "echo 'E: Could not connect to deb.debian.org' >&2; exit 100")
    with pytest.raises(SystemExit, match="3"):
        cli.main(["farm", "setup"])
    said = capsys.readouterr().err
    assert "the ARM64 tier was not installed" in said and "Could not connect to deb.debian.org" in said
    assert list(cache.iterdir()) == [] and arm64_tier.missing() == "not installed: edgewright farm setup"


def test_a_tier_of_before_or_without_a_compiler_counts_nothing_and_says_why(
    cache: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    state = cache / "arm64" / "tier.json"
    state.parent.mkdir(parents=True)
    state.write_text(json.dumps({"wheels": []}))
    assert arm64_tier.missing() is None and arm64_tier.uncounted() == "not installed: edgewright farm setup"
    monkeypatch.setitem(sys.modules, "ziglang", None)  # as where it is not installed
    monkeypatch.setenv("PATH", "/nonexistent")
    why = arm64_counts.lacking()
    assert why == f"no C compiler: {arm64_counts.GET_COMPILER}"
    state.write_text(json.dumps({"wheels": [], "uncounted": why}))
    assert arm64_tier.uncounted() == why
    with pytest.raises(SystemExit, match="0"):
        cli.main(["doctor"])
    said = " ".join(capsys.readouterr().out.split())
    assert f"✗ instruction counts no C compiler → {arm64_counts.GET_COMPILER}" in said


def test_a_log_of_anything_but_counts_is_refused(tmp_path: Path) -> None:
    (tmp_path / "marks").write_text("12\n5000\n")
    assert arm64_counts.marks(tmp_path / "marks") == [12, 5000]
    for content in ("12\n50x\n", None):
        (tmp_path / "marks").unlink() if content is None else (tmp_path / "marks").write_text(content)
        with pytest.raises(EdgewrightError, match="log of instruction counts cannot be read"):
            arm64_counts.marks(tmp_path / "marks")


def test_an_emulator_that_does_not_count_is_found_at_setup(tmp_path: Path) -> None:
    with pytest.raises(MissingTool, match="the emulator that counts does not run here: killed"):
        arm64_counts.check(["/bin/sh", "-c", "echo killed >&2; exit 1"], {}, tmp_path / "marks")
    (tmp_path / "marks").write_text("")
    with pytest.raises(EdgewrightError, match="its plugin did not"):
        arm64_counts.check(["/bin/sh", "-c", "exit 0"], {}, tmp_path / "marks")


# Between its two marks: 3 to set up a loop, 3 for each of its turns, 3 to make the second mark and the call itself.
PROGRAM = """
.global _start
_start:
  mov x8, 62
  mov x0, -1
  mov x1, 0xED6E
  mov x2, 0
  svc 0
  mov x0, -1
  mov x3, 1000
  mov x4, 0
loop:
  add x4, x4, x3
  subs x3, x3, 1
  b.ne loop
  mov x8, 62
  mov x1, 0xED6E
  svc 0
  mov x8, 93
  mov x0, 0
  svc 0
"""


@pytest.mark.nightly
def test_setup_brings_it_once_and_repairs_it(cache: Path, tmp_path: Path) -> None:
    assert arm64_tier.install() and arm64_tier.missing() is None and arm64_tier.uncounted() is None
    assert not arm64_tier.install()
    # by which libraries for Android load
    assert (arm64_tier.place() / "root/usr/lib/aarch64-linux-gnu/libc.so").exists()
    said = {}
    for cpu in arm64.CPUS:
        command = arm64_tier.python(["-c", "import onnxruntime, platform; print(platform.machine())"], cpu=cpu)
        done = subprocess.run(
            command, env=arm64_tier.environment(dict(os.environ)), capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        said[cpu] = done.stdout
    assert set(said.values()) == {"aarch64\n"}
    (tmp_path / "loop.S").write_text(PROGRAM)
    zig = [sys.executable, "-m", "ziglang", "cc", "-target", "aarch64-linux-musl", "-nostdlib", "-static"]
    subprocess.run([*zig, "-o", str(tmp_path / "loop"), str(tmp_path / "loop.S")], check=True)
    emulator = arm64_counts.emulator(arm64_tier.place() / arm64_counts.FOLDER, tmp_path / "marks")
    subprocess.run([*emulator, str(tmp_path / "loop")], check=True)
    before, behind = arm64_counts.marks(tmp_path / "marks")
    assert (before, behind - before) == (5, 3 + 3 * 1000 + 3)
    damaged = next((arm64_tier.place() / "site" / "onnxruntime" / "capi").glob("*.so"))
    content = damaged.read_bytes()
    damaged.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert arm64_tier.install() and damaged.read_bytes() == content
    assert {path.name for path in cache.iterdir()} == {"arm64"}
