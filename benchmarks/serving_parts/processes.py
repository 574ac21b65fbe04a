"""Processes that do not outlive the one that started them, whatever ends it."""

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress

PATIENCE = 60
"""Seconds that a server has to end when it is told to."""

_PARENT_DEATH = 1
"""Linux' PR_SET_PDEATHSIG."""

_WATCH = "import os, signal, sys; sys.stdin.read(); os.killpg(0, signal.SIGKILL)"


def end_with(parent: int) -> None:
    """Let this process be killed when its parent ends, on Linux.

    Args:
        parent: The parent's id: it may have ended already.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PARENT_DEATH, signal.SIGKILL)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


@contextmanager
def server(command: Sequence[str], environment: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """Yield a running server: it and all that it starts end with the block, or with this process."""
    process = subprocess.Popen(command, env=environment, stdout=sys.stderr, process_group=0)
    # Reads until this process has no end of the pipe any more; its signal reaches the server's children too.
    watch = subprocess.Popen([sys.executable, "-c", _WATCH], stdin=subprocess.PIPE, process_group=process.pid)
    try:
        yield process
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(PATIENCE)
        os.killpg(process.pid, signal.SIGKILL)  # the watch is in the group, so it is there
        process.wait()
        watch.communicate()
