"""`moa search --validate`: the search that runs the model, end to end on a tiny one."""

import subprocess
import sys

import pytest
from typer.testing import CliRunner

from moa.cli.main import app
from moa.load import load_model
from moa.plans.errors import MoaError
from moa.plans.plan import Plan
from moa.validation import Validation


@pytest.fixture(scope="module")
def profile(model_folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("profile") / "p.safetensors"
    done = CliRunner().invoke(
        app, ["profile", str(model_folder), "-o", str(path), "--lengths", "512", "--samples", "1"]
    )
    assert done.exit_code == 0, done.output
    return path


def search(*options: str):
    return CliRunner().invoke(app, ["search", *options])


def test_dense_is_at_no_distance_and_a_cut_plan_at_some(model_folder):
    model, tokenizer = load_model(model_folder)
    check = Validation(model, tokenizer, 512, texts=2)
    dense, cut = (list(check(p)) for p in (Plan.dense(model), Plan.uniform(model, 0.4, at=512)))
    assert len(dense) == 2
    assert dense[-1].kl == pytest.approx(0, abs=1e-6)
    assert dense[-1].recall == pytest.approx(0, abs=1e-6)
    assert cut[-1].kl > 1e-6
    assert list(check(Plan.uniform(model, 0.4, at=512))) == cut


def test_two_processes_share_one_journal(model_folder, profile, tmp_path):
    journal = tmp_path / "trials.log"
    commands = [
        [sys.executable, "-m", "moa", "search", str(profile), "-o", str(tmp_path / f"{worker}.yaml"), "--max-density",
         "0.5", "--validate", str(model_folder), "--trials", "6", "--storage", str(journal)]
        for worker in "ab"
    ]  # fmt: skip
    workers = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for command in commands]
    said = [worker.communicate()[1] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], said
    plans = [Plan.load(tmp_path / f"{worker}.yaml") for worker in "ab"]
    assert all(plan.density(512) <= 0.5 for plan in plans)
    again = search(*commands[0][4:6], *commands[0][6:])
    assert again.exit_code == 0, again.output
    assert "6 trials" in again.output or "7 trials" in again.output  # both may have been at the last one


def test_rounds_profile_again_around_the_plan(model_folder, profile, tmp_path):
    plan = tmp_path / "plan.yaml"
    done = search(
        str(profile), "-o", str(plan), "--max-density", "0.5", "--validate", str(model_folder), "--trials", "2",
        "--rounds", "1",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert (tmp_path / "plan.round-1.safetensors").exists()
    assert Plan.load(plan).density(512) <= 0.5


def test_the_plan_measured_is_that_of_the_given_weights(model_folder, profile, tmp_path):
    plans = []
    for name, more in (("a", ()), ("b", ("--validate", str(model_folder)))):
        plan = tmp_path / f"{name}.yaml"
        done = search(
            str(profile), "-o", str(plan), "--max-density", "0.5", "--source-weight", "text=0", "--source-weight",
            "pairs=0.01", *more,
        )  # fmt: skip
        assert done.exit_code == 0, done.output
        plans.append(Plan.load(plan))
    assert plans[0].groups == plans[1].groups
    plain = tmp_path / "plain.yaml"
    assert search(str(profile), "-o", str(plain), "--max-density", "0.5").exit_code == 0
    assert Plan.load(plain).groups != plans[0].groups


def test_harm_in_nats(model_folder, profile, tmp_path):
    plan = tmp_path / "plan.yaml"
    options = (str(profile), "-o", str(plan), "--minimise", "density@512", "--validate", str(model_folder))
    done = search(*options, "--calibrate", "3", "--max-harm", "100")
    assert done.exit_code == 0, done.output
    assert "nats per token at 512 tokens" in done.output
    assert Plan.load(plan).density(512) == pytest.approx(192 / 512)  # nothing costs 100 nats


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--trials", "3"), "go with --validate"),
        (("--storage", "x.log"), "go with --validate"),
        (("--validate", "MODEL", "--trials", "0"), "trials must be 1 or more"),
        (("--validate", "MODEL", "--trials", "3", "--source-weight", "text=2"), "trials choose the weights"),
        (("--validate", "MODEL", "--calibrate", "1"), "calibrate takes 2 plans or more"),
        (("--validate", "MODEL", "--validate-length", "100"), "at least 256"),
        (("--validate", "MODEL", "--front", "3"), "not with --front"),
    ],
)
def test_refusals(model_folder, profile, tmp_path, options, says):
    options = [str(model_folder) if option == "MODEL" else option for option in options]
    done = search(str(profile), "-o", str(tmp_path / "p.yaml"), "--max-density", "0.5", *options)
    assert isinstance(done.exception, MoaError)  # exit code 2 in one line, as tests/test_bad_input.py shows
    assert says in str(done.exception)
