"""Memory that goes back: the C library's heap, told to give large blocks to the system when they are freed."""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1  # of glibc's malloc.h
_SMALL, _LARGE, _LARGEST = 256 << 10, 4 << 20, 32 << 20
_DEFAULT_TRIM = 128 << 10


def return_large_blocks() -> None:
    """Let blocks of 4 MiB and more come from the system and go back to it.

    glibc raises that size by itself, up to 32 MiB, with every such block that is freed; row blocks and activations then
    leave holes in its heap that stay in memory. Setting the size keeps it. Other C libraries are left alone.
    """
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "mallopt"):
        library.mallopt(_MMAP_THRESHOLD, _LARGE)


def give_back() -> None:
    """Return what nobody holds any more to the system: after a call of LLVM's that is more than a hundred megabytes."""
    gc.collect()
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "malloc_trim"):
        library.malloc_trim(0)


@contextmanager
def returned_blocks() -> Iterator[None]:
    """Let blocks of 256 KiB and more go back too, where a graph is run once: of one with many values of a megabyte, the
    holes that they leave are three times what is alive. At the end all goes that nobody holds."""
    if sys.platform != "linux" or not hasattr(library := ctypes.CDLL(None), "mallopt"):
        yield
        return
    library.mallopt(_MMAP_THRESHOLD, _SMALL)
    try:
        yield
    finally:
        return_large_blocks()
        library.malloc_trim(0)


@contextmanager
def kept_large_blocks() -> Iterator[None]:
    """Let what is freed be used again, where a graph is run over and over: two thirds of the time of a renderer's pass
    go into pages that the system has to clear, otherwise."""
    if sys.platform != "linux" or not hasattr(library := ctypes.CDLL(None), "mallopt"):
        yield
        return
    library.mallopt(_MMAP_THRESHOLD, _LARGEST)
    library.mallopt(_TRIM_THRESHOLD, 1 << 30)
    try:
        yield
    finally:
        library.mallopt(_TRIM_THRESHOLD, _DEFAULT_TRIM)
        return_large_blocks()
        library.malloc_trim(0)
