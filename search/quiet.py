"""Keep standard output clean of what compiled code prints there by itself."""

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

_ONE_AT_A_TIME = Lock()
"""Two threads that swap the descriptor at once could leave it lost."""


@contextmanager
def quiet() -> Iterator[None]:
    """Drop what the process writes to file descriptor 1 within the block.

    HiGHS, in scipy 1.17, prints a line from C++ in some mixed-integer programs, whatever its output options say.
    """
    flush = ctypes.CDLL(None).fflush  # C buffers what goes to a file or pipe
    with _ONE_AT_A_TIME:
        if sys.stdout is not None:
            sys.stdout.flush()
        flush(None)
        saved = os.dup(1)
        try:
            with open(os.devnull, "wb") as nowhere:
                os.dup2(nowhere.fileno(), 1)
            yield
        finally:
            flush(None)
            os.dup2(saved, 1)
            os.close(saved)
