"""What `moa refine` refuses, most of it before a model loads; the same of other commands on a model."""

from dataclasses import replace

import pytest
from typer.testing import CliRunner

import moa
from moa.cli.main import app
from moa.plans.errors import MoaError, ModelMismatch
from moa.plans.plan import Plan
from moa.search.cost import Costs


def test_the_storage_is_looked_at_before_the_model_loads(refine, profile, tmp_path):
    notes = tmp_path / "notes.txt"
    notes.write_text("mine")
    done = refine(
        str(profile), "no/such", "-o", str(tmp_path / "p.yaml"), "--max-density", "0.5", "--storage", str(notes)
    )
    assert "not a journal of trials" in str(done.exception)
    assert notes.read_text() == "mine"


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
def test_what_needs_no_model_is_refused_before_one_is_looked_for(refine, made_up, tmp_path, options, says):
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


def test_another_model_or_too_long_a_length_is_refused_by_the_config_alone(
    refine, model_folder, made_up, tmp_path, unread
):
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


def test_rounds_refuse_documents_before_the_model_loads(refine, made_up, tmp_path):
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


def test_costs_of_elsewhere_are_refused_before_solving(search, model_folder, made_up, costs, tmp_path):
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
def test_refusals(refine, model_folder, profile, tmp_path, options, says):
    done = refine(str(profile), str(model_folder), "-o", str(tmp_path / "p.yaml"), "--max-density", "0.5", *options)
    assert isinstance(done.exception, MoaError)  # exit code 2 in one line, as tests/test_bad_input.py shows
    assert says in str(done.exception)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--trials", "3"), "are options of moa refine PROFILE MODEL"),
        (("--storage", "x.log"), "are options of moa refine PROFILE MODEL"),
        (("--dtype", "float16"), "are options of moa refine PROFILE MODEL"),
        (("--validate", "MODEL", "--front", "3"), "finds one plan for one model"),
        (("--validate", "MODEL", "--measure", "other"), "finds one plan for one model"),
    ],
)
def test_refusals_of_the_old_spelling(search, profile, tmp_path, options, says):
    done = search(str(profile), "-o", str(tmp_path / "p.yaml"), "--max-density", "0.5", *options)
    assert isinstance(done.exception, MoaError)
    assert says in str(done.exception)


def test_a_profile_of_samples_that_begin_otherwise_is_refused(model_folder, made_up, tmp_path):
    other = replace(made_up, meta={**made_up.meta, "start": [7]})
    with pytest.raises(
        ModelMismatch, match=r"begin with the tokens \[7\], but texts of .* with \[\]: measure it again"
    ):
        moa.refine_plan(other, model_folder, tmp_path / "plan.yaml", {"density": 0.5})
