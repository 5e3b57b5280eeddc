"""A child for the sandbox, behaving as a model's process can; run by its path: ``child.py WAY [ARGUMENT…]``."""

from __future__ import annotations

import json
import mmap
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np

STEP = 1 << 20


def announce(phase: str, **payload: object) -> None:
    print(json.dumps({"phase": phase, **payload}), flush=True)
    if (phase == "baseline" or payload.get("wait")) and not sys.stdin.readline():
        sys.exit("the parent is gone")


def arrays(size: int) -> object:
    """Many small arrays, as a runtime loading tensors."""
    return [np.ones(min(STEP, size - start), np.uint8) for start in range(0, size, STEP)]


def pages(size: int) -> object:
    """One private mapping, touched page by page, as a cache that fills up."""
    area = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for start in range(0, size, mmap.PAGESIZE):
        area[start] = 1
    return area


def memset(size: int) -> object:
    """One big buffer written at once."""
    return np.full(size, 7, np.uint8)


def shared(size: int) -> object:
    """Shared memory without a file: nothing to drop it to."""
    area = mmap.mmap(-1, size)
    for _ in range(0, size, 1000):
        area.write(b"\1" * 1000)
    return area


def weights(size: int, path: str) -> object:
    """Mapped weights read once, and anonymous memory beside them."""
    return [read_mapped(path), arrays(size)]


def read_mapped(path: str) -> np.ndarray:
    with open(path, "rb") as file:
        area = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    view = np.frombuffer(area, np.uint8)
    view[:: mmap.PAGESIZE].sum()
    return view


def swapped(size: int) -> object:
    """Anonymous memory that the kernel is told to swap out; on a machine with swap it does."""
    area = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    generator = np.random.default_rng(0)  # what compresses to nothing would be kept as nothing
    for start in range(0, size, STEP):
        area[start : start + STEP] = generator.bytes(min(STEP, size - start))
    area.madvise(21)  # MADV_PAGEOUT, Linux 5.4
    return area


def main(way: str, *arguments: str) -> None:
    if way == "silent":
        return
    announce("baseline", pid=os.getpid())
    print("plain text of a chatty library", flush=True)
    if way in ("arrays", "pages", "memset", "shared", "weights"):
        held = globals()[way](int(arguments[0]), *arguments[1:])
        announce("load", held=way, wait=True)
        time.sleep(0.02)
        del held
    elif way == "probe":  # anonymous, shared, swapped bytes, and a file
        sizes = [int(size) for size in arguments[:3]]
        held = [pages(sizes[0]), shared(sizes[1]), read_mapped(arguments[3])]
        held += [swapped(sizes[2])] if sizes[2] else []
        announce("steady", wait=True)
        del held
    elif way == "forks":
        read, write = os.pipe()
        if os.fork() == 0:
            os.read(read, 1)
            os._exit(0)
        announce("load", wait=True)
        os.write(write, b"x")
        announce("steady", wait=True)
    elif way == "spikes":
        for _ in range(10):
            memset(int(arguments[0]))
        announce("load")
    elif way == "phases":
        first = memset(40_000_000)
        announce("load", wait=True, tokens_per_second=12.5)
        memset(30_000_000)
        announce("prefill", wait=True)
        del first
        announce("steady", wait=True)
    elif way == "dies slowly":
        held = memset(40_000_000)
        announce("load", wait=True)
        announce("steady")
        del held
        time.sleep(1)
    elif way == "ends at once":
        held = memset(40_000_000)
        announce("load", wait=True)
        announce("steady")
        os._exit(0)
    elif way == "reread":
        held = read_mapped(arguments[0])
        for _ in range(int(arguments[1])):
            held[:: mmap.PAGESIZE].sum()
        announce("steady", wait=True)
    elif way == "worker":
        pid = os.fork()
        if pid == 0:
            memset(int(arguments[0]))
            time.sleep(0.1)
            os._exit(0)
        failed = os.waitpid(pid, 0)[1]
        if arguments[1:]:
            announce(arguments[1], wait=True)
        sys.exit(1 if failed else 0)
    elif way == "signal":
        announce("load")
        sys.stderr.write("about to die\n")
        sys.stderr.flush()
        os.kill(os.getpid(), signal.Signals[arguments[0]])
    elif way == "raise":
        raise RuntimeError("no such operator: FusedNonsense")
    elif way == "hang":
        (Path(arguments[0]) / "pid").write_text(str(os.getpid()))
        time.sleep(60)
    elif way == "twice":
        announce("baseline")


if __name__ == "__main__":
    main(*sys.argv[1:])
