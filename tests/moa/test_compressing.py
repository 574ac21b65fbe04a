"""`moa.compress`: one call from a model to a measured plan, that goes on where it was stopped."""

import json
import re
import shutil
import signal
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

import moa
from moa import compressing, stages
from moa.alternatives import alternatives
from moa.outcome import numbers
from moa.pacing import evaluation_counts
from moa.plans.errors import BudgetInfeasible, MoaError
from moa.plans.patterns import Rule
from moa.profiler.profile import Profile
from moa.search.cost import Costs
from moa.search.question import Question

LEAST = {"lengths": (576, 640), "minutes": 0.001, "seed": 3}
"""So little time that every stage does its least."""
FILES = {"compress.json", "profile.safetensors", "plan.yaml", "evaluation.json", "evaluation.jsonl", "figures.json",
         "report.html"}  # fmt: skip


@pytest.fixture(scope="module")
def whole(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> moa.compressing.Compressed:
    """The result of a run that nothing disturbed."""
    return moa.compress(model_folder, output=tmp_path_factory.mktemp("whole") / "out", budget=0.3, **LEAST)


def test_it_keeps_the_budget_and_says_what_the_plan_keeps(whole: Any, model_folder: Path) -> None:
    assert {path.name for path in whole.folder.iterdir()} == FILES
    assert json.loads((whole.folder / "figures.json").read_text()) == whole.figures
    plan = moa.Plan.load(whole.folder / "plan.yaml")
    assert plan == whole.plan
    assert plan.predicted.lengths == (576, 640, 1280, 2560)
    assert plan.density(2560) <= 0.3
    memory = whole.figures["memory"]
    assert (memory["length"], memory["dtype"]) == (2560, "float32")
    assert memory["kv_bytes"] == plan.kv_bytes(2560)
    assert memory["share"] == plan.kv_bytes(2560) / plan.model.dense_kv_bytes(2560)
    assert whole.figures["speed"]["read"] == pytest.approx(plan.density(2560))
    assert [row["row"] for row in whole.figures["rows"]] == ["dense", "plan", "uniform like plan"] * 2
    assert whole.figures["quality"]["questions"] == 2 * (1 + 4)
    assert whole.figures["evaluation"] == {"text": 1, "single": 1, "four": 1}
    assert whole.figures["profile"]["samples"] == 1
    with moa.apply(moa.load_model(model_folder)[0], "auto", budget=0.3) as applied:
        assert applied.plan == plan
    assert set(whole.figures["seconds"]) == {"calibrate", "profile", "search", "front", "evaluation"}
    assert whole.figures["named"] == str(model_folder)


def test_the_plan_stands_among_those_of_other_budgets(whole: Any) -> None:
    front, n = whole.figures["front"], 2560
    assert (front["kind"], front["length"], front["dtype"]) == ("density", n, "float32")
    [mine] = [each for each in front["plans"] if each["chosen"]]
    others = [each for each in front["plans"] if not each["chosen"]]
    assert mine["cost"] == mine["density"] == whole.plan.density(n) <= 0.3 == mine["budget"]
    assert (mine["read"], mine["kv_bytes"]) == (whole.plan.read_density(n), whole.plan.kv_bytes(n))
    assert mine["harm"] == whole.figures["search"]["harm"]
    costs = [each["cost"] for each in front["plans"]]
    assert costs == sorted(costs)
    assert others[-1]["harm"] == pytest.approx(0, abs=1e-9)
    assert others[-1]["cost"] > 0.5
    assert others[0]["cost"] < 0.3
    harms = [each["harm"] for each in front["plans"]]
    assert all(b <= 1.001 * a for a, b in pairwise(harms))  # up to the solver's gap
    assert len(others) >= 4


def test_dense_and_plan_are_timed_at_the_longest_length(whole: Any) -> None:
    runs = whole.figures["runs"]
    assert [(run["kind"], run["length"], run["batch"], run["predicted"]) for run in runs] == [
        ("prefill", 640, 1, None), ("decode", 640, 1, None)
    ]  # fmt: skip
    assert all(run[way] > 0 for run in runs for way in ("dense", "plan"))
    speed = numbers(whole.figures)[2]
    assert "reads" in speed
    assert re.search(r"a prefill of 640 tokens took [\d.]+ ms, dense [\d.]+ ms; a decode step after 640", speed)


def test_the_result_stands_for_its_plan(whole: Any, model_folder: Path) -> None:
    model, tokenizer = moa.load_model(model_folder)
    with moa.apply(model, whole) as applied:
        assert applied.plan == whole.plan
    with pytest.raises(MoaError, match=r"the second value is a loaded model's tokenizer; .* output='out'"):
        moa.compress(model_folder, "out")
    with pytest.raises(MoaError, match="a name or a pair has its own"):
        moa.compress(model_folder, tokenizer)
    with pytest.raises(MoaError, match="a loaded model needs its tokenizer"):
        moa.compress(model)


def test_without_an_output_the_folder_is_the_question_s_in_the_cache(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOA_CACHE", str(tmp_path / "cache"))
    model, tokenizer = moa.load_model(model_folder)
    found = moa.compress(model, tokenizer, budget=0.3, **LEAST)
    assert found.folder.parent == tmp_path / "cache" / "compress"
    assert found.plan == moa.Plan.load(found.folder / "plan.yaml")
    for name in ("pass_pace", "profile_model", "find_plan", "evaluate_plans", "evaluation_counts"):
        monkeypatch.setattr(stages, name, never)
    assert moa.compress(model, tokenizer, budget=0.3, **LEAST).folder == found.folder


def never(*_: Any, **__: Any) -> None:
    raise AssertionError("there is no need of this")


def test_run_again_it_does_nothing_twice(whole: Any, model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "pass_pace", "profile_model", "find_plan", "evaluate_plans", "evaluation_counts", "alternatives", "bench_plan"
    ):  # fmt: skip
        monkeypatch.setattr(stages, name, never)
    again = moa.compress(model_folder, output=whole.folder, budget=0.3, **LEAST)
    assert again.plan == whole.plan
    del again.figures["seconds"]["calibrate"], whole.figures["seconds"]["calibrate"]
    assert again.figures == whole.figures


@pytest.mark.parametrize(
    "stage",
    [
        "profile, text.640.0", "search, rules", "front, other budgets", "evaluation, times", "evaluation, pace",
        "evaluation, 576 tokens",
    ],
)  # fmt: skip
def test_stopped_and_run_again_it_goes_on(whole: Any, model_folder: Path, tmp_path: Path, stage: str) -> None:
    def stop(_done: int, _total: int, what: str) -> None:
        if what.startswith(stage):
            raise KeyboardInterrupt

    pair, output, seen = moa.load_model(model_folder), tmp_path / "out", []
    with pytest.raises(KeyboardInterrupt):
        moa.compress(pair, output=output, budget=0.3, **LEAST, progress=stop)
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*") if path.suffix in (".safetensors", ".yaml")}
    found = moa.compress(pair, output=output, budget=0.3, **LEAST, progress=lambda *told: seen.append(told))
    assert before
    assert all(path.stat().st_mtime_ns == time for path, time in before.items() if path.exists())
    assert found.plan.fingerprint() == whole.plan.fingerprint()
    assert found.figures["rows"] == whole.figures["rows"]
    assert [done for done, _, _ in seen] == sorted(done for done, _, _ in seen)
    assert len({total for _, total, _ in seen}) == 1
    assert seen[-1] == (seen[-1][1], seen[-1][1], "evaluation, all done")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"budget": 0.4}, r"holds another question .*budgets: \{'density': 0.3\} against \{'density': 0.4\}"),
        ({"seed": 4}, "holds another question .*seed: 3 against 4; name another"),
        ({"lengths": None}, r"holds another question .*lengths: \[576, 640\] against None"),
    ],
)
def test_a_folder_of_another_question_is_refused(whole: Any, model_folder: Path, changes: Any, says: str) -> None:
    before = {path: path.read_bytes() for path in whole.folder.iterdir()}
    with pytest.raises(MoaError, match=says):
        moa.compress(model_folder, output=whole.folder, **{"budget": 0.3, **LEAST, **changes})
    assert before == {path: path.read_bytes() for path in whole.folder.iterdir()}


def test_another_model_is_another_question(whole: Any, model_folder: Path) -> None:
    model, tokenizer = moa.load_model(model_folder)
    model.lm_head.weight.data[0, 0] += 1
    with pytest.raises(MoaError, match=r"holds another question .*weights"):
        moa.compress((model, tokenizer), output=whole.folder, budget=0.3, **LEAST)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"budget": 0.01}, r"the smallest feasible value is 0.075; the texts are too short .* from 32,768 tokens on"),
        ({"budget": {"kv_gb": "0.00001@640"}}, "in bfloat16: the smallest feasible value is [-0-9.e]+$"),
        ({"budget": {}}, "at least one budget"),
        ({"budget": {"speed": 2}}, "a budget is one of"),
        ({"minutes": 0}, "minutes must be over 0"),
        ({"lengths": (8192,)}, "over the model's maximum"),
        ({"max_length": 100}, "longest intended length must be an integer from 640"),
    ],
)
def test_what_cannot_be_is_refused_before_the_model_is_loaded(
    changes: Any, says: str, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compressing, "loaded", never)
    with pytest.raises(MoaError, match=says):
        moa.compress(model_folder, output=tmp_path / "out", **{"budget": 0.3, **LEAST, **changes})
    assert not (tmp_path / "out").exists()


def test_texts_that_no_question_fits_into_are_refused_before_the_work(model_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(MoaError, match="haystack"):
        moa.compress(model_folder, output=tmp_path / "out", budget=0.9, lengths=(256,))
    assert not (tmp_path / "out").exists()


def test_a_file_of_other_work_is_not_taken_for_a_stage(whole: Any, model_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to("nowhere")
    for name in ("file", "link"):
        with pytest.raises(MoaError, match="it is not a folder"):
            moa.compress(model_folder, output=tmp_path / name, budget=0.3, **LEAST)
    shutil.copy(whole.folder / "plan.yaml", tmp_path)
    with pytest.raises(MoaError, match=r"plan.yaml is there without a compress.json"):
        moa.compress(model_folder, output=tmp_path, budget=0.3, **LEAST)
    (tmp_path / "compress.json").write_text('{"asked": {}, "profile": {"lengths": []}}')
    with pytest.raises(MoaError, match=r"compress.json is not a file of `moa compress`.*lengths"):
        moa.compress(model_folder, output=tmp_path, budget=0.3, **LEAST)


def test_a_budget_of_reads_lets_rules_read_less_than_they_keep(model_folder: Path, tmp_path: Path) -> None:
    found = moa.compress(model_folder, output=tmp_path / "out", budget={"read": 0.25}, **LEAST)
    assert Profile.load(found.folder / "profile.safetensors").reads is not None
    assert found.plan.read_density(2560) <= 0.25
    assert found.figures["speed"]["read"] == found.plan.read_density(2560)
    front = found.figures["front"]
    assert front["kind"] == "read"
    assert all(each["cost"] == each["read"] for each in front["plans"])
    assert min(each["read"] for each in front["plans"]) < 0.25


def test_reads_that_a_model_cannot_are_refused_at_once(save_tiny: Any, tmp_path: Path) -> None:
    save_tiny(tmp_path / "model", head_dim=6)
    with pytest.raises(MoaError, match="head size that is a multiple of 4, found 6, so nothing less can be asked for"):
        moa.compress(tmp_path / "model", output=tmp_path / "out", budget={"read": 0.25}, **LEAST)
    assert not (tmp_path / "out").exists()


def test_milliseconds_are_predicted_from_costs_measured_once(model_folder: Path, tmp_path: Path) -> None:
    pair, budget = moa.load_model(model_folder), {"density": 0.6, "decode_ms": "1000@640x2"}
    found = moa.compress(pair, output=tmp_path / "out", budget=budget, **LEAST)
    costs = (tmp_path / "out" / "costs.json").read_bytes()
    assert {(row["kind"], row["batch"]) for row in json.loads(costs)["measured"]} == {
        ("decode", 1), ("decode", 4), ("prefill", 1),
    }  # fmt: skip
    assert Costs.model_validate_json(costs).know_reads
    [time] = found.figures["speed"]["times"]
    assert (time["kind"], time["length"], time["batch"]) == ("decode", 640, 2)
    assert 0 < time["predicted"] <= 1000
    assert time["measured"] > 0
    assert "decode of 2 x 640 tokens" in numbers(found.figures)[2]
    assert all(run["predicted"] > 0 for run in found.figures["runs"])
    front = found.figures["front"]
    assert (front["kind"], front["batch"]) == ("density", 1)
    assert {"evaluation", "front", "costs"} <= found.figures["seconds"].keys()
    moa.compress(pair, output=tmp_path / "out", budget=budget, **LEAST)
    assert (tmp_path / "out" / "costs.json").read_bytes() == costs
    with pytest.raises(BudgetInfeasible, match="decode_ms"):
        moa.compress(pair, output=tmp_path / "other", budget={"decode_ms": "1e-9@640"}, **LEAST)
    assert not (tmp_path / "other").exists()


def test_stopped_among_the_costs_it_goes_on_with_the_runs_to_come(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed: list[str] = []

    def runner(model: Any, backend: Any) -> Any:
        def run(plan: Any, work: Any) -> list[float]:
            timed.append(str(work))
            if len(timed) == 20:
                raise KeyboardInterrupt
            return [float(len(timed)), float(len(timed))]

        return run

    monkeypatch.setattr("moa.measuring.runner", runner)
    asked: Any = {"output": tmp_path / "out", "budget": {"prefill_ms": "1000000@576"}, **LEAST}
    with pytest.raises(KeyboardInterrupt):
        moa.compress(model_folder, **asked)
    assert not (tmp_path / "out").exists()
    when: list[int] = []
    moa.compress(model_folder, note=lambda _: when.append(len(timed)), **asked)
    runs = 6 * 3 * 2  # plans; kinds of work; lengths
    assert when[0] == runs + 1  # the one that was stopped


KILLED = """
import sys, time, moa
def stop(done, total, what):
    if what.startswith(sys.argv[3]):
        print(what, flush=True)
        time.sleep(600)
moa.compress(sys.argv[1], output=sys.argv[2], budget={"density": 0.6, "prefill_ms": "1000000@576"}, lengths=(576,),
             minutes=0.001, progress=stop)
"""


def test_killed_in_any_stage_and_run_again_it_goes_on(model_folder: Path, tmp_path: Path) -> None:
    """Each run is killed by the system further on than the one before, and none does again what was finished."""
    output, kept = tmp_path / "out", dict[Path, bytes]()
    finished = ("costs.json", "profile.safetensors", "plan.yaml")
    for stage, files in (("costs, ", 0), ("profile, ", 1), ("evaluation, 576 tokens", 3)):
        line = [sys.executable, "-c", KILLED, str(model_folder), str(output), stage]
        with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
            assert process.stdout is not None
            told = process.stdout.readline()
            process.kill()
        assert told.startswith(stage)
        assert process.returncode == -signal.SIGKILL
        assert all(path.read_bytes() == content for path, content in kept.items())
        kept = {output / name: (output / name).read_bytes() for name in finished if (output / name).exists()}
        assert len(kept) == files
    samples = (output / "evaluation.jsonl").read_bytes()
    assert samples
    budget = {"density": 0.6, "prefill_ms": "1000000@576"}
    found = moa.compress(model_folder, output=output, budget=budget, lengths=(576,), minutes=0.001)
    assert all(path.read_bytes() == content for path, content in kept.items())
    assert (output / "evaluation.jsonl").read_bytes().startswith(samples)
    assert found.plan.density(2304) <= 0.6
    assert [row["row"] for row in found.figures["rows"]] == ["dense", "plan", "uniform like plan"]


def test_a_front_stops_when_its_time_is_over_and_says_so(
    whole: Any, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    question = Question.of(whole.folder / "profile.safetensors", {"density": 0.3}, "test")
    told: list[str] = []
    row = alternatives(question, whole.plan, 1.0, 1e-9, told.append)
    assert [each.chosen for each in row.plans] == [False, True]
    assert len(told) == 1
    assert "seconds were over at density<=" in told[0]
    both = Question.of(whole.folder / "profile.safetensors", {"density": 0.3, "kv_gb": "1@640"}, "test")

    def none(*_: Any) -> Any:
        raise BudgetInfeasible("not together")

    monkeypatch.setattr("moa.alternatives.Front", none)
    row = alternatives(both, whole.plan, 1.0, 60, told.append)
    assert [each.chosen for each in row.plans] == [True]
    assert told[1] == "front: it ends early: not together"


@pytest.mark.parametrize(
    ("budgets", "cost"),
    [
        ({"kv_gb": "1@640x3"}, lambda plan: plan.kv_bytes(640, 3, "bfloat16") / 1e9),
        ({"density": "0.5@640", "kv_gb": 1}, lambda plan: plan.density(640)),
    ],
)
def test_a_front_is_along_the_first_budget(whole: Any, budgets: Any, cost: Any) -> None:
    question = Question.of(whole.folder / "profile.safetensors", budgets, "test", kv_dtype="bfloat16")
    row = alternatives(question, whole.plan, 1.0, 60, never)
    assert [each.cost for each in row.plans if each.chosen] == [cost(whole.plan)]
    assert row.plans[-1].cost == pytest.approx(cost(moa.Plan.dense(whole.plan.model)))


def test_a_front_keeps_the_other_budgets(whole: Any) -> None:
    budgets = {"kv_gb": "1@2560", "density": "0.5@2560"}
    question = Question.of(whole.folder / "profile.safetensors", budgets, "test")
    plans = alternatives(question, whole.plan, 1.0, 60, never).plans
    assert max(each.density for each in plans) <= 0.5
    assert len(plans) >= 3


def test_more_time_asks_for_more(whole: Any, model_folder: Path) -> None:
    pair = moa.load_model(model_folder)
    little, much = (evaluation_counts(pair, whole.plan, (576, 640, 704), room) for room in (0.0, 1e6))
    assert little == {"text": 1, "single": 1, "four": 1}
    assert much == {"text": 2, "single": 20, "four": 20}
    reading = moa.Plan.from_rules(pair[0], {}, defaults=Rule(alpha=0, beta=1, read=0.25))
    assert evaluation_counts(pair, reading, (576, 640), 0.0) == {"text": 1, "decoded": 1, "single": 1, "four": 1}
