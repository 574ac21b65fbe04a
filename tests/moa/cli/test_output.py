"""What all commands share: examples in their help, figures as JSON, silence, and completion in a shell."""

import json
import os
import re
import shlex
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from moa.cli.main import COMMANDS, app
from moa.plans.file import shipped
from moa.plans.plan import Plan

GOLDEN = Path(__file__).parents[2] / "golden"
PRINTS_FIGURES = sorted(set(COMMANDS) - {"profile", "report", "serve"})


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_every_command_ends_with_an_example_that_it_takes(name: str) -> None:
    about = import_module(f"moa.cli.{name}").command.__doc__
    example = re.search(r"\n\n    Example: moa (\S+)(.*)\n", about)
    assert example is not None
    assert example[1] == name
    words = shlex.split(example[2])
    get_command(app).commands[name].make_context(name, words)
    plans = [word for word in words if word.startswith("smollm2-")]
    assert set(plans) <= set(shipped())


@pytest.mark.parametrize("name", PRINTS_FIGURES)
def test_every_command_that_prints_figures_has_json(name: str) -> None:
    assert "--json" in {option for of in get_command(app).commands[name].params for option in of.opts}


@pytest.fixture(scope="module")
def place(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    (folder / "model").symlink_to(model_folder)
    Plan.uniform(import_module("moa.hf.load").load_config(model_folder), 0.5, at=512).save(folder / "plan.yaml")
    (folder / "prompt.txt").write_text("once upon a time")
    (folder / "profile.safetensors").write_bytes((GOLDEN / "tiny.safetensors").read_bytes())
    return folder


@pytest.mark.parametrize(
    ("line", "keys"),
    [
        ("eval model --plan plan.yaml --lengths 512 --needles 1 --four-needles 0 --ppl-windows 0 --quiet", {"rows"}),
        ("bench model --plan plan.yaml --lengths 256 --repeats 1 --quiet", {"model", "lengths"}),
        ("generate model --plan plan.yaml --prompt-file prompt.txt --max-new-tokens 3", {"text", "kv_bytes", "steps"}),
        ("measure model --lengths 256,320 --batches 1 --rounds 1 -o costs.json --quiet", {"terms", "error"}),
        ("search profile.safetensors --max-density 0.8@512 -o found.yaml --quiet", {"plan", "objective", "predicted"}),
        ("doctor model plan.yaml --length 512", {"machine", "backend", "costs", "gains", "here"}),
    ],
)
def test_figures_as_json_are_all_that_is_printed(place: Path, moa_in: Any, line: str, keys: set[str]) -> None:
    code, out, err = moa_in(place, *line.split(), "--json")
    assert code == 0, err
    assert keys <= json.loads(out).keys()
    assert err == "" or "--quiet" not in line


def test_a_front_and_plans_as_json(place: Path, moa_in: Any) -> None:
    code, out, _ = moa_in(place, "search", "profile.safetensors", "--front", "2", "-o", "front", "--quiet", "--json")
    assert code == 0
    assert all(Plan.load(place / "front" / row["name"]).fingerprint() == row["plan"] for row in json.loads(out))
    code, out, _ = moa_in(place, "show", "plan.yaml", "smollm2-135m-instruct-0.25", "--json")
    assert code == 2  # of other models
    code, out, _ = moa_in(place, "show", "smollm2-135m-instruct-0.25", "--lengths", "4096", "--json")
    (shown,) = json.loads(out)
    plan = Plan.load("smollm2-135m-instruct-0.25")
    assert Plan.from_dict(shown["plan"]) == plan
    assert shown["costs"][0]["density"] == plan.density(4096)
    assert len(shown["plan"]["layers"]) == 30


def test_a_shell_completes_commands_and_options() -> None:
    def completed(line: str) -> list[str]:
        asked = {"_MOA_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(line.split(" ")) - 1)}
        code = "import sys; sys.argv = ['moa']; from moa.cli.main import main; sys.exit(main())"
        done = subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, **asked}, capture_output=True, text=True, check=False
        )
        return done.stdout.split()

    assert completed("moa sh") == ["show"]
    assert completed("moa show --js") == ["--json"]


def test_paths_with_brackets_are_printed_as_they_are() -> None:
    """Not as rich's markup, which would hide `[v2]` and end in an error at `[/b]`."""
    console = import_module("moa.cli.common").messages()
    with console.capture() as shown:
        console.print("wrote o[/b].html and o[v2].html")
    assert shown.get() == "wrote o[/b].html and o[v2].html\n"
