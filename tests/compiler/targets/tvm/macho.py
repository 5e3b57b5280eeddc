"""As much of ar archives and Mach-O objects as the tests ask about: platform and symbols of each member.

Sources: Apple's mach-o/loader.h and mach-o/nlist.h; ar(5) in its BSD form, with long names before the data.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_MAGIC, _ARM64 = 0xFEEDFACF, 0x0100000C
_SYMTAB, _BUILD_VERSION, _VERSION_MIN_IOS = 0x2, 0x32, 0x25
_STAB, _TYPE, _EXTERNAL, _SECTION, _WEAK, _PLATFORM_IOS = 0xE0, 0x0E, 0x01, 0x0E, 0x80, 2


@dataclass(frozen=True)
class Object:
    """A member. ios: the least version of iOS it runs on; symbols as a linker sees them, without the underscore
    and without those that any other definition may replace."""

    name: str
    ios: tuple[int, int] | None
    defined: frozenset[str]
    undefined: frozenset[str]


def read(archive: Path) -> list[Object]:
    """The ARM64 objects of an archive."""
    return [_object(name, data) for name, data in _members(archive.read_bytes()) if not name.startswith("__.SYMDEF")]


def _members(data: bytes) -> Iterator[tuple[str, bytes]]:
    assert data[:8] == b"!<arch>\n"
    at = 8
    while at < len(data):
        header, size = data[at : at + 60], int(data[at + 48 : at + 58])
        assert header[58:] == b"`\n"
        name, content = header[:16].decode().strip(), data[at + 60 : at + 60 + size]
        if name.startswith("#1/"):
            length = int(name[3:])
            name, content = content[:length].rstrip(b"\0").decode(), content[length:]
        yield name, content
        at += 60 + size + size % 2


def _object(name: str, data: bytes) -> Object:
    magic, machine, _, _, commands = struct.unpack_from("<5I", data)
    assert (magic, machine) == (_MAGIC, _ARM64), name
    ios, defined, undefined = None, set(), set()
    at = 32
    for _ in range(commands):
        command, size = struct.unpack_from("<2I", data, at)
        if command == _BUILD_VERSION:
            platform, version = struct.unpack_from("<2I", data, at + 8)
            assert platform == _PLATFORM_IOS, name
            ios = version >> 16, version >> 8 & 0xFF
        elif command == _VERSION_MIN_IOS:
            (version,) = struct.unpack_from("<I", data, at + 8)
            ios = version >> 16, version >> 8 & 0xFF
        elif command == _SYMTAB:
            symbols, count, strings, _ = struct.unpack_from("<4I", data, at + 8)
            for i in range(count):
                text, kind, _, flags = struct.unpack_from("<IBBH", data, symbols + 16 * i)
                if kind & _STAB or not kind & _EXTERNAL or flags & _WEAK:
                    continue
                start = strings + text
                symbol = data[start : data.index(b"\0", start)].decode().removeprefix("_")
                (defined if kind & _TYPE == _SECTION else undefined).add(symbol)
        at += size
    return Object(name, ios, frozenset(defined), frozenset(undefined))
