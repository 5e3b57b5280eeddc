#!/usr/bin/env python3
"""An adb with phones of a test: it answers in AOSP's formats, and runs what was pushed, ARM64 code under qemu.

Beside it lie `phones.json` ({serial: {"state": ..., "props": {...}, ...}}) and a folder for each phone's files. Keys of
a phone: state, props, free (bytes for files that are pushed), limiter, thermal, disconnects (after how many commands),
unlisted (how often `dumpsys meminfo` does not know a process yet). Formats are those of AOSP's frameworks/base, read
there in 2026-11: ActivityThread.java (dumpMemInfoTable), ActivityManagerService.java (dumpApplicationMemoryUsage),
ThermalManagerService.java and MemoryLimiter.java (dump).
`commands` holds what was asked, one line each.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
STATE = HERE / "phones.json"
PLACE = "/data/local/tmp"
# dumpMemInfoTable's columns, of a process that is no app; the blanks that end lines are AOSP's as well
MEMINFO = """Applications Memory Usage (in Kilobytes):
Uptime: 6482354 Realtime: 6482354
                   Pss  Private  Private  SwapPss      Rss     Heap     Heap     Heap
                 Total    Dirty    Clean    Dirty    Total     Size    Alloc     Free
                ------   ------   ------   ------   ------   ------   ------   ------
  Native Heap {anon:>8} {anon:>8}        0        0 {anon:>8}        0        0        0
  Dalvik Heap        0        0        0        0        0        0        0        0
   Other mmap {file:>8}        0 {file:>8}        0 {file:>8}                           
      Unknown        0        0        0        0        0                           
        TOTAL {rss:>8} {anon:>8} {file:>8}        0 {rss:>8}        0        0        0
 
 App Summary
                       Pss(KB)                        Rss(KB)
                        ------                         ------
           Java Heap:        0                              0
         Native Heap: {anon:>8}                       {anon:>8}
                Code:        0                              0
               Stack:        0                              0
            Graphics:        0                              0
       Private Other: {file:>8}
              System:        0
             Unknown:                                {file:>8}
 
           TOTAL PSS: {rss:>8}            TOTAL RSS: {rss:>8}       TOTAL SWAP PSS:        0
"""  # noqa: W291, W293
THERMAL = """IsStatusOverride: false
ThermalEventListeners:
\tcallbacks: 2
\tkilled: false
\tbroadcasts count: -1
ThermalStatusListeners:
\tcallbacks: 1
\tkilled: false
\tbroadcasts count: -1
Thermal Status: {status}
Cached temperatures:
\tTemperature{{mValue=31.2, mType=3, mName=skin, mStatus={status}}}
HAL Ready: true
HAL connection:
\tThermal HAL 2.0 connected: yes
Current temperatures from HAL:
\tTemperature{{mValue=31.2, mType=3, mName=skin, mStatus={status}}}
"""


def fail(words: str, code: int = 1) -> None:
    print(words, file=sys.stderr)
    sys.exit(code)


def main(arguments: list[str]) -> None:
    phones = json.loads(STATE.read_text())
    with (HERE / "commands").open("a") as log:
        log.write(json.dumps(arguments) + "\n")
    if arguments == ["devices"]:
        print("List of devices attached")
        for serial, phone in phones.items():
            print(f"{serial}\t{phone['state']}")
        print()
        return
    if arguments[0] != "-s":
        fail("adb: more than one device/emulator" if len(phones) > 1 else "adb: unexpected")
    serial, arguments = arguments[1], arguments[2:]
    if serial not in phones:
        fail(f"adb: device '{serial}' not found")
    phone = phones[serial]
    if phone["state"] != "device":
        fail(f"adb: device {phone['state']}")
    if "disconnects" in phone:
        phone["disconnects"] -= 1
        if phone["disconnects"] < 0:
            del phones[serial]
        STATE.write_text(json.dumps(phones))
        if phone["disconnects"] < 0:
            fail(f"adb: device '{serial}' not found")
    root = HERE / serial
    if arguments[0] == "push":
        source, target = Path(arguments[1]), root / arguments[2].lstrip("/")
        if source.stat().st_size > phone.get("free", 1 << 40):
            why = "remote write failed: No space left on device"
            fail(f"adb: error: failed to copy '{source}' to '{arguments[2]}': {why}")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(source.read_bytes())
        print(f"{source}: 1 file pushed, 0 skipped.")
    elif arguments[:2] == ["shell", "-T"]:
        shell(phone, root, arguments[2])
    else:
        fail(f"adb: unknown command {arguments[0]}")


def shell(phone: dict, root: Path, script: str) -> None:
    if script.startswith("getprop"):
        for name in re.findall(r"getprop (\S+?)(?:;|$)", script):
            print(phone["props"].get(name, ""))
    elif found := re.fullmatch(r"dumpsys meminfo (\d+)", script):
        status = Path(f"/proc/{found[1]}/status")
        if not status.exists():
            print(f"No process found for: {found[1]}")
            return
        sizes = dict(re.findall(r"^(\w+):\s+(\d+) kB", status.read_text(), re.MULTILINE))
        if phone.get("unlisted", 0) > 0:  # Android has not looked for processes since this one began
            phone["unlisted"] -= 1
            STATE.write_text(json.dumps({**json.loads(STATE.read_text()), root.name: phone}))
            print(f"No process found for: {found[1]}")
            return
        anon, rss = int(sizes["RssAnon"]), int(sizes["VmRSS"])
        print(MEMINFO.format(anon=anon, file=rss - anon, rss=rss), end="")
    elif script == "dumpsys thermalservice":
        print(THERMAL.format(status=phone["thermal"]), end="")
    elif script.startswith("am memory-limiter"):
        print(phone["limiter"])
    elif script.startswith("df "):
        print("/dev/block/dm-53  104G  104G  12K 100% /data")
    else:
        (root / PLACE.lstrip("/")).mkdir(parents=True, exist_ok=True)
        script = script.replace(PLACE, str(root / PLACE.lstrip("/")))
        emulator = f"qemu-aarch64-static -cpu cortex-a76 -L {phone.get('overlay')}"
        script = script.replace("exec ", f"exec {emulator} ")
        sys.exit(subprocess.run(["sh", "-c", script], env={**os.environ, "LD_LIBRARY_PATH": ""}).returncode)


if __name__ == "__main__":
    main(sys.argv[1:])
