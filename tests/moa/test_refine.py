"""`moa refine`: the search that runs the model, end to end on a tiny one."""

import subprocess
import sys
from dataclasses import replace
from datetime import date
from importlib import import_module
from inspect import signature

import numpy as np
import pytest
import torch
from optuna import get_all_study_names

import moa
from moa.hf.load import load_model
from moa.plans.errors import MoaError, ModelMismatch
from moa.plans.plan import Plan, Provenance
from moa.profiler.profile import Profile
from moa.rounds import Round
from moa.search.cost import Costs
from moa.search.lengths import Lengths
from moa.search.objective import Mix
from moa.search.storage import open_storage
from moa.search.study import open_study


def test_two_processes_share_one_journal(refine, model_folder, profile, tmp_path):
    journal = tmp_path / "trials.log"
    commands = [
        [sys.executable, "-m", "moa", "refine", str(profile), str(model_folder), "-o",
         str(tmp_path / f"{worker}.yaml"), "--max-density", "0.5", "--trials", "6", "--storage", str(journal)]
        for worker in "ab"
    ]  # fmt: skip
    workers = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for command in commands]
    said = [worker.communicate()[1] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], said
    plans = [Plan.load(tmp_path / f"{worker}.yaml") for worker in "ab"]
    assert all(plan.density(2048) <= 0.5 for plan in plans)
    again = refine(*commands[0][4:])
    assert again.exit_code == 0, again.output
    assert "6 trials" in again.output or "7 trials" in again.output  # both may have been at the last one


def test_other_weights_or_costs_are_another_study(refine, model_folder, profile, costs, tmp_path):
    journal, other = tmp_path / "trials.log", tmp_path / "other"
    model, tokenizer = load_model(model_folder)
    model.model.embed_tokens.weight.data += 1
    model.save_pretrained(other)
    tokenizer.save_pretrained(other)

    def studies(folder) -> int:
        done = refine(
            str(profile), str(folder), "-o", str(tmp_path / "plan.yaml"), "--max-density", "0.5", "--trials", "1",
            "--storage", str(journal), "--costs", str(costs),
        )  # fmt: skip
        assert done.exit_code == 0, done.output
        return len(get_all_study_names(open_storage(str(journal))))

    assert [studies(model_folder), studies(model_folder), studies(other)] == [1, 1, 2]
    costs.write_text(costs.read_text().replace('"block":0.1', '"block":0.2'))
    assert studies(model_folder) == 3


def test_rounds_go_on_from_the_plan_by_slopes_around_it(refine, model_folder, made_up, tmp_path, monkeypatch):
    path, plan = tmp_path / "profile.safetensors", tmp_path / "plan.yaml"
    made_up.save(path)
    options = (
        str(path), str(model_folder), "-o", str(plan), "--max-density", "0.5", "--lengths", "1024", "--trials", "2",
        "--rounds", "2", "--round-samples", "1", "--storage", str(tmp_path / "trials.log"),
    )  # fmt: skip
    done = refine(*options)
    assert done.exit_code == 0, done.output
    found = Plan.load(plan)
    assert found.density(1024) <= 0.5
    assert found.provenance.note.startswith("best of 2 trials at 1024 tokens")
    one = Profile.load(tmp_path / "plan.round-1.safetensors")
    assert set(one.cuts) == {("text", 1024)}  # recall stays with the profile
    assert one.estimators == {"text": "effect"}
    assert (one.meta["loss"], one.meta["chat"]) == ("kl", False)
    assert (tmp_path / "plan.round-2.safetensors").exists()
    assert "round 1: " in done.output

    def no_more(*_: object, **__: object) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr("moa.rounds.collect", no_more)
    done = refine(*options)
    assert done.exit_code == 0, done.output
    assert Plan.load(plan).groups == found.groups
    done = refine(*options, "--seed", "1")  # seen before any trial
    assert "plan.round-1.safetensors is not a profile of this round" in str(done.exception)
    part = Round.of(1, made_up, Mix(), Lengths((1024,)), plan, samples=1, seed=0)
    part.check()
    made = Plan.from_dict(one.meta["around"])
    part.check(made.model_copy(update={"predicted": None, "provenance": Provenance(date=date(1999, 12, 31))}))
    with pytest.raises(MoaError, match="around another plan"):
        part.check(Plan.dense(made_up.model))


def test_rounds_of_keydiff_sinks_alone(refine, model_folder, made_up, tmp_path):
    path, plan = tmp_path / "profile.safetensors", tmp_path / "plan.yaml"
    both = {cut: np.concatenate([table, 0.5 * table]) for cut, table in made_up.cuts.items()}
    replace(made_up, cuts=both, variants=(("sink_window", 64), ("keydiff_window", 64))).save(path)
    done = refine(
        str(path), str(model_folder), "-o", str(plan), "--max-density", "0.5", "--lengths", "512", "--trials", "1",
        "--pattern", "keydiff_window", "--rounds", "1", "--round-samples", "1",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "round 1: " in done.output
    rules = [rule for layer in Plan.load(plan).groups.values() for rule in layer]
    assert {rule.pattern for rule in rules} == {"keydiff_window"}
    assert Profile.load(tmp_path / "plan.round-1.safetensors").variants == (("keydiff_window", 64),)


@pytest.mark.parametrize(
    ("options", "works"),
    [
        (("--max-density", "0.5"), ["decode@1024x1", "prefill@1024x1"]),
        (("--max-decode-ms", "1e9"), ["decode@1024x1"]),
        (("--max-harm", "9", "--minimise", "prefill_ms@700"), ["prefill@700x1"]),
    ],
)
def test_a_plan_is_timed_at_the_lengths_it_is_for(
    search, model_folder, made_up, costs, tmp_path, monkeypatch, options, works
):
    path, plan, asked = tmp_path / "profile.safetensors", tmp_path / "plan.yaml", []
    made_up.save(path)

    def runner(model, backend):
        assert not plan.exists()  # loaded before anything is solved
        return lambda plan, work: asked.append(str(work)) or [2.0]

    monkeypatch.setattr("moa.measuring.runner", runner)
    done = search(
        str(path), "-o", str(plan), "--lengths", "1024", *options, "--costs", str(costs), "--measure", str(model_folder)
    )
    assert done.exit_code == 0, done.output
    assert list(dict.fromkeys(asked)) == works
    assert done.output.count("2.0 ms measured") == len(works)


def test_a_model_named_for_timing_is_loaded_as_the_costs_were(model_folder, made_up, costs, tmp_path, monkeypatch):
    known, dtypes = Costs.load(costs), []
    half = known.model_copy(update={"environment": {**known.environment, "dtype": "bfloat16"}})
    monkeypatch.setattr("moa.measuring.runner", lambda model, _: dtypes.append(model[0].dtype) or (lambda *_: [2.0]))
    asked = {"costs": half, "lengths": [512]}
    found = moa.find_plan(made_up, {"density": 0.5}, measure=model_folder, **asked)
    plan, budgets = tmp_path / "plan.yaml", {"density": 0.5}
    refined = moa.refine_plan(made_up, model_folder, plan, budgets, trials=1, measure=True, **asked)
    assert dtypes == [torch.bfloat16] * 2
    assert found.times[0].measured == refined.times[0].measured == 2.0
    with pytest.raises(ModelMismatch, match=r"\(costs against here\): dtype: bfloat16 against float32"):
        moa.refine_plan(made_up, "no-such-model", plan, budgets, trials=1, measure=True, dtype="float32", **asked)


def test_the_plan_measured_is_that_of_the_given_weights(refine, search, model_folder, profile, tmp_path):
    plans = []
    for name, run in (("a", search), ("b", lambda path, *options: refine(path, str(model_folder), *options))):
        plan = tmp_path / f"{name}.yaml"
        done = run(
            str(profile), "-o", str(plan), "--max-density", "0.5", "--source-weight", "text=0", "--source-weight",
            "pairs=0.01",
        )  # fmt: skip
        assert done.exit_code == 0, done.output
        plans.append(Plan.load(plan))
    assert plans[0].groups == plans[1].groups
    plain = tmp_path / "plain.yaml"
    assert search(str(profile), "-o", str(plain), "--max-density", "0.5").exit_code == 0
    assert Plan.load(plain).groups != plans[0].groups


def test_harm_in_nats(refine, model_folder, profile, tmp_path):
    plan = tmp_path / "plan.yaml"
    options = (str(profile), str(model_folder), "-o", str(plan), "--lengths", "512", "--minimise", "density@512")
    done = refine(*options, "--calibrate", "3", "--max-harm", "100")
    assert done.exit_code == 0, done.output
    assert "nats per token at 512 tokens" in done.output
    assert Plan.load(plan).density(512) == pytest.approx(192 / 512)  # nothing costs 100 nats
    assert Plan.load(plan).predicted.kl[0] <= 100
    assert Plan.load(plan).provenance.budget == "harm<=100 nats per token, least density@512, for 512"
    done = refine(*options, "--calibrate", "3", "--max-harm", "1.0e-9", "--max-density", "0.4")
    assert "harm<=1e-09 nats per token together" in str(done.exception)
    assert " for harm<=1e-09 nats per token" in str(done.exception)


def test_the_old_spelling_gives_the_same_plan_and_names_the_new_one(refine, search, model_folder, made_up, tmp_path):
    path, plans = tmp_path / "profile.safetensors", [tmp_path / "new.yaml", tmp_path / "old.yaml"]
    made_up.save(path)
    more = ("--max-density", "0.5", "--lengths", "512", "--seed", "1")
    done = refine(str(path), str(model_folder), "-o", str(plans[0]), *more, "--trials", "2")
    assert done.exit_code == 0, done.output
    assert "--validate" not in done.output
    done = search(str(path), "-o", str(plans[1]), *more, "--validate", str(model_folder), "--trials", "2")
    assert done.exit_code == 0, done.output
    assert done.output.count("--validate MODEL is now moa refine PROFILE MODEL") == 1
    assert done.output.index("is now moa refine") < done.output.index("objective")  # said before the work
    assert Plan.load(plans[0]).to_dict() == Plan.load(plans[1]).to_dict()


def test_the_old_spelling_hands_every_option_to_its_own_place(refine, search, monkeypatch):
    asked = {
        "max_density": "0.5", "max_read": "0.3", "max_kv_gb": "1@512", "kv_dtype": "float16", "max_decode_ms": "2@512",
        "max_prefill_ms": "3@512", "costs": "costs.json", "max_harm": "4", "minimise": "density@512", "lengths": "512",
        "max_length": "1024", "source_weight": "text=5", "pattern": "sink_window", "time_limit": "6",
        "validate_length": "512", "trials": "7", "rounds": "8", "round_samples": "9", "storage": "trials.log",
        "seed": "10", "dtype": "float32", "calibrate": "11",
    }  # fmt: skip
    taken = set(signature(import_module("moa.cli.refine").command).parameters)
    assert taken == {*asked, "profile", "model", "output", "measure", "keep_all", "json_", "quiet"}
    calls = []

    def record(*args, progress, note, **options):
        calls.append((args, options))
        raise MoaError("recorded")

    monkeypatch.setattr(moa, "refine_plan", record, raising=False)
    options = [word for name, value in asked.items() for word in (f"--{name.replace('_', '-')}", value)]
    refine("profile", "MODEL", "-o", "plan.yaml", "--measure", "--keep-all", *options)
    search("profile", "-o", "plan.yaml", "--validate", "MODEL", "--measure", "MODEL", "--keep-all", *options)
    assert len(calls) == 2
    assert calls[0] == calls[1]
    args, given = calls[0]
    assert list(map(str, args[:3])) == ["profile", "MODEL", "plan.yaml"]
    assert args[3] == {
        "density": ["0.5"], "read": ["0.3"], "kv_gb": ["1@512"], "decode_ms": ["2@512"], "prefill_ms": ["3@512"],
        "harm": ["4"],
    }  # fmt: skip
    assert given | {"costs": str(given["costs"])} == {
        "minimise": "density@512", "costs": "costs.json", "lengths": (512,), "max_length": 1024,
        "source_weights": {"text": 5.0}, "patterns": ["sink_window"], "kv_dtype": "float16", "time_limit": 6.0,
        "keep_all": True, "validate_length": 512, "trials": 7, "rounds": 8, "round_samples": 9, "storage": "trials.log",
        "seed": 10, "dtype": "float32", "calibration": 11, "measure": True,
    }  # fmt: skip


def test_a_model_that_is_loaded_already(model_folder, made_up, tmp_path):
    loaded, steps, lines, storage = moa.load_model(model_folder), [], [], str(tmp_path / "trials.log")
    open_study("another", storage)
    found = moa.refine_plan(
        made_up, loaded, tmp_path / "plan.yaml", {"density": "0.5@512"}, trials=2, lengths=[512], storage=storage,
        progress=lambda *step: steps.append(step), note=lines.append,
    )  # fmt: skip
    assert Plan.load(tmp_path / "plan.yaml").groups == found.plan.groups
    assert found.plan.density(512) <= 0.5
    assert [total for _, total, _ in steps] == [2]
    assert any("trials" in line for line in lines)
    assert [line.split(",")[0] for line in lines if "trials start again" in line] == [f"{storage} has 1 study"]
    with pytest.raises(MoaError, match="this one is loaded already"):
        moa.refine_plan(made_up, loaded, tmp_path / "plan.yaml", {"density": 0.5}, dtype="float16")
