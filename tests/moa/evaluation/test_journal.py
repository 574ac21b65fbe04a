"""Results on disk after a kill or a power failure, and with two processes at once."""

import subprocess
import sys

import pytest

from moa.evaluation.journal import Journal
from moa.plans.errors import MoaError


def filled(path, count=3):
    journal = Journal(path)
    for i in range(count):
        journal.put(f"k{i}", {"value": i, "text": "ü"}, row="plan")
    return path.read_bytes()


def test_cut_at_every_byte_of_its_last_line_it_goes_on(tmp_path, caplog):
    path = tmp_path / "r.jsonl"
    raw = filled(path)
    start = raw[:-1].rfind(b"\n") + 1
    for cut in range(start, len(raw)):
        path.write_bytes(raw[:cut])
        caplog.clear()
        journal = Journal(path)
        assert [journal.get(f"k{i}") is not None for i in range(3)] == [True, True, False]
        assert len(caplog.messages) == (cut > start)
        journal.put("k2", {"value": 2, "text": "ü"}, row="plan")
        assert path.read_bytes() == raw
    assert len(list(tmp_path.glob("r.jsonl.damaged-*"))) == len(raw) - start - 1


@pytest.mark.parametrize(("old", "new"), [(b'"value": 1', b'"value": 7'), (b'{"value": 1, "text": ', b"[1, ")])
def test_a_result_that_was_changed_is_set_aside_with_what_follows(tmp_path, old, new, caplog):
    path = tmp_path / "r.jsonl"
    raw = filled(path)
    path.write_bytes(raw.replace(old, new))
    journal = Journal(path)
    assert [journal.get(f"k{i}") is not None for i in range(3)] == [True, False, False]
    assert "damaged from line 2 on" in caplog.text


def test_results_from_before_there_were_checks_are_read(tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_text('{"key": "a", "result": 5}\n')
    assert Journal(path).get("a") == 5


def test_what_another_process_left_half_is_not_added_to(tmp_path):
    path = tmp_path / "r.jsonl"
    filled(path, 1)
    journal = Journal(path)
    with path.open("ab") as file:
        file.write(b'{"key": "k1", "resul')
    journal.put("k2", 2)
    again = Journal(path)
    assert [again.get(f"k{i}") for i in (1, 2)] == [None, 2]


@pytest.mark.parametrize("content", [b"notes", b'{"key": 1, "result": 2}\n', b'{"key": "a"}\n', b"7\n"])
def test_another_file_is_refused_and_left_alone(tmp_path, content):
    path = tmp_path / "r.jsonl"
    path.write_bytes(content)
    with pytest.raises(MoaError, match="line 1: not a finished result"):
        Journal(path)
    assert path.read_bytes() == content


WORKER = """
import sys
from pathlib import Path
from moa.evaluation.journal import Journal
journal = Journal(Path(sys.argv[1]))
for i in range(40):
    journal.put(f"{sys.argv[2]}{i}", "x" * 20000)
    Journal(Path(sys.argv[1]))
"""


def test_two_processes_at_once_lose_nothing(tmp_path):
    path = tmp_path / "r.jsonl"
    filled(path)
    with path.open("ab") as file:
        file.write(b'{"key": "torn')
    workers = [subprocess.Popen([sys.executable, "-c", WORKER, str(path), name]) for name in "ab"]
    assert [worker.wait() for worker in workers] == [0, 0]
    journal = Journal(path)
    assert all(journal.get(f"{name}{i}") == "x" * 20000 for name in "ab" for i in range(40))
    assert all(journal.get(f"k{i}") for i in range(3))
    assert len(list(tmp_path.glob("r.jsonl.damaged-*"))) == 1
