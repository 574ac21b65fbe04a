"""What the C library does with freed memory."""

import ctypes
import os
import sys

FREED = 4 << 20
"""Bytes of a layer's tensors in a profile at 2,048 tokens of a small model: from there on freed memory goes back."""


def return_freed(size: int = FREED) -> None:
    """From now on every new allocation of `size` bytes or more is the system's own, and goes back when freed.

    glibc otherwise keeps most of it, in pieces that later ones do not fit. Elsewhere, and where the environment says
    otherwise, nothing changes.
    """
    if sys.platform == "linux" and "MALLOC_MMAP_THRESHOLD_" not in os.environ:
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            mallopt(-3, size)  # M_MMAP_THRESHOLD in glibc's malloc.h
