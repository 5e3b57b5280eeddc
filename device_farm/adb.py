"""An attached Android phone through `adb`: files there, commands there, and what the phone says of itself.

What lives here: adb's own words and AOSP's formats (`dumpsys meminfo`, `dumpsys thermalservice`, `am memory-limiter`).
What must not: what is run on the phone (``runtime_tests/on_device.py``). Nobody has run this on a phone yet: the tests'
adb answers in the formats that AOSP's frameworks/base prints, each read there in 2026-11 and named where it is parsed.
"""

from __future__ import annotations

import hashlib
import re
import shlex
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from artifacts import EdgewrightError, MissingTool

PLACE = "/data/local/tmp/edgewright"  # where AOSP lets the shell write and execute
_STATES = {
    "unauthorized": "has not allowed this machine: unlock it and confirm the question about USB debugging",
    "offline": "is offline: plug it in again, or run `adb reconnect`",
    "no permissions": "may not be used by this user: adb needs a udev rule for it",
}
_TIMEOUT_S = 1800.0
# Android finds a process that is no app by a list that it renews when asked, but not within 5 s of the last time; a
# phone asks itself too, so twice that. Source: AOSP, AppProfiler.java, MONITOR_CPU_MIN_TIME and updateCpuStatsNow
_TIMES, _ASK_AGAIN_S = 10, 1.0
# Source: AOSP, core/java/android/os/Temperature.java, ThrottlingStatus, 0 to 6
_SEVERITY = ("none", "light", "moderate", "severe", "critical", "emergency", "shutdown")


@dataclass(frozen=True)
class Meminfo:
    """Of `dumpsys meminfo`, in bytes; swap: proportional, where zram holds it."""

    pss: int
    rss: int
    swap: int


@dataclass(frozen=True)
class Device:
    """A phone that answers. Every method raises EdgewrightError where it does not any more."""

    serial: str
    model: str
    android: str
    api: int
    build: str

    def command(self, script: str) -> list[str]:
        """The command that runs a shell's script on the phone, with its stdin, stdout, stderr and exit code."""
        return [_adb(), "-s", self.serial, "shell", "-T", script]

    def shell(self, script: str) -> str:
        """What a script prints on the phone. Raises EdgewrightError unless it ends with 0."""
        done = _run(self.command(script))
        if done.returncode:
            self._explain(f"{script.split()[0]} on the phone", done)
        return done.stdout

    def says(self, script: str) -> str:
        """The same, of a command that this version of Android may not have."""
        done = _run(self.command(script))
        if done.returncode:
            self.require()
        return done.stdout

    def push(self, source: Path, target: str) -> None:
        """Copy a file, and compare its digest there."""
        done = _run([_adb(), "-s", self.serial, "push", str(source), target])
        if done.returncode:
            self._explain(f"copying {source.name}", done)
        with source.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if self.shell(f"sha256sum {shlex.quote(target)}").split()[:1] != [digest]:
            raise EdgewrightError(f"{self.model}: {source.name} arrived with another digest; copy it again")

    def require(self) -> None:
        """Raises EdgewrightError saying why, unless the phone still answers."""
        found = _attached().get(self.serial, "gone")
        if found != "device":
            why = _STATES.get(found, "was disconnected, or restarted; what ran there is lost")
            raise EdgewrightError(f"device {self.serial} {why}")

    def meminfo(self, pid: int) -> Meminfo:
        """What Android counts of a process. Raises EdgewrightError where the process is gone.

        One that has just begun is asked for again until Android has listed it.
        """
        for _ in range(_TIMES):
            said = self.shell(f"dumpsys meminfo {pid}")
            unknown = said.startswith("No process found for:")
            if not unknown or not self.says(f"ls -d /proc/{pid} 2>/dev/null").strip():
                break
            time.sleep(_ASK_AGAIN_S)
        return read_meminfo(said, pid)

    def held(self, pid: int) -> int:
        """Anonymous, shared and swapped bytes of a process: what the Memory Limiter counts."""
        status = self.shell(f"cat /proc/{pid}/status")
        found = dict(re.findall(r"^(RssAnon|RssShmem|VmSwap):\s+(\d+) kB", status, re.MULTILINE))
        if "RssAnon" not in found:
            raise EdgewrightError(f"{self.model}: its kernel does not say how much memory of a process is anonymous")
        return 1024 * sum(map(int, found.values()))

    def limiter(self) -> str:
        """Android's Memory Limiter's state and limits, in its own words; of Android before 17, that there is none.

        Source: AOSP, frameworks/base, MemoryLimiter.java (dump), MemoryLimiter.md: a heading; "disabled", or "enabled"
        with its switches; the limits in MB; and counts, which are left out here.
        """
        if self.api < 37:
            return f"none, Android {self.android}"
        said = self.says("am memory-limiter status 2>&1").strip()
        heading, _, rest = said.partition("\n")
        lines = rest.splitlines()[:2] if heading == "Memory limiter" else [said]
        return " ".join(" ".join(lines).split())[:300] or "it says nothing"

    def thermal(self) -> str:
        """Whether the phone holds its speed back: AOSP's word for it.

        Source: AOSP, ThermalManagerService.java, dump; a phone whose thermal service has not reported yet prints the
        least integer there.
        """
        found = re.search(r"^\s*Thermal Status: (\d+)", self.says("dumpsys thermalservice"), re.MULTILINE)
        return _SEVERITY[int(found[1])] if found and int(found[1]) < len(_SEVERITY) else "not known"

    def _explain(self, what: str, done: subprocess.CompletedProcess[str]) -> None:
        said = (done.stderr.strip() or done.stdout.strip())[-300:]
        self.require()
        if "No space left on device" in said:
            free = _run(self.command("df -h /data/local/tmp | tail -n 1")).stdout.strip()
            raise EdgewrightError(f"{self.model}: no room for {what} in /data/local/tmp ({free}); free some storage")
        raise EdgewrightError(f"{self.model}: {what} failed: {said or f'exit code {done.returncode}'}")


def connect(serial: str) -> Device:
    """The phone of this serial number. Raises MissingTool without adb, EdgewrightError unless it is there, allows this
    machine and runs 64-bit ARM code."""
    found = _attached()
    if serial not in found:
        others = ", ".join(f"{name} ({state})" for name, state in found.items()) or "none is"
        raise EdgewrightError(f"--device {serial}: no such phone is attached; {others}. `adb devices` lists them")
    if found[serial] != "device":
        why = _STATES.get(found[serial], f"is in the state {found[serial]!r}, not running Android")
        raise EdgewrightError(f"--device {serial}: the phone {why}")
    names = (
        "ro.product.model",
        "ro.build.version.release",
        "ro.build.version.sdk",
        "ro.build.id",
        "ro.product.cpu.abi",
    )
    done = _run([_adb(), "-s", serial, "shell", "-T", "; ".join(f"getprop {name}" for name in names)])
    lines = [line.strip() for line in done.stdout.splitlines()]
    if done.returncode or len(lines) != len(names) or not lines[2].isdigit():
        raise EdgewrightError(f"--device {serial}: it does not say what it is ({done.stderr.strip() or done.stdout!r})")
    model, android, api, build, abi = lines
    if abi != "arm64-v8a":
        raise EdgewrightError(f"--device {serial}: {model} runs {abi} code; phones with arm64-v8a can be tested")
    return Device(serial, model, android, int(api), build)


def read_meminfo(text: str, pid: int) -> Meminfo:
    """The totals of `dumpsys meminfo PID`, in bytes. Raises EdgewrightError where it has none.

    Source: AOSP, core/java/android/app/ActivityThread.java, dumpMemInfoTable: kilobytes below "App Summary". "TOTAL:"
    until Android 10, "TOTAL PSS:" with "TOTAL RSS:" since 11; "TOTAL SWAP PSS:", or "TOTAL SWAP (KB):" where the kernel
    does not divide swap. A process that is no app gets no "** MEMINFO in pid" line (ActivityManagerService.java).
    """
    _, _, summary = text.partition("App Summary")
    found = dict(re.findall(r"TOTAL ?(PSS|RSS|SWAP|)(?: PSS| \(KB\))?:\s+(\d+)", summary))
    kilobytes = {name or "PSS": int(value) for name, value in found.items()}
    if "PSS" not in kilobytes:
        raise EdgewrightError(f"dumpsys meminfo says nothing of process {pid}: {text.strip()[:200]!r}")
    return Meminfo(*(1024 * kilobytes.get(name, 0) for name in ("PSS", "RSS", "SWAP")))


def _adb() -> str:
    found = shutil.which("adb")
    if found is None:
        raise MissingTool("no adb, by which phones are reached; install Android's platform-tools (apt-get install adb)")
    return found


def _attached() -> dict[str, str]:
    """Phones by serial number, with adb's word for their state."""
    done = _run([_adb(), "devices"])
    if done.returncode:
        raise EdgewrightError(f"adb does not work: {done.stderr.strip()[-300:]}")
    _, _, listed = done.stdout.partition("List of devices attached")
    pairs = (re.split(r"\t|\s{2,}", line.strip(), maxsplit=1) for line in listed.splitlines() if line.strip())
    return {pair[0]: pair[1].split(" (")[0].split(";")[0].strip() for pair in pairs if len(pair) == 2}


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise EdgewrightError(f"{' '.join(command[:4])}: no answer in {_TIMEOUT_S:.0f} s") from error
