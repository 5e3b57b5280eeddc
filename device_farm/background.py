"""Other apps on the phone: a process that reads a file of a given size again and again, inside the group's limit.

What lives here: that process, from start to end. What must not: how large it is (a profile says), and the limit.

What other apps hold is already taken off a profile's budget; what this adds is their use of the page cache within it.
The kernel then has to choose whose file pages it drops, and refaults come sooner, as on a phone with apps in the
background.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from artifacts.errors import EdgewrightError
from device_farm.cgroup import Group

_PERIOD_S = 0.05
# It writes the file itself: page cache belongs to the group of whoever brings it in.
_READER = """
import mmap, os, sys, time
with open(sys.argv[1], "r+b") as file:
    left = int(sys.argv[2])
    while left:
        left -= file.write(b"Z" * min(left, 1 << 20))
    file.flush()
    os.fsync(file.fileno())
    area = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
while True:
    for start in range(0, len(area), mmap.PAGESIZE):
        area[start]
    print(flush=True)
    time.sleep(float(sys.argv[3]))
"""


class Background:
    """Runs while the context is entered; nothing where ``size`` is 0. The file is read once before it goes on."""

    def __init__(self, group: Group | None, size: int) -> None:
        self._group, self._size = group, size
        self._file: IO[bytes] | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        """Raises EdgewrightError without a group, and where there is no room for its file."""
        if self._size == 0:
            return self
        if self._group is None:
            raise EdgewrightError("background pressure needs a control group: without one nothing shares a limit")
        # not in /tmp, which may itself be memory
        self._file = tempfile.NamedTemporaryFile(dir="/var/tmp" if Path("/var/tmp").is_dir() else None)
        command = [sys.executable, "-c", _READER, self._file.name, str(self._size), str(_PERIOD_S)]
        self._process = subprocess.Popen(
            self._group.entering(command), stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
        )
        assert self._process.stdout and self._process.stderr
        if not self._process.stdout.readline():
            said = self._process.stderr.read().decode(errors="replace").strip().splitlines()[-1:]
            self.__exit__(None, None, None)
            raise EdgewrightError(f"background pressure of {self._size:,} bytes cannot be made: {' '.join(said)}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends the process and removes its file."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for stream in (self._process.stdout, self._process.stderr):
                assert stream
                stream.close()
        if self._file is not None:
            self._file.close()
