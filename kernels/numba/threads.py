"""Manage numba's threads: their number, their loss in a fork, and callers that come from several threads.

With one thread none of this is used: the code for one thread (`moa.kernels.numba.decode.kernel`) starts no others.
"""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numba
import torch

from moa.kernels import forks

_lost = False
"""Whether numba's threads were started before the fork that this process came from, and cannot run here."""
_turn = threading.Lock()


def check() -> None:
    """Raise Unsupported if numba would end the process at its next parallel loop, as it would after some forks."""
    if _lost and torch.get_num_threads() > 1:
        forks.refuse()


@contextmanager
def shared() -> Iterator[None]:
    """Give numba torch's number of threads within the context, and restore the caller's numbers afterwards."""
    check()
    threads = torch.get_num_threads()
    before = numba.get_num_threads()
    if torch.get_num_threads() != threads:  # numba's first call started its threads, by the OpenMP that torch uses
        torch.set_num_threads(threads)
    ours = min(threads, numba.config.NUMBA_NUM_THREADS)
    if ours != before:
        numba.set_num_threads(ours)
    try:
        if numba.threading_layer() == "workqueue":  # it aborts the process where two threads enter it at once
            with _turn:
                yield
        else:
            yield
    finally:
        if ours != before:
            numba.set_num_threads(before)


def _forked() -> None:
    global _lost, _turn
    _turn = threading.Lock()  # a thread that held it is not in this process
    try:
        layer = numba.threading_layer()
    except ValueError:  # none is running yet
        return
    _lost = layer == "omp" and forks.gnu()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
