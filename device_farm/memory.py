"""What memory a process holds, split into the kinds that phones charge differently, and the page cache made cold.

What lives here: reading the split of one process, and dropping files from the page cache so that a measurement pays for
reading them again. What must not: limits, rules of a platform (``verdict.py``) and the running of processes
(``sandbox.py``).

Linux only: everything is read from ``/proc`` or asked of the kernel.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from artifacts.errors import EdgewrightError


@dataclass(frozen=True)
class Split:
    """Resident memory of one process in bytes, by kind.

    ``anonymous`` is what the kernel cannot drop: RssAnon, and RssShmem, whose pages have no file to come back from.
    ``file`` is RssFile: mapped pages of files, clean ones can be dropped and read again. ``swap`` is VmSwap.
    ``high_water`` is VmHWM, the largest resident set so far of all kinds together.
    """

    anonymous: int
    file: int
    swap: int
    high_water: int

    @property
    def resident(self) -> int:
        """Bytes in RAM now: anonymous and file-backed."""
        return self.anonymous + self.file

    @property
    def unreclaimable(self) -> int:
        """Bytes that only the process can give back: anonymous and swapped. iOS calls this the footprint."""
        return self.anonymous + self.swap


def parse_status(text: bytes) -> Split | None:
    """The split in the content of ``/proc/PID/status``; None for a process that has ended: it holds no memory any more.

    A zombie, and a process whose memory the kernel has begun to take down, has no RssAnon; were there one, it would be
    of what is left and not of what the process held.

    Source: proc(5), ``/proc/pid/status``; its kB are KiB. ``smaps_rollup`` would be exact for shared pages too, but
    walks every page of the process and is too slow to sample.
    """
    found: dict[bytes, int] = {}
    for line in text.splitlines():
        key, _, value = line.partition(b":")
        if key == b"State" and value.split()[:1] in ([b"Z"], [b"X"], [b"x"]):
            return None
        if key in (b"RssAnon", b"RssFile", b"RssShmem", b"VmSwap", b"VmHWM"):
            found[key] = int(value.split()[0]) * 1024
    if b"RssAnon" not in found:
        return None
    return Split(
        anonymous=found[b"RssAnon"] + found.get(b"RssShmem", 0),
        file=found.get(b"RssFile", 0),
        swap=found.get(b"VmSwap", 0),
        high_water=found.get(b"VmHWM", 0),
    )


def read_split(pid: int | None = None) -> Split:
    """The split of process ``pid``, or of this one. Raises EdgewrightError when there is no such running process."""
    path = Path("/proc") / ("self" if pid is None else str(pid)) / "status"
    try:
        split = parse_status(path.read_bytes())
    except OSError as error:
        raise EdgewrightError(f"{path}: cannot read the memory of the process: {error.strerror}") from error
    if split is None:
        raise EdgewrightError(f"{path}: the process has ended")
    return split


def anonymous_peak_between(before: Split, after: Split) -> int:
    """The largest anonymous plus swapped bytes between two samples, as far as the kernel's records show it.

    A process can grow and shrink again between two samples. If its high-water mark rose in between, the resident set
    was that large at some moment; what the mapped files of either sample do not account for was anonymous.
    """
    seen = max(before.unreclaimable, after.unreclaimable)
    if after.high_water <= before.high_water:
        return seen
    return max(seen, after.high_water - max(before.file, after.file))


@dataclass(frozen=True)
class CacheDrop:
    """What dropping files from the page cache came to.

    ``warm_bytes`` stayed, in whole pages: mapped by another process, or on a file system that is memory (tmpfs).
    """

    files: int
    total_bytes: int
    warm_bytes: int


def drop_page_cache(paths: Iterable[Path]) -> CacheDrop:
    """Writes files (or every file in folders) back to disk and drops them from the page cache.

    A warm page cache is charged to nobody, so a measurement that skips this sees memory-mapped weights for free. Pages
    that another process has mapped stay; they are counted in ``warm_bytes``. Raises EdgewrightError for a path that
    cannot be read.
    """
    files = total = warm = 0
    for path in paths:
        for file in _files_of(path):
            try:
                descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
            except OSError as error:
                raise EdgewrightError(f"{file}: cannot be dropped from the page cache: {error.strerror}") from error
            try:
                os.fsync(descriptor)  # dirty pages cannot be dropped
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
                size = os.fstat(descriptor).st_size
                files, total, warm = files + 1, total + size, warm + _cached_bytes(descriptor, size)
            finally:
                os.close(descriptor)
    return CacheDrop(files=files, total_bytes=total, warm_bytes=warm)


def cached_bytes(path: Path) -> int:
    """Bytes of a file that are in the page cache now, in whole pages.

    Source: mincore(2), which answers truthfully to those who own the file or may write it.
    """
    with path.open("rb") as file:
        return _cached_bytes(file.fileno(), os.fstat(file.fileno()).st_size)


def _files_of(path: Path) -> Iterator[Path]:
    if path.is_dir():
        yield from sorted(inner for inner in path.rglob("*") if inner.is_file())
    else:
        yield path


def _cached_bytes(descriptor: int, size: int) -> int:
    if size == 0:
        return 0
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p]
    # mapped by hand: Python's mmap does not give the address of a read-only mapping
    address = libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, descriptor, 0)
    if address in (None, ctypes.c_void_p(-1).value):
        raise EdgewrightError(f"cannot map a file to look at its page cache: {os.strerror(ctypes.get_errno())}")
    pages = -(-size // mmap.PAGESIZE)
    resident = ctypes.create_string_buffer(pages)
    try:
        if libc.mincore(address, size, resident) != 0:
            raise EdgewrightError(f"cannot look at the page cache: {os.strerror(ctypes.get_errno())}")
    finally:
        libc.munmap(address, size)
    # the lowest bit of each byte says resident; the others are reserved and zero
    return (pages - resident.raw.count(b"\0")) * mmap.PAGESIZE
