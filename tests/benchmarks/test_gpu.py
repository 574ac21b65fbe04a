"""The device benchmark's code paths, at tiny sizes under the interpreter."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu.py"


@pytest.mark.parametrize("part", ["correctness", "kernels", "end-to-end", "influence"])
def test_dry_run(part: str, tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--part", part, "--dry", "--out", str(tmp_path)]
    run = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    report = json.loads((tmp_path / f"gpu-{part}.json").read_text())
    assert report["rows"]
    assert report["not_run"] == []
    assert "dry run" in report["device"]
    assert "| " in (tmp_path / f"gpu-{part}.md").read_text()
