"""`benchmarks/profile_cost.py` on a tiny model: all passes measured, going on where it stopped."""

import json
import sys
from importlib import import_module

import pytest


def test_rows_and_going_on(model_folder, tmp_path, monkeypatch):
    script = import_module("profile_cost")
    freed = []
    monkeypatch.setattr(script, "return_freed", lambda *size: freed.append(size))  # of this whole process
    options = ["--lengths", "192", "320", "--repeats", "2", "--results", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["profile_cost.py", str(model_folder), *options])
    measured, calls = script.measure, []

    def measure(model, length):
        calls.append(length)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return measured(model, length)

    measured_of = []
    monkeypatch.setattr(script.Effects, "table", lambda effects, squared: measured_of.append(effects.rows))
    monkeypatch.setattr(script, "measure", measure)
    with pytest.raises(KeyboardInterrupt):
        script.main()
    assert script.main() == 0
    assert calls == [256, 192, 320, 192, 256, 192, 192, 320, 320]  # each run begins with one to warm up
    found = json.loads((tmp_path / "profile_cost.json").read_text())
    assert [row["length"] for row in found["rows"]] == [192, 320]
    for row in found["rows"]:
        assert row["plain"]["seconds"] > 0
        assert row["fisher"]["iqr"] >= 0
        assert row["reads"]["seconds"] > 0
    assert found["claims"][0]["measured"] == max(row["ratio"] for row in found["rows"])
    assert [c["measured"] for c in found["claims"][1:]] == [row["reads_ratio"] for row in found["rows"]]
    assert "192 tokens" in found["claims"][1]["claim"]
    assert len(measured_of) == len(calls) - 1  # one was stopped before it began
    assert set(freed) == {()}  # as the command has it, for memory and time
    assert found["freed"] == 4 << 20
    assert (found["run"]["seeds"], found["run"]["runs"]) == ([192, 320], 2)
    assert found["run"]["commit"]
    monkeypatch.setattr(script, "measure", None)
    assert script.main() == 0
