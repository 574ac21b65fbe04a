"""`moa refine`: the search that runs the model, end to end on a tiny one."""

import subprocess
import sys
from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
from optuna import get_all_study_names
from typer.testing import CliRunner

import moa
from moa.cli.main import app
from moa.environment import environment
from moa.evaluation.validation import Validation
from moa.hf.load import load_model
from moa.plans.errors import MoaError, ModelMismatch
from moa.plans.model import ModelInfo
from moa.plans.plan import Plan
from moa.profiler.profile import Profile
from moa.rounds import Round
from moa.search.cost import Costs
from moa.search.lengths import Lengths
from moa.search.objective import Mix
from moa.search.storage import open_storage
from moa.search.study import open_study


@pytest.fixture(scope="module")
def profile(model_folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("profile") / "p.safetensors"
    done = CliRunner().invoke(
        app, ["profile", str(model_folder), "-o", str(path), "--lengths", "512", "--samples", "1"]
    )
    assert done.exit_code == 0, done.output
    return path


def refine(*options: str):
    return CliRunner().invoke(app, ["refine", *options])


def search(*options: str):
    return CliRunner().invoke(app, ["search", *options])


@pytest.fixture(scope="module")
def made_up(model_folder):
    """A profile of 512 and 1,024 tokens, text squared, facts by effect at the shorter alone, as `moa profile` does."""
    model, _ = load_model(model_folder)
    info, rng = ModelInfo.of(model), np.random.default_rng(0)
    cuts = {
        (source, n): np.tril(rng.exponential(1.0, (1, 2, 2, n // 64, n // 64))).astype(np.float32)
        for source, n in (("text", 512), ("facts", 512), ("text", 1024))
    }
    for table in cuts.values():
        table[..., 0] = 0
    counts = dict.fromkeys(cuts, 1)
    meta = {"seed": 0, "samples": 1, "labels": "greedy", "loss": None, "chat": False}
    return Profile(info, (("sink_window", 64),), cuts, counts, counts, meta, {"text": "fisher", "facts": "effect"})


@pytest.fixture
def costs(model_folder, tmp_path):
    """Costs, their figures made up, of this place."""
    model, _ = load_model(model_folder)
    terms = {
        "decode": {"step": 1.0, "sequence": 0.1, "block": 0.1, "keydiff": 0.1},
        "prefill": {
            "step": 1.0,
            **dict.fromkeys(("token", "whole", "windowed", "chunk", "keydiff", "keydiff_chunk"), 0.1),
        },
    }
    found = Costs(
        model=ModelInfo.of(model),
        environment=environment(model, None),
        terms=terms,
        error={"decode": 0.1, "prefill": 0.1},
        measured=(),
    )
    path = tmp_path / "costs.json"
    path.write_text(found.model_dump_json())
    return path


def test_dense_is_at_no_distance_and_a_cut_plan_at_some(model_folder):
    model, tokenizer = load_model(model_folder)
    check = Validation(model, tokenizer, 512, texts=2)
    dense, cut = (list(check(p)) for p in (Plan.dense(model), Plan.uniform(model, 0.4, at=512)))
    assert len(dense) == 2
    assert dense[-1].kl == pytest.approx(0, abs=1e-6)
    assert dense[-1].recall == pytest.approx(0, abs=1e-6)
    assert cut[-1].kl > 1e-6
    assert cut[-1].recall != pytest.approx(cut[-1].kl)  # of answers, not of text
    assert list(check(Plan.uniform(model, 0.4, at=512))) == cut


def test_a_tokenizer_without_a_chat_template(model_folder):
    model, tokenizer = load_model(model_folder)
    bare = deepcopy(tokenizer)
    bare.chat_template = None
    plan = Plan.uniform(model, 0.4, at=512)
    assert list(Validation(model, bare, 512, texts=1)(plan)) != list(Validation(model, tokenizer, 512, texts=1)(plan))


def test_as_many_windows_as_there_are(model_folder, monkeypatch):
    model, tokenizer = load_model(model_folder)
    monkeypatch.setattr("moa.evaluation.validation.windows", lambda *_: [[1] * 512])
    assert len(list(Validation(model, tokenizer, 512)(Plan.dense(model)))) == 1
    monkeypatch.setattr("moa.evaluation.validation.windows", lambda *_: [])
    with pytest.raises(MoaError, match="no window of 512 tokens: give a shorter --validate-length"):
        Validation(model, tokenizer, 512)


def test_two_processes_share_one_journal(model_folder, profile, tmp_path):
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


def test_other_weights_or_costs_are_another_study(model_folder, profile, costs, tmp_path):
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


def test_the_storage_is_looked_at_before_the_model_loads(profile, tmp_path):
    notes = tmp_path / "notes.txt"
    notes.write_text("mine")
    done = refine(
        str(profile), "no/such", "-o", str(tmp_path / "p.yaml"), "--max-density", "0.5", "--storage", str(notes)
    )
    assert "not a journal of trials" in str(done.exception)
    assert notes.read_text() == "mine"


def test_rounds_go_on_from_the_plan_by_slopes_around_it(model_folder, made_up, tmp_path, monkeypatch):
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
    with pytest.raises(MoaError, match="around another plan"):
        part.check(Plan.dense(made_up.model))


def test_rounds_of_keydiff_sinks_alone(model_folder, made_up, tmp_path):
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
    ("options", "says"),
    [
        (("--max-density", "0.001"), "smallest feasible value"),
        ((), "at least one budget"),
        (("--max-density", "0.5", "--source-weight", "prose=1"), "prose"),
        (("--max-density", "0.5", "--lengths", "600"), "found [600]"),
        (("--max-decode-ms", "5@512"), "needs measured costs"),
        (("--max-harm", "9", "--minimise", "decode_ms@512"), "needs measured costs"),
        (("--max-density", "0.5", "--calibrate", "1"), "calibrate takes 2 plans or more"),
        (("--max-density", "0.5", "--time-limit", "0"), "--time-limit must be over 0"),
        (("--max-density", "0.5", "--time-limit", "nan"), "--time-limit must be over 0"),
        (("--max-density", "0.5", "--pattern", "keydiff_window"), "patterns of this profile"),
        (("--max-harm", "1", "--minimise", "density@512", "--max-density", "0.001", "--calibrate", "3"), "smallest"),
    ],
)
def test_what_needs_no_model_is_refused_before_one_is_looked_for(made_up, tmp_path, options, says):
    path = tmp_path / "profile.safetensors"
    made_up.save(path)
    done = refine(str(path), "no/such", "-o", str(tmp_path / "p.yaml"), *options)
    assert isinstance(done.exception, MoaError)
    assert says in str(done.exception)


@pytest.fixture
def unread(monkeypatch):
    """No weights may be read."""

    def read(*_: object, **__: object) -> None:
        raise AssertionError("weights were read")

    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", read)


def test_another_model_or_too_long_a_length_is_refused_by_the_config_alone(model_folder, made_up, tmp_path, unread):
    path, plan, prompt = tmp_path / "profile.safetensors", tmp_path / "plan.yaml", tmp_path / "prompt.txt"
    made_up.save(path)
    other = made_up.model.model_copy(update={"kv_heads": 1})
    Plan.dense(other).save(plan)
    prompt.write_text("Once")
    name, out = str(model_folder), str(tmp_path / "out")
    for command in (
        ["eval", name, "--plan", str(plan)],
        ["bench", name, "--plan", str(plan)],
        ["generate", name, "--plan", str(plan), "--prompt-file", str(prompt)],
        ["profile", name, "-o", out, "--around", str(plan)],
    ):
        done = CliRunner().invoke(app, command)
        assert "kv_heads: 1 against 2" in str(done.exception), command
    table = {cut: found[:, :, :1] for cut, found in made_up.cuts.items()}
    replace(made_up, model=other, cuts=table).save(path)
    done = refine(str(path), name, "-o", out, "--max-density", "0.5")
    assert "kv_heads: 1 against 2" in str(done.exception)
    Plan.dense(made_up.model).save(plan)
    long = ["--lengths", "1000000"]
    for command in (
        ["eval", name, "--plan", str(plan), *long],
        ["eval", name, "--plan", str(plan), "--needles", "-1"],
        ["bench", name, "--plan", str(plan), *long],
        ["measure", name, "-o", out, "--lengths", "512,1000000"],
        ["profile", name, "-o", out, *long],
        ["profile", name, "-o", out, "--lengths", "512", "--samples", "0"],
        ["profile", name, "-o", out, "--lengths", "512", "--sinks", "65"],
    ):
        done = CliRunner().invoke(app, command)
        assert isinstance(done.exception, MoaError), command
    for command in (["eval"], ["bench"], ["generate", "--prompt-file", str(prompt)]):
        done = CliRunner().invoke(app, [command[0], name, "--plan", str(plan), *command[1:], "--backend", "abacus"])
        assert "unknown back-end 'abacus'" in str(done.exception), command


def test_rounds_refuse_documents_before_the_model_loads(made_up, tmp_path):
    path, table = tmp_path / "profile.safetensors", made_up.cuts["text", 512]
    counts = {**made_up.tokens, ("data", 512): 1}
    replace(made_up, cuts={**made_up.cuts, ("data", 512): table}, tokens=counts, samples=counts).save(path)
    said = (str(path), "no/such", "-o", str(tmp_path / "p.yaml"), "--max-density", "0.5", "--rounds", "1")
    done = refine(*said)
    assert "--rounds draws again from text, facts, pairs, lines; this profile has data too" in str(done.exception)
    made_up.save(path)
    done = refine(*said, "--source-weight", "text=0")
    assert "--rounds measures text: its --source-weight must be over 0" in str(done.exception)
    facts = {("facts", 512): made_up.cuts["facts", 512]}
    one = dict.fromkeys(facts, 1)
    replace(made_up, cuts=facts, tokens=one, samples=one, estimators={"facts": "effect"}).save(path)
    done = refine(*said)
    assert "measures text, at the plan's lengths; this profile has none there" in str(done.exception)


@pytest.mark.parametrize(
    ("options", "works"),
    [
        (("--max-density", "0.5"), ["decode@1024x1", "prefill@1024x1"]),
        (("--max-decode-ms", "1e9"), ["decode@1024x1"]),
        (("--max-harm", "9", "--minimise", "prefill_ms@700"), ["prefill@700x1"]),
    ],
)
def test_a_plan_is_timed_at_the_lengths_it_is_for(model_folder, made_up, costs, tmp_path, monkeypatch, options, works):
    path, plan, asked = tmp_path / "profile.safetensors", tmp_path / "plan.yaml", []
    made_up.save(path)

    def runner(network, backend):
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
    monkeypatch.setattr("moa.measuring.runner", lambda model, _: dtypes.append(model.dtype) or (lambda *_: [2.0]))
    asked = {"costs": half, "lengths": [512]}
    found = moa.find_plan(made_up, {"density": 0.5}, measure=model_folder, **asked)
    plan, budgets = tmp_path / "plan.yaml", {"density": 0.5}
    refined = moa.refine_plan(made_up, model_folder, plan, budgets, trials=1, measure=True, **asked)
    assert dtypes == [torch.bfloat16] * 2
    assert found.times[0].measured == refined.times[0].measured == 2.0
    with pytest.raises(ModelMismatch, match=r"\(costs against here\): dtype: bfloat16 against float32"):
        moa.refine_plan(made_up, "no-such-model", plan, budgets, trials=1, measure=True, dtype="float32", **asked)


def test_costs_of_elsewhere_are_refused_before_solving(model_folder, made_up, costs, tmp_path):
    path, plan = tmp_path / "profile.safetensors", tmp_path / "plan.yaml"
    made_up.save(path)
    known = Costs.load(costs)
    elsewhere = known.model_copy(update={"environment": {**known.environment, "device": "abacus"}})
    costs.write_text(elsewhere.model_dump_json())
    done = search(
        str(path), "-o", str(plan), "--max-density", "0.5", "--costs", str(costs), "--measure", str(model_folder)
    )
    assert "costs measured elsewhere" in str(done.exception)
    assert not plan.exists()


def test_the_plan_measured_is_that_of_the_given_weights(model_folder, profile, tmp_path):
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


def test_harm_in_nats(model_folder, profile, tmp_path):
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


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--trials", "0"), "trials must be 1 or more"),
        (("--trials", "3", "--source-weight", "text=2"), "trials choose the weights"),
        (("--rounds", "1", "--round-samples", "0"), "round-samples 1 or more, found 12, 1 and 0"),
        (("--rounds", "1", "--max-harm", "1", "--minimise", "density@512"), "no --max-harm"),
        (("--calibrate", "1"), "calibrate takes 2 plans or more"),
        (("--validate-length", "100"), "at least 256"),
        (("--measure",), "give --costs"),
    ],
)
def test_refusals(model_folder, profile, tmp_path, options, says):
    done = refine(str(profile), str(model_folder), "-o", str(tmp_path / "p.yaml"), "--max-density", "0.5", *options)
    assert isinstance(done.exception, MoaError)  # exit code 2 in one line, as tests/test_bad_input.py shows
    assert says in str(done.exception)


def test_the_old_spelling_gives_the_same_plan_and_names_the_new_one(model_folder, made_up, tmp_path):
    path, plans = tmp_path / "profile.safetensors", [tmp_path / "new.yaml", tmp_path / "old.yaml"]
    made_up.save(path)
    more = ("--max-density", "0.5", "--lengths", "512", "--seed", "1")
    done = refine(str(path), str(model_folder), "-o", str(plans[0]), *more, "--trials", "2")
    assert done.exit_code == 0, done.output
    assert "--validate" not in done.output
    done = search(str(path), "-o", str(plans[1]), *more, "--validate", str(model_folder), "--trials", "2")
    assert done.exit_code == 0, done.output
    assert done.output.count("--validate MODEL is now moa refine PROFILE MODEL") == 1
    assert Plan.load(plans[0]).to_dict() == Plan.load(plans[1]).to_dict()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--trials", "3"), "are of moa refine PROFILE MODEL"),
        (("--storage", "x.log"), "are of moa refine PROFILE MODEL"),
        (("--dtype", "float16"), "are of moa refine PROFILE MODEL"),
        (("--validate", "MODEL", "--front", "3"), "takes one plan and one model"),
        (("--validate", "MODEL", "--measure", "other"), "takes one plan and one model"),
    ],
)
def test_refusals_of_the_old_spelling(profile, tmp_path, options, says):
    done = search(str(profile), "-o", str(tmp_path / "p.yaml"), "--max-density", "0.5", *options)
    assert isinstance(done.exception, MoaError)
    assert says in str(done.exception)


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
    assert [line.split(",")[0] for line in lines if "trials begin anew" in line] == [f"{storage} has 1 study"]
    with pytest.raises(MoaError, match="this one is loaded already"):
        moa.refine_plan(made_up, loaded, tmp_path / "plan.yaml", {"density": 0.5}, dtype="float16")


def test_a_profile_of_samples_that_begin_otherwise_is_refused(model_folder, made_up, tmp_path):
    other = replace(made_up, meta={**made_up.meta, "start": [7]})
    with pytest.raises(
        ModelMismatch, match=r"begin with the tokens \[7\], but texts of .* with \[\]: measure it again"
    ):
        moa.refine_plan(other, model_folder, tmp_path / "plan.yaml", {"density": 0.5})
