"""That each fault can be planted, and that the verdicts are right on a tree of a few lines."""

import os
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from moa.evaluation.journal import Journal

ROOT = Path(__file__).parents[2]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    import run

    return run


def test_every_fault_can_be_planted_and_names_tests_that_exist(run: ModuleType) -> None:
    faults = run.faults()
    assert len(faults) >= 60
    for fault in faults:
        assert fault.planted((ROOT / fault.file).read_text()) != (ROOT / fault.file).read_text(), fault.name
        for test in fault.tests:
            path, _, name = test.partition("::")
            if name:
                assert re.search(rf"^def {name.partition('[')[0]}\(", (ROOT / path).read_text(), re.M), fault.name
            assert "/" not in test or (ROOT / path).is_file(), fault.name


def test_faults_lie_as_their_sources_do_and_all_are_found(run: ModuleType) -> None:
    """`moa/hf.yaml` is of the folder moa/hf, `search/solver.yaml` of a subject in the folder search."""
    here, names = Path(__file__).parent, []
    for path in here.rglob("*.yaml"):
        room = path.relative_to(here).with_suffix("")
        of = room if (ROOT / room).is_dir() else room.parent
        found = yaml.safe_load(path.read_text())
        assert all(Path(fault["file"]).is_relative_to(of) for fault in found), path
        names += [fault["name"] for fault in found]
    assert sorted(names) == sorted(fault.name for fault in run.faults())
    assert {Path(fault.file).parts[0] for fault in run.faults()} <= set(run.DECIDING)


SUM = """
def total(numbers):
    found = 0
    for number in numbers:
        found += number
    return found
"""
TESTS = """
from moa.sums import total

def test_total():
    assert total([1, 2]) == 3

def test_wrong_anyway():
    assert total([1]) == 2
"""


def test_verdicts(run: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in (("moa/__init__.py", ""), ("moa/sums.py", SUM), ("tests/test_sums.py", TESTS)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    good, wrong = (f"tests/test_sums.py::test_{name}" for name in ("total", "wrong_anyway"))
    faults = [
        run.Fault("sign", "moa/sums.py", "+=", "-=", [good]),
        run.Fault("start", "moa/sums.py", "found = 0", "found = 0.0", [good]),
        run.Fault("syntax", "moa/sums.py", "for number", "fro number", [good]),
        run.Fault("gone", "moa/sums.py", "subtract", "add", [good]),
        run.Fault("anyway", "moa/sums.py", "+=", "-=", [wrong]),
    ]
    journal = Journal(tmp_path / "verdicts.jsonl")
    before = dict(os.environ), list(sys.path)
    found = run.judge(tmp_path, faults, journal, limit=120, jobs=1)
    assert (dict(os.environ), list(sys.path)) == before
    assert {name: outcome.verdict for name, outcome in found.items()} == {
        "sign": "killed", "start": "survived", "syntax": "broken", "gone": "broken", "anyway": "broken",
    }  # fmt: skip
    assert found["sign"].by == good
    assert found["gone"].by == "the old text occurs 0 times in moa/sums.py"
    assert found["anyway"].by.endswith("fails without the fault too")
    assert (tmp_path / "moa" / "sums.py").read_text() == SUM
    monkeypatch.setattr(run.Copy, "judge", None)  # what is known is not tried again
    again = run.judge(tmp_path, faults[:2], Journal(tmp_path / "verdicts.jsonl"), limit=120, jobs=1)
    assert again == {name: found[name] for name in ("sign", "start")}
