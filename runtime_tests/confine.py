"""A process that writes to its own folders alone, whatever the code of an artifact does in it.

What lives here: Landlock, Linux's own means for a process without rights. What must not: what runs in the process.
Source: kernel documentation, userspace-api/landlock; ``linux/landlock.h``.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Sequence
from pathlib import Path

_CREATE, _ADD, _RESTRICT = 444, 445, 446  # system calls, the same on every 64-bit architecture
_VERSION, _PATH_BENEATH, _NO_NEW_PRIVILEGES = 1, 1, 38
# write, remove, make; renaming between folders came with version 2, truncating with 3
_WRITES = {1: 0b1_1111_1111_0010, 2: 1 << 13, 3: 1 << 14}
_FILE_WRITES = 1 << 1 | 1 << 14


class _Beneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("allowed", ctypes.c_uint64), ("folder", ctypes.c_int32))


def write_only_below(places: Sequence[Path]) -> bool:
    """From here on this process, its threads and children write nothing but below `places` (or these files).

    False where this kernel has no Landlock (before 5.13, other systems): nothing is confined then. Must be called
    before any thread is started.
    """
    if not sys.platform.startswith("linux"):
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    version = libc.syscall(_CREATE, None, 0, _VERSION)
    if version < 1:
        return False
    writes = sum(bits for since, bits in _WRITES.items() if since <= version)
    handled = ctypes.c_uint64(writes)
    rules = libc.syscall(_CREATE, ctypes.byref(handled), ctypes.sizeof(handled), 0)
    if rules < 0:
        return False
    try:
        for place in places:
            folder = os.open(place, os.O_PATH | os.O_CLOEXEC)
            try:
                rule = _Beneath(writes if place.is_dir() else writes & _FILE_WRITES, folder)
                if libc.syscall(_ADD, rules, _PATH_BENEATH, ctypes.byref(rule), 0) != 0:
                    return False
            finally:
                os.close(folder)
        alone = libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0) == 0
        return bool(alone and libc.syscall(_RESTRICT, rules, 0) == 0)
    finally:
        os.close(rules)
