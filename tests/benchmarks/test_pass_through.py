"""`benchmarks/pass_through.py` on a tiny hybrid: both phases are timed side by side."""

import json
import sys
from importlib import import_module


def test_rows_and_the_aim(tmp_path, monkeypatch):
    script = import_module("pass_through")
    monkeypatch.setattr(script, "SHAPE", {})
    monkeypatch.setattr(
        sys, "argv", ["pass_through.py", "--lengths", "70", "--rounds", "2", "--results", str(tmp_path)]
    )
    assert script.main() == 0
    found = json.loads((tmp_path / "pass_through.json").read_text())
    assert [(row["length"], row["phase"]) for row in found["rows"]] == [(70, "prefill"), (70, "decode step")]
    for row in found["rows"]:
        assert len(row["bare"]["seconds"]) == len(row["dense plan"]["seconds"]) >= 2
        assert row["ratio"] == row["dense plan"]["median"] / row["bare"]["median"]
    [aim] = found["claims"]
    assert aim["measured"] == max(row["ratio"] for row in found["rows"])
    assert "| 70 | decode step |" in (tmp_path / "pass_through.md").read_text()
