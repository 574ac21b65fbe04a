"""A decode step of back-end `triton` compiles with inductor for a GPU that is not there."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
SCRIPT = Path(__file__).parent / "inductor_sm90.py"


@pytest.mark.parametrize(("sequences", "groups", "ones"), [(1, 1, {"groups", "tokens"}), (2, 2, set())])
def test_a_step_compiles_for_an_h100_in_one_graph(sequences: int, groups: int, ones: set[str]) -> None:
    """At batch 1 the number of tokens is a constant to Triton, at any batch the softmax's scale is float64."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, str(SCRIPT), str(sequences), str(groups)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-5000:]
    found = json.loads(run.stdout.splitlines()[-1])
    assert found["graphs"] == 1
    assert {row["kernel"] for row in found["made"]} == {"decode_kernel", "join_kernel"}
    for row in found["made"]:
        assert row["target"] == 90
        assert set(row["ones"]) == ones
