"""Refuse to compute in a forked process whose threads were lost.

Torch and numba compute on CPUs with GNU's OpenMP, whose threads do not survive a fork. Afterwards torch waits for them
without end, also for a dense model, and numba ends the process.
"""

import os
import threading
from pathlib import Path
from typing import NoReturn

import torch

from moa.plans.errors import Unsupported

_here = threading.local()


def check() -> None:
    """Note that this thread computes; refuse if it also did so before a fork, in which OpenMP's threads were lost.

    A thread started after the fork gets OpenMP threads of its own. With a single thread nothing is lost.
    """
    if torch.get_num_threads() == 1:
        return
    process = os.getpid()
    before = getattr(_here, "process", process)
    if before != process and gnu():
        refuse()
    _here.process = process


def gnu() -> bool:
    """Return whether the process has loaded GNU's OpenMP; other OpenMP libraries restart their threads after a fork."""
    try:
        return "libgomp" in Path("/proc/self/maps").read_text()
    except OSError:
        return False


def refuse() -> NoReturn:
    """Raise Unsupported, and say what would work."""
    raise Unsupported(
        "this process was forked from one that had computed on several threads, which no fork keeps: fork before the "
        "model first computes, or start processes by multiprocessing's 'spawn', or call torch.set_num_threads(1) here"
    )
