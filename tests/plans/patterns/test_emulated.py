"""The contract of all patterns over emulated back-ends, each in a process of its own: imports look at the emulation.

To see it alone: TRITON_INTERPRET=1 python -m pytest tests/plans/patterns -k "in_float32 and triton"
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from contract import Contract, kinds

from moa.kernels.registry import BACKENDS
from moa.kernels.spec import Spec


@pytest.mark.parametrize("spec", [spec for spec in BACKENDS if spec.emulation], ids=lambda spec: spec.name)
def test_patterns_keep_to_the_contract_over(spec: Spec) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", f"in_float32 and {spec.name}"]
    run = subprocess.run(
        [*command, str(Path(__file__).parent)], env={**os.environ, spec.emulation: "1"}, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stdout[-20000:] + run.stderr[-2000:]
    tests = [name for name in vars(Contract) if "in_float32" in name]
    assert f"{len(tests) * len(kinds())} passed" in run.stdout, run.stdout
