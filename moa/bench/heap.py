"""Set what the C library does with freed memory."""

import ctypes
import os
import sys

FREED = 4 << 20
"""Bytes from which freed memory goes back: a layer's tensors in a small model's profile at 2,048 tokens."""


def return_freed(size: int = FREED) -> None:
    """Let every new allocation of `size` bytes or more go back to the system as soon as it is freed.

    Without this, glibc keeps most of the memory, in pieces that later allocations do not fit. With another C library,
    or where the environment sets these limits, nothing changes.
    """
    if sys.platform == "linux" and "MALLOC_MMAP_THRESHOLD_" not in os.environ:
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            mallopt(-3, size)  # M_MMAP_THRESHOLD in glibc's malloc.h
