"""A study's journal after a kill or a power failure, and with several workers."""

import subprocess
import sys
from pathlib import Path

import optuna
import pytest

from moa.plans.errors import MoaError
from moa.search.storage import open_storage, starts_again
from moa.search.study import open_study

optuna.logging.set_verbosity(optuna.logging.WARNING)


def run_trial(study: optuna.Study, value: float) -> None:
    trial = study.ask()
    trial.suggest_float("x", 0, 1)
    trial.report(value, 0)
    trial.set_user_attr("rules", "ü")
    study.tell(trial, value)


@pytest.fixture(scope="module")
def journal(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Two finished trials."""
    path = tmp_path_factory.mktemp("journal") / "trials.log"
    study = open_study("a", str(path))
    for value in (1.0, 2.0):
        run_trial(study, value)
    return path.read_bytes()


def values(path: Path) -> list[float]:
    return [trial.value for trial in open_study("a", str(path)).trials if trial.value is not None]


def damaged(path: Path) -> list[Path]:
    return sorted(path.parent.glob(f"{path.name}.damaged-*"))


def goes_on(path: Path, before: list[float]) -> None:
    """A third trial, and the study opens again, and again."""
    run_trial(open_study("a", str(path)), 3.0)
    assert values(path) == [*before, 3.0]
    assert values(path) == [*before, 3.0]


def test_cut_at_every_byte_of_its_last_record_it_goes_on(journal, tmp_path, caplog):
    start = journal[:-1].rfind(b"\n") + 1
    for cut in range(start + 1, len(journal)):
        path = tmp_path / f"{cut}.log"
        path.write_bytes(journal[:cut])
        caplog.clear()
        assert values(path) == [1.0]  # the record that ended the second trial is lost
        assert damaged(path)[0].read_bytes() == journal[start:cut]
        assert [f"{len(journal[start:cut])} bytes set aside in {damaged(path)[0]}" in said for said in caplog.messages]
        if cut % 16 == 0 or cut == len(journal) - 1:
            goes_on(path, [1.0])


def test_cut_in_any_record_it_goes_on(journal, tmp_path):
    ends = [i + 1 for i, byte in enumerate(journal) if byte == ord("\n")]
    for i, end in enumerate(ends):
        for cut in (end - 1, end, end + 7):
            path = tmp_path / f"{i}-{cut}.log"
            path.write_bytes(journal[:cut])
            goes_on(path, values(path))


@pytest.mark.parametrize("tail", [b"\0" * 4096, b"\xff\xfe\n", b"garbage\n", b'{"op_code":4,"worker_id":"1'])
def test_garbage_at_the_end_is_set_aside(journal, tmp_path, tail):
    path = tmp_path / "trials.log"
    path.write_bytes(journal + tail)
    assert values(path) == [1.0, 2.0]
    assert damaged(path)[0].read_bytes() == tail
    goes_on(path, [1.0, 2.0])


def test_a_record_glued_to_half_of_another_is_set_aside_with_all_that_builds_on_it(journal, tmp_path):
    path = tmp_path / "trials.log"
    lines = journal.splitlines(keepends=True)
    torn = lines[-1][:20] + b"".join(lines[2:5])
    path.write_bytes(b"".join(lines[:-1]) + torn)
    assert values(path) == [1.0]
    assert damaged(path)[0].read_bytes() == torn
    goes_on(path, [1.0])


@pytest.mark.parametrize("content", [b"", b"\0" * 4096, b'{"op_co'])
def test_an_empty_journal_is_a_new_one(tmp_path, content):
    path = tmp_path / "trials.log"
    path.write_bytes(content)
    goes_on(path, [])


def test_a_worker_adds_to_no_half_record_that_another_left(journal, tmp_path):
    path = tmp_path / "trials.log"
    path.write_bytes(journal)
    mine, other = open_study("a", str(path)), open_study("a", str(path))
    run_trial(other, 3.0)
    torn = b'{"op_code":5,"worker_id":"dead","trial_id":1,"sta'
    with path.open("ab") as file:
        file.write(torn)  # a third one died while it wrote
    run_trial(mine, 4.0)
    run_trial(other, 5.0)
    assert values(path) == [1.0, 2.0, 3.0, 4.0, 5.0]
    assert damaged(path)[0].read_bytes() == torn
    for study in (mine, other):
        assert [trial.value for trial in study.trials] == [1.0, 2.0, 3.0, 4.0, 5.0]


WORKER = """
import sys, optuna
from moa.search.study import open_study
optuna.logging.set_verbosity(optuna.logging.ERROR)
study = open_study("a", sys.argv[1])
for i in range(15):
    trial = study.ask()
    study.tell(trial, float(i))
"""


def test_two_workers_at_once_lose_nothing_of_a_damaged_journal(journal, tmp_path):
    path = tmp_path / "trials.log"
    path.write_bytes(journal + b'{"op_code":5,"wor')
    workers = [subprocess.Popen([sys.executable, "-c", WORKER, str(path)]) for _ in range(2)]
    assert [worker.wait() for worker in workers] == [0, 0]
    assert sorted(values(path)) == sorted([1.0, 2.0, *(2 * [float(i) for i in range(15)])])
    assert len(damaged(path)) == 1


def test_no_lock_is_left(journal, tmp_path):
    path = tmp_path / "trials.log"
    path.write_bytes(journal + b"{")
    open_storage(str(path))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["trials.log", "trials.log.damaged-1"]


def test_a_folder_is_no_journal(tmp_path):
    with pytest.raises(MoaError, match=f"cannot open --storage {tmp_path}: Is a directory"):
        open_storage(str(tmp_path))


def test_a_storage_that_has_only_other_studies_is_said(journal: bytes, tmp_path: Path) -> None:
    path = tmp_path / "trials.log"
    assert starts_again(None, "b") == starts_again(str(path), "b") == ""
    path.write_bytes(journal)
    assert starts_again(str(path), "a") == ""
    assert starts_again(str(path), "b").startswith(f"{path} has 1 study, not of this model")


def test_a_record_that_optuna_takes_for_something_else_is_said_without_words_of_its_code(journal, tmp_path):
    path = tmp_path / "trials.log"
    assert journal.count(b'\\"high\\"') >= 1
    path.write_bytes(journal.replace(b'\\"high\\"', b'\\"hagh\\"', 1))
    with pytest.raises(MoaError, match=f"cannot open --storage {path}: a line of it is damaged$"):
        open_storage(str(path))
