"""As much of ELF as the tests ask about: segments, needed libraries, machine code. Source: the System V ABI, elf(5)."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

_LOAD, _DYNAMIC, _EXECUTABLE = 1, 2, 1
_NEEDED, _STRTAB, _SONAME = 1, 5, 14
MACHINES = {62: "x86_64", 183: "aarch64"}


@dataclass(frozen=True)
class Library:
    machine: str
    alignments: list[int]
    needed: list[str]
    soname: str
    code: bytes


def read(path: Path) -> Library:
    """A 64-bit little-endian shared library."""
    data = path.read_bytes()
    assert data[:6] == b"\x7fELF\x02\x01"
    machine = struct.unpack_from("<H", data, 18)[0]
    start, size, count = struct.unpack_from("<Q", data, 32)[0], *struct.unpack_from("<HH", data, 54)
    segments = [struct.unpack_from("<IIQQQQQQ", data, start + i * size) for i in range(count)]
    loads = [s for s in segments if s[0] == _LOAD]
    dynamic = next(s for s in segments if s[0] == _DYNAMIC)
    entries = [struct.unpack_from("<QQ", data, dynamic[2] + i * 16) for i in range(dynamic[5] // 16)]
    address = next(value for tag, value in entries if tag == _STRTAB)
    strings = next(address - s[3] + s[2] for s in loads if s[3] <= address < s[3] + s[5])

    def text(at: int) -> str:
        return data[strings + at : data.index(b"\0", strings + at)].decode()

    return Library(
        MACHINES[machine],
        [s[7] for s in loads],
        [text(value) for tag, value in entries if tag == _NEEDED],
        next(text(value) for tag, value in entries if tag == _SONAME),
        b"".join(data[s[2] : s[2] + s[5]] for s in loads if s[1] & _EXECUTABLE),
    )


def count_instructions(code: bytes) -> dict[str, int]:
    """How often AArch64 code holds the integer dot products (encodings: Arm ARM, C7.2, SDOT and SMMLA vector)."""
    words = np.frombuffer(code[: len(code) // 4 * 4], "<u4")
    return {
        "sdot": int(((words & 0xFFE0FC00) == 0x4E809400).sum()),
        "smmla": int(((words & 0xFFE0FC00) == 0x4E80A400).sum()),
    }
