"""`moa measure`, and what `moa search` does with its costs: with a model."""

import json
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

import moa
from moa import measuring
from moa.cli import main as cli
from moa.evaluation.journal import Journal
from moa.plans.model import ModelInfo
from moa.plans.plan import Plan
from moa.profiler.profile import Profile
from moa.profiler.read_tables import ReadTables
from moa.search.cost import Costs, Work


@pytest.fixture(scope="module")
def folder(save_tiny, tmp_path_factory):
    """A tiny model with its tokenizer, a profile of it and one of another model."""
    path = tmp_path_factory.mktemp("model")
    model = save_tiny(path)
    info = ModelInfo.of(model)
    rng = np.random.default_rng(0)
    table = np.tril(rng.exponential(1.0, (1, 2, 2, 8, 8))).astype(np.float32)
    table[..., 0] = 0
    for name, shape in (("profile", info), ("other", info.model_copy(update={"head_size": 32}))):
        Profile(shape, (("sink_window", 64),), {("text", 512): table}, {("text", 512): 9}, {("text", 512): 1}).save(
            path / f"{name}.safetensors"
        )
    return path


@pytest.fixture
def run(folder, moa_in):
    return partial(moa_in, folder)


@pytest.fixture(scope="module")
def costs(folder):
    """Costs of the model, measured once."""
    before, sys.argv = sys.argv, ["moa", "measure", str(folder), "-o", str(folder / "costs.json"),
                                  "--lengths", "256,512", "--batches", "1,2", "--rounds", "1"]  # fmt: skip
    try:
        assert cli.main() == 0
    finally:
        sys.argv = before
    return Costs.load(folder / "costs.json")


def test_what_is_measured(costs, folder):
    assert costs.model.layers == 2
    assert costs.environment["backend"] == "numba"
    assert costs.environment["dtype"] == "float32"
    assert costs.environment["threads"] == torch.get_num_threads()
    cpus = Path("/proc/cpuinfo")
    if cpus.exists() and "model name" in cpus.read_text():
        assert costs.environment["device"] in cpus.read_text()
    works = {(row.kind, row.length, row.batch) for row in costs.measured}
    assert works == {("decode", n, b) for n in (256, 512) for b in (1, 2)} | {("prefill", n, 1) for n in (256, 512)}
    plans = {"dense", "wide", "narrow", "keydiff wide", "keydiff narrow", "mixed"}
    assert {row.plan for row in costs.measured} == plans
    assert all(row.ms > 0 for row in costs.measured)


def test_a_stopped_measurement_goes_on_with_the_runs_to_come(folder, tmp_path, monkeypatch):
    timed: list[str] = []

    def runner(model, backend):
        def run(plan, work):
            timed.append(str(work))
            return [float(len(timed))] * 2

        return run

    def stop(done, total, what):
        if done == stopped:
            raise KeyboardInterrupt

    monkeypatch.setattr(measuring, "runner", runner)
    asked = {"lengths": (256, 512), "batches": (1,), "rounds": 3, "output": tmp_path / "costs.json"}
    runs, stopped = 3 * 6 * 4, 31
    with pytest.raises(KeyboardInterrupt):
        moa.measure_costs(folder, progress=stop, **asked)
    assert len(timed) == stopped
    stopped = 0
    found = moa.measure_costs(folder, **asked)
    assert len(timed) == runs
    assert Costs.load(tmp_path / "costs.json") == found
    assert [path.name for path in tmp_path.iterdir()] == ["costs.json"]
    whole = moa.measure_costs(folder, **asked)  # measured again from the first run on
    assert len(timed) == 2 * runs
    times = {(row.plan, row.kind, row.length): row.ms for row in found.measured}
    assert {name: ms + runs for name, ms in times.items()} == {
        (row.plan, row.kind, row.length): row.ms for row in whole.measured
    }


def test_runs_of_another_environment_are_not_taken(folder, tmp_path):
    journal, given = Journal(tmp_path / "costs.runs.jsonl"), iter(range(1, 10))
    plan, work = Plan.dense(ModelInfo.of(moa.load_model(folder)[0])), Work("decode", 64)

    def run(plan, work):
        return [float(next(given))]

    here = {"device": "one", "threads": 2}
    first = measuring.kept(run, journal, here)
    assert [first(plan, work), first(plan, work)] == [[1.0], [2.0]]
    assert measuring.kept(run, journal, here | {"threads": 1})(plan, work) == [3.0]
    assert measuring.kept(run, journal, here)(plan, Work("decode", 64, 2)) == [4.0]
    again = measuring.kept(run, Journal(tmp_path / "costs.runs.jsonl"), here)
    assert [again(plan, work), again(plan, work), again(plan, work)] == [[1.0], [2.0], [5.0]]


def test_a_plan_within_milliseconds_is_measured(run, costs, folder, tmp_path):
    # Figures made up: those of a tiny model are all noise.
    terms = {**costs.terms, "decode": {"step": 1.0, "sequence": 0.1, "block": 0.1, "keydiff": 0.0}}
    path = tmp_path / "costs.json"
    path.write_text(costs.model_copy(update={"terms": terms}).model_dump_json())
    args = ["search", "profile.safetensors", "--costs", str(path), "-o", str(tmp_path / "plan.yaml")]
    code, _, err = run(*args, "--max-decode-ms", "3.4@512", "--measure", str(folder))
    assert code == 0
    plan = Plan.load(tmp_path / "plan.yaml")
    predicted = Costs.load(path).predict(plan, Work("decode", 512))
    assert predicted <= 3.4 * (1 + 1e-8)
    said = plan.predicted
    assert said.decode_ms[said.lengths.index(512)] == pytest.approx(predicted, abs=0.005)
    assert said.error == {f"{kind}_ms": pytest.approx(error, abs=1e-4) for kind, error in costs.error.items()}
    assert said.device == f"{costs.environment['device']}, {torch.get_num_threads()} threads, numba, float32"
    code, out, _ = run("bench", str(folder), "--plan", str(tmp_path / "plan.yaml"), "--lengths", "512", "--repeats",
                       "1", "-o", str(tmp_path / "bench.json"))  # fmt: skip
    assert code == 0
    assert f"times predicted for {said.device}" in " ".join(out.split())
    found = json.loads((tmp_path / "bench.json").read_text())["lengths"][0]
    assert 1e3 * found["decode"][0]["predicted_seconds"] == pytest.approx(said.decode_ms[said.lengths.index(512)])
    assert 1e3 * found["prefill"]["predicted_seconds"] == pytest.approx(said.prefill_ms[said.lengths.index(512)])
    assert f"decode@512x1: {predicted:.1f} ms predicted, budget 3.4, " in err
    assert "ms measured, prediction off by" in err
    elsewhere = costs.model_copy(update={"environment": {**costs.environment, "device": "abacus"}})
    path.write_text(elsewhere.model_dump_json())
    code, _, err = run(*args, "--max-decode-ms", "1e9@512", "--measure", str(folder))
    assert code == 2
    assert "costs measured elsewhere" in err
    assert "abacus" in err


def test_reads_within_milliseconds_are_measured_on_a_text(run, folder, tmp_path):
    path = tmp_path / "costs.json"
    options = ("--lengths", "256,512", "--batches", "1", "--rounds", "1", "--reads")
    code, out, _ = run("measure", str(folder), "-o", str(path), *options, "--json")
    assert code == 0
    costs = Costs.load(path)
    assert costs.know_reads
    assert json.loads(out)["terms"]["decode"].keys() == costs.terms["decode"].keys()
    works = {(row.kind, row.length) for row in costs.measured if row.plan.endswith("read")}
    assert works == {("decode", 256), ("decode", 512)}
    # Figures made up: those of a tiny model are all noise.
    terms = {"step": 1.0, "sequence": 0.1, "block": 0.1, "keydiff": 0.0, "page": 0.0, "summary": 0.0}
    path.write_text(costs.model_copy(update={"terms": costs.terms | {"decode": terms}}).model_dump_json())
    profile = Profile.load(folder / "profile.safetensors")
    table = np.ones((1, 2, 2, 2), np.float32)
    reads = ReadTables((64, 16), {("text", 512): table}, {("text", 512): 9})
    replace(profile, reads=reads).save(tmp_path / "reads.safetensors")
    plan = tmp_path / "plan.yaml"
    args = ("-o", str(plan), "--costs", str(path), "--max-decode-ms", "3@2048")
    code, _, err = run("search", str(tmp_path / "reads.safetensors"), *args, "--measure", str(folder))
    assert code == 0
    assert Plan.load(plan).reads()
    assert "ms measured, prediction off by" in err
    assert "every rule reads" not in err
    code, _, err = run("search", "profile.safetensors", *args)
    assert code == 0
    assert "every rule reads all that it keeps: reads need profile (moa profile --reads) that know them" in err


def test_a_front_by_time(run, costs, tmp_path):
    terms = {**costs.terms, "decode": {"step": 1.0, "sequence": 0.1, "block": 0.1, "keydiff": 0.0}}
    path, out = tmp_path / "costs.json", tmp_path / "front"
    path.write_text(costs.model_copy(update={"terms": terms}).model_dump_json())
    code, table, err = run("search", "profile.safetensors", "--costs", str(path), "--front", "3", "-o", str(out))
    assert code == 0
    plans = sorted(out.glob("decode-ms-*.yaml"))
    assert 2 <= len(plans) <= 3
    assert f"wrote {len(plans)} plans" in err
    for plan in plans:
        assert plan.name in table
        loaded = Plan.load(plan)
        assert loaded.provenance.budget == f"decode_ms<={plan.stem.removeprefix('decode-ms-')}@2048"
    assert (out / "front.txt").read_text().splitlines()[0].strip().startswith("Front")
    assert (out / "front.png").read_bytes().startswith(b"\x89PNG")
    code, _, err = run("search", "profile.safetensors", "--front", "3", "-o", str(out))
    assert code == 2
    assert "empty folder" in err


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--max-decode-ms", "5@512"], "needs measured costs: moa measure"),
        (["--max-decode-ms", "1e-6@512", "--costs", "costs.json"], "smallest feasible value"),
        (["--max-decode-ms", "fast", "--costs", "costs.json"], "T@LENGTH[xBATCH]"),
        (["--max-density", "0.9", "--costs", "no-such.json"], "no-such.json"),
        (["--max-density", "0.9", "--costs", "config.json"], "config.json"),
        (["--max-density", "0.9", "--measure", "."], "give --costs"),
        (["--front", "1"], "2 plans or more"),
    ],
)
def test_bad_input_is_one_line(run, costs, tmp_path, args, says):
    code, _, err = run("search", "profile.safetensors", "-o", str(tmp_path / "new"), *args)
    assert code == 2
    assert says in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1


def test_costs_of_another_model(run, costs, tmp_path):
    code, _, err = run(
        "search", "other.safetensors", "-o", str(tmp_path / "p.yaml"), "--max-density", "0.9", "--costs", "costs.json"
    )
    assert code == 2
    assert "costs measured on another model" in err
    assert "head_size: 16 against 32" in err


def test_costs_of_an_older_version_are_refused_and_may_be_replaced(run, costs, folder, tmp_path, monkeypatch):
    old = {k: {name: ms for name, ms in terms.items() if name != "block"} for k, terms in costs.terms.items()}
    path = tmp_path / "costs.json"
    path.write_text(costs.model_copy(update={"terms": old}).model_dump_json())
    args = ["-o", str(tmp_path / "p.yaml"), "--max-density", "0.9", "--costs", str(path)]
    code, _, err = run("search", "profile.safetensors", *args)
    assert code == 2
    assert err.startswith(f"error: {path}: terms of decode must be step, sequence, block, keydiff, 0 or more, found")
    assert err.count("\n") == 1
    monkeypatch.setattr("moa.measuring.measure", lambda *_, **__: costs)
    code, _, err = run("measure", str(folder), "-o", str(path), "--lengths", "256,512")
    assert code == 0
    assert f"of {len(costs.measured)} medians have a standard error over 2%, or too few rounds" in " ".join(err.split())
    assert Costs.load(path) == costs


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--lengths", "512"], "lengths two or more"),
        (["--lengths", "100,512"], "at least 256 tokens, found 100"),
        (["--lengths", "512,4096"], "over the model's maximum of 2048"),
        (["--batches", "0"], "1 or more"),
        (["--lengths", "256,512", "--backend", "tritan"], "tritan"),
        (["-o", "no/folder/costs.json"], "no/folder"),
    ],
)
def test_bad_measurements_are_refused(run, folder, args, says):
    code, _, err = run("measure", str(folder), "-o", "bad.json", *args)
    assert code == 2
    assert says in err
    assert not (folder / "bad.json").exists()
