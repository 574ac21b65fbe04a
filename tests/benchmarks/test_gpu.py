"""The device benchmark's code paths, at tiny sizes under the interpreter."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")
SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu.py"


PARTS = ["correctness", "decode", "reads", "prefill", "end-to-end", "influence"]


def test_dry_run(tmp_path: Path) -> None:
    """One command runs all parts; every mix but the dense one drops keys."""
    command = [sys.executable, str(SCRIPT), "--dry", "--out", str(tmp_path)]
    run = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    for part in PARTS:
        report = json.loads((tmp_path / f"gpu-{part}.json").read_text())
        assert report["rows"]
        assert report["not_run"] == []
        assert "dry run" in report["device"]
        assert "| " in (tmp_path / f"gpu-{part}.md").read_text()
        for row in report["rows"] if part in ("decode", "prefill") else ():
            assert (row.get("kept", row.get("density")) < 0.99) == (row["mix"] != "dense")


def test_a_cell_without_memory_is_noted_and_the_next_one_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    from gpu_parts.measure import Bench

    bench = Bench(dry=True)
    bench.allow(1)

    def too_large() -> list[dict[str, int]]:
        raise torch.OutOfMemoryError("out of memory: 80 GB\nmore")

    assert bench.cell("large", too_large) == []
    assert bench.cell("small", lambda: [{"a": 1}]) == [{"a": 1}]
    assert bench.skipped == ["large: out of memory: 80 GB"]


@pytest.mark.parametrize("part", ["read", "decode"])
def test_sizes_that_are_too_large_are_noted(monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    from gpu_parts import kernels, reads
    from gpu_parts.measure import Bench

    bench = Bench(dry=True)
    bench.allow(1)
    found = {"read": reads.sizes, "decode": kernels.decode_sizes}[part](bench)
    assert (65536, 16) in found
    assert bench.skipped == [
        f"{part} 131072 x 64: its cache takes 34.4 GB, of at most 16",
        f"{part} 65536 x 64: its cache takes 17.2 GB, of at most 16",
    ]
    assert len(found) == 18
