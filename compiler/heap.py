"""Memory that goes back: the C library's heap, told to give large blocks to the system when they are freed."""

from __future__ import annotations

import ctypes
import sys

_MMAP_THRESHOLD = -3  # M_MMAP_THRESHOLD of glibc's malloc.h
_LARGE = 4 << 20


def return_large_blocks() -> None:
    """Let blocks of 4 MiB and more come from the system and go back to it.

    glibc raises that size by itself, up to 32 MiB, with every such block that is freed; row blocks and activations then
    leave holes in its heap that stay in memory. Setting the size keeps it. Other C libraries are left alone.
    """
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "mallopt"):
        library.mallopt(_MMAP_THRESHOLD, _LARGE)
