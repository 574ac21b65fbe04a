"""`benchmarks/attention_cpu.py` at a small size: every variant, and what the file says of its run."""

import json
import sys
from importlib import import_module


def test_variants_and_provenance(tmp_path, monkeypatch, capsys):
    script, out = import_module("attention_cpu"), tmp_path / "found.json"
    options = ["--length", "1024", "--batch", "2", "--layers", "2", "--repeats", "2", "--json", str(out)]
    monkeypatch.setattr(sys, "argv", ["attention_cpu.py", *options])
    script.main()
    found = json.loads(out.read_text())
    prefill, decode = found["results"]
    assert set(prefill["ms"]) == {"dense", *script.MIXES}
    backends = (f"{mix} {name}" for mix in script.MIXES for name in ("torch", "numba"))
    assert set(decode["ms"]) == {"repeat_kv", "enable_gqa", *backends}
    assert all(x["median"] > 0 and x["iqr"] >= 0 for case in found["results"] for x in case["ms"].values())
    assert found["repeats"] == 2
    assert {"command", "commit", "device", "seed"} <= set(found["run"])
