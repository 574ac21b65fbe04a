"""Runs the kernels' tests under Triton's interpreter, in a process of their own: it must be chosen before any import.

To see them one by one: TRITON_INTERPRET=1 python -m pytest tests/kernels/triton
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
FOLDER = Path(__file__).parent / "triton"


def interpreted(which: str) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", which, str(FOLDER)]
    run = subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-20000:] + run.stderr[-2000:]


def test_kernels_agree_with_the_reference() -> None:
    interpreted("not full")


@pytest.mark.full
def test_kernels_agree_with_the_reference_everywhere() -> None:
    interpreted("full")
