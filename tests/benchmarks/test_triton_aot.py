"""Compiles the kernels for four targets without a device and checks what came out."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")
SCRIPT = Path(__file__).parents[2] / "benchmarks" / "triton_aot.py"
CORES = {"sm_80": {"mma.sync"}, "sm_90": {"mma.sync", "wgmma.mma_async"}, "sm_100": {"mma.sync", "tcgen05.mma"}}


def compiled(folder: Path, *arguments: str) -> list[dict[str, Any]]:
    """Rows of the table; the script itself fails on spills, too much shared memory, or missing tensor cores."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, str(SCRIPT), "--out", str(folder), *arguments]
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-5000:]
    return json.loads((folder / "triton-aot.json").read_text())["rows"]


def check(rows: list[dict[str, Any]]) -> None:
    assert {row["target"] for row in rows} == {*CORES, "gfx942"}
    for row in rows:
        if row["dtype"] == "bf16" and row["head_size"] <= 128:
            assert row["spills"] == 0
            if row["kernel"] == "decode" and row["target"].startswith("sm_") and row["head_size"] in (64, 128):
                assert row["registers"] <= (168 if row["warps"] == 4 else 255)
        if row["dtype"] == "bf16" and (row["kernel"] in ("prefill", "decode", "read") or "influence" in row["kernel"]):
            assert set(row["tensor_cores"].split("+")) <= CORES.get(row["target"], {"v_mfma"})
    choices = [row["contracted"] for row in rows if row["kernel"] == "page choice" and row["target"].startswith("sm_")]
    assert choices
    assert max(choices) <= 2  # its passes form the same bits
    hopper = [r for r in rows if r["kernel"] == "prefill" and r["target"] == "sm_90" and r["dtype"] == "bf16"]
    hopper = [r for r in hopper if r["head_size"] <= 256]  # above, tiles have fewer rows than the instruction needs
    assert hopper
    assert all("wgmma" in row["tensor_cores"] for row in hopper)


def test_most_used_configurations(tmp_path: Path) -> None:
    check(compiled(tmp_path, "--quick"))


@pytest.mark.full
def test_whole_matrix(tmp_path: Path) -> None:
    check(compiled(tmp_path))
