"""The public functions and the commands that call them say the same by default."""

import tomllib
from importlib import import_module
from inspect import Parameter, signature
from pathlib import Path

import pytest

import moa
from moa.evaluation.tasks import TASKS
from moa.search.question import Question

FUNCTIONS = {
    "bench": moa.bench_plan,
    "compress": moa.compress,
    "doctor": moa.diagnose,
    "eval": moa.evaluate_plans,
    "generate": moa.generate_text,
    "measure": moa.measure_costs,
    "profile": moa.profile_model,
    "refine": moa.refine_plan,
    "search": Question.of,
    "serve": moa.serve_model,
}


@pytest.mark.parametrize("command", FUNCTIONS)
def test_defaults_of_a_command_are_those_of_its_function(command: str) -> None:
    theirs = signature(import_module(f"moa.cli.{command}").command).parameters
    ours = signature(FUNCTIONS[command]).parameters
    empty = Parameter.empty
    shared = [name for name in theirs.keys() & ours.keys() if empty not in (ours[name].default, theirs[name].default)]
    assert shared
    for name in shared:
        said = theirs[name].default
        if isinstance(ours[name].default, tuple):  # numbers
            said = tuple(map(int, said.split(",")))
        assert said == ours[name].default, name


def test_eval_asks_for_as_much_of_each_task_as_the_task_says(monkeypatch: pytest.MonkeyPatch) -> None:
    told: dict[str, int] = {}

    def stop(*_: object, tasks: dict[str, int], **__: object) -> None:
        told.update(tasks)
        raise moa.MoaError("that is all")

    monkeypatch.setattr(moa, "evaluate_plans", stop)
    with pytest.raises(moa.MoaError, match="that is all"):
        import_module("moa.cli.eval").command("model", task=["single=3"], four_needles=2)
    assert told == {name: task.default for name, task in TASKS.items()} | {"single": 3, "four": 2}


def test_a_front_from_python(tmp_path) -> None:
    profile = moa.Profile.load(Path(__file__).parents[1] / "golden" / "tiny.safetensors")
    points = list(moa.find_front(profile, 3, {"density": "0.9@512"}, lengths=[512]))
    assert [point.solution.value for point in points] == sorted((p.solution.value for p in points), reverse=True)
    assert all(point.plan.density(512) <= 0.9 for point in points)
    found = moa.find_plan(profile, {"density": [0.5, "0.4@1024"]}, lengths=[1024])
    assert found.plan.density(1024) <= 0.4
    assert found.plan.provenance.budget == "density<=0.5@1024, density<=0.4@1024, for 1024"
    with pytest.raises(moa.MoaError, match="a front makes harm least"):
        moa.find_front(profile, 3, {"harm": 1}, minimise="density@512")
    with pytest.raises(moa.BudgetInfeasible, match="smallest feasible value"):
        moa.find_plan(profile, {"density": 1e-6})


def test_a_saved_front_is_its_plans_table_and_picture(tmp_path) -> None:
    profile, said = Path(__file__).parents[1] / "golden" / "tiny.safetensors", []
    points = moa.find_front(profile, 2, lengths=[512]).save(tmp_path / "front", said.append)
    assert {path.name for path in (tmp_path / "front").iterdir()} == {*points, "front.txt", "front.png"}
    assert len(said) == len(points)
    for name, point in points.items():
        assert moa.Plan.load(tmp_path / "front" / name) == point.plan
    (tmp_path / "front" / "kv-gb-1.yaml").touch()
    with pytest.raises(moa.MoaError, match=r"an earlier front by density; found .*kv-gb-1\.yaml"):
        moa.find_front(profile, 2, lengths=[512]).save(tmp_path / "front")


def test_functions_have_types_and_documents() -> None:
    for name in moa.__all__:
        found = getattr(moa, name)
        assert found.__doc__, name
        if not isinstance(found, type):
            assert signature(found).return_annotation is not signature(found).empty, name


def test_the_package_is_installed_as_the_version_that_it_says():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert moa.__version__ == project["version"]
