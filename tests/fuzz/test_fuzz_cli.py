"""A slice of the fuzzed command lines, and that the judge sees each kind of fault."""

import json
import os
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import moa.report.plan
from moa.plans.errors import MoaError

SLICE = range(120)


@pytest.fixture(scope="module")
def fuzz(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The parts of the script, and a workplace."""
    folder = tmp_path_factory.mktemp("workplace")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parent)
        names = ("cases", "change", "rule", "workplace")
        parts = {name: import_module(f"fuzz_parts.{name}") for name in names}
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        patch.chdir(folder)
        parts["workplace"].make(folder)
        yield SimpleNamespace(**parts, folder=folder, plain={})


def judged(fuzz: Any, line: str, *changes: Any) -> list[str]:
    base = next(base for base in fuzz.cases.BASES if " ".join(base.line) == line)
    return fuzz.rule.judge(fuzz.cases.Case(0, base, changes), fuzz.folder, fuzz.plain)[1]


def test_a_slice(fuzz: Any) -> None:
    failures = []
    for seed in SLICE:
        case = fuzz.cases.draw(seed)
        if problems := fuzz.rule.judge(case, fuzz.folder, fuzz.plain)[1]:
            failures.append(f"python tests/fuzz/fuzz_cli.py --seed {seed}: {'; '.join(problems)}")
    assert not failures, "\n".join(failures)


def test_plain_lines_are_right(fuzz: Any) -> None:
    commands = set(import_module("moa.cli.main").COMMANDS) - {"serve"}  # which becomes a server
    assert {base.command for base in fuzz.cases.BASES} == commands
    for base in fuzz.cases.BASES:
        outcome, problems, found = fuzz.rule.judge(fuzz.cases.Case(0, base, ()), fuzz.folder, fuzz.plain)
        assert (outcome, problems) == ("right", []), (base.line, found)


def test_cases_are_the_same_every_time(fuzz: Any) -> None:
    for seed in range(50):
        one, two = fuzz.cases.draw(seed), fuzz.cases.draw(seed)
        assert one.line == two.line
        assert [c.what for c in one.changes] == [c.what for c in two.changes]


def planted(monkeypatch: pytest.MonkeyPatch, error: BaseException | None, said: str = "") -> None:
    whole = moa.report.plan.costs

    def costs(*args: Any) -> Any:
        if said:
            print(said, file=sys.stderr)
        if error is not None:
            raise error
        return replace(whole(*args), title="Other costs")

    monkeypatch.setattr(moa.report.plan, "costs", costs)


@pytest.mark.parametrize(
    ("error", "said", "problem"),
    [
        (KeyError("layers"), "", "KeyError in "),
        (SystemExit(3), "", "exit code 141"),
        (MoaError("'NoneType' object is not iterable"), "", "an error in words of Python"),
        (MoaError("x " * 1000), "", "an error of 2"),
        (MoaError("alpha must be an integer"), "and a warning", "2 lines on stderr"),
        (None, "", "another answer"),
    ],
)
def test_the_judge_sees(
    fuzz: Any, monkeypatch: pytest.MonkeyPatch, error: BaseException | None, said: str, problem: str
) -> None:
    same = fuzz.change.Change("nothing", "same")
    assert judged(fuzz, "show plan.yaml", same) == []  # and notes the plain answer
    planted(monkeypatch, error, said)
    assert any(found.startswith(problem) for found in judged(fuzz, "show plan.yaml", same))


def test_the_judge_sees_what_should_have_been_refused_and_what_was_changed(
    fuzz: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert judged(fuzz, "show plan.yaml", fuzz.change.Change("nothing", "bad")) == ["accepted"]

    def costs(*_: Any) -> None:
        Path("plan.yaml").write_text("")
        raise MoaError("the plan is empty now")

    monkeypatch.setattr(moa.report.plan, "costs", costs)
    assert judged(fuzz, "show plan.yaml") == ["refused, but changed plan.yaml"]
    assert os.stat(fuzz.folder / "plan.yaml").st_size  # the case had a copy


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(Path(__file__).parent)
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    return import_module("fuzz_cli")


def result(first: int, last: int, **run: str) -> dict[str, Any]:
    about = {"command": f"python x.py --seeds {first}:{last}", "commit": "abc", "date": "2026-11-28", "torch": "2.13"}
    return {
        "run": about | run, "seeds": [first, last], "seconds": 1.5, "compared": 2, "failures": [{"seed": first}],
        "commands": {"show": {"right": 3, "refused": last - first - 3}},
    }  # fmt: skip


def test_results_of_one_commit_are_added_up(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def summed(*parts: dict[str, Any]) -> Any:
        for i, part in enumerate(parts):
            (tmp_path / f"{i}.json").write_text(json.dumps(part))
        given = ["--sum", *(str(tmp_path / f"{i}.json") for i in range(len(parts))), "-o", str(tmp_path / "all.json")]
        monkeypatch.setattr(sys, "argv", ["fuzz_cli.py", *given])
        return script.main()

    assert summed(result(10, 20), result(0, 10, date="2026-11-27")) == 1  # there are failures
    found = json.loads((tmp_path / "all.json").read_text())
    assert found["run"]["commit"] == "abc"
    assert "--sum" in found["run"]["command"]
    assert found["seeds"] == [0, 20]
    assert found["commands"] == {"show": {"right": 6, "refused": 14}}
    assert (found["cases"], found["compared"], found["seconds"]) == (20, 4, 3.0)
    assert [failure["seed"] for failure in found["failures"]] == [0, 10]
    assert summed(result(0, 10), result(10, 20, commit="def")) == 2
    assert "must be of one commit, found abc and def" in capsys.readouterr().err
    assert summed(result(0, 10), result(20, 30)) == 2
    assert "seeds must follow one another" in capsys.readouterr().err
