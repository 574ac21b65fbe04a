"""A decode step of back-end `triton` compiles with inductor for a GPU that is not there."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
SCRIPT = Path(__file__).parent / "inductor_sm90.py"


STEP, MOVES = {"decode_kernel", "join_kernel"}, {"scores_kernel", "leave_kernel", "put_kernel"}
PAGES = STEP | {"append_kernel", "page_scores_kernel", "page_choice_kernel", "read_kernel"}
ONES = {
    **{kernel: {"groups", "moving"} for kernel in MOVES}, **{kernel: {"groups", "tokens"} for kernel in STEP},
    "append_kernel": {"sequences", "groups"}, "page_scores_kernel": {"groups", "width"},
    "page_choice_kernel": {"groups", "width"}, "read_kernel": {"groups", "tokens", "width"},
}  # fmt: skip


@pytest.mark.parametrize(("holds", "kernels"), [("first", STEP), ("keydiff", STEP | MOVES), ("reads", PAGES)])
@pytest.mark.parametrize(("sequences", "groups"), [(1, 1), (2, 2)])
def test_a_step_compiles_for_an_h100_in_one_graph(sequences: int, groups: int, holds: str, kernels: set[str]) -> None:
    """At batch 1 the number of tokens is a constant to Triton, at any batch the softmax's scale is float64."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, str(SCRIPT), str(sequences), str(groups), holds]
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-5000:]
    found = json.loads(run.stdout.splitlines()[-1])
    assert found["graphs"] == 1
    assert {row["kernel"] for row in found["made"]} == kernels
    for row in found["made"]:
        assert row["target"] == 90
        sizes = ONES[row["kernel"]] & (ONES[row["kernel"]] if sequences == 1 else {"width"})
        assert set(row["ones"]) - {"lines"} == sizes  # of coarse pages there is one line
