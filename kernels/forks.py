"""Forks of a process that has computed: GNU's OpenMP, by which torch and numba compute on CPUs, loses its threads.

Afterwards torch waits for them without end, also for a dense model, and numba ends the process.
"""

import os
import threading
from pathlib import Path
from typing import NoReturn

import torch

from moa.plans.errors import Unsupported

_here = threading.local()


def check() -> None:
    """Note that this thread computes; raise Unsupported if it did so before a fork, with threads that it lost.

    New threads of a forked process get threads of their own. With one thread nothing is lost.
    """
    if torch.get_num_threads() == 1:
        return
    process = os.getpid()
    before = getattr(_here, "process", process)
    if before != process and gnu():
        refuse()
    _here.process = process


def gnu() -> bool:
    """Whether the process has loaded GNU's OpenMP; those of others start anew after a fork."""
    try:
        return "libgomp" in Path("/proc/self/maps").read_text()
    except OSError:
        return False


def refuse() -> NoReturn:
    """Raise Unsupported, with what would work."""
    raise Unsupported(
        "this process was forked from one that had computed on several threads, which no fork keeps: fork before the "
        "model first computes, or start processes by multiprocessing's 'spawn', or call torch.set_num_threads(1) here"
    )
