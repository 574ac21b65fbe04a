import json
import re
from functools import partial
from io import StringIO

import pytest
from rich.console import Console

from moa.cli.eval import table
from moa.plans.plan import Plan, Rule


@pytest.fixture(scope="module")
def folder(save_tiny, fresh, tmp_path_factory):
    """A tiny model, its tokenizer, a plan, and a plan for another model."""
    path = tmp_path_factory.mktemp("model")
    model = save_tiny(path)
    Plan.from_rules(model, {}, defaults=Rule(alpha=128, beta=0.0)).save(path / "narrow.yaml")
    (path / "again").mkdir()
    Plan.from_rules(model, {}, defaults=Rule(alpha=256, beta=0.0)).save(path / "again" / "narrow.yaml")
    Plan.dense(fresh(num_hidden_layers=3)).save(path / "other.yaml")
    (path / "broken.yaml").write_text("version: 1\nmodel: [")
    return path


@pytest.fixture
def run(folder, moa_in):
    return partial(moa_in, folder, "eval")


SMALL = ["--lengths", "576", "--needles", "1", "--four-needles", "1", "--ppl-windows", "1"]


def test_table_and_json(run, folder, tmp_path):
    output = tmp_path / "eval.json"
    code, out, _ = run(str(folder), "--plan", "narrow.yaml", *SMALL, "-o", str(output))
    assert code == 0
    density = f"{Plan.load(folder / 'narrow.yaml').density(576):.3f}"
    for words in ("dense", "uniform like narrow", density, "KL, nats"):
        assert words in out
    found = json.loads(output.read_text())
    assert [row["row"] for row in found["rows"]] == ["dense", "narrow", "uniform like narrow"]
    assert found["environment"]["dtype"] == "float32"
    lines = output.with_suffix(".jsonl").read_text().splitlines()
    assert len(lines) == 6  # three tasks, dense and narrow, which is its own uniform twin
    before = output.read_bytes()
    assert run(str(folder), "--plan", "narrow.yaml", *SMALL, "-o", str(output))[0] == 0
    assert output.read_bytes() == before
    assert output.with_suffix(".jsonl").read_text().splitlines() == lines


def test_a_table_of_80_columns_breaks_no_interval():
    needles = {"rate": 0.97, "interval": [0.92, 0.99]}
    text = {"perplexity": 12.577, "kl": 0.0425}
    row = {"length": 131072, "row": "uniform like a-long-name-0.25", "density": 0.25, "kv_bytes": 2**33, "text": text}
    about = {"dtype": "bfloat16", "device": "CPU", "backend": "numba"}
    found = {"model": {"name": "SmolLM2"}, "environment": about, "rows": [{**row, "single": needles, "four": needles}]}
    console = Console(width=80, file=StringIO())
    console.print(table(found))
    assert re.search(r"\(0\.92–0\.99\) +\(0\.92–0\.99\) *$", console.file.getvalue(), re.MULTILINE)


def test_without_plans_output_or_twins(run, folder):
    code, out, _ = run(str(folder), *SMALL, "--no-uniform")
    assert code == 0
    assert "narrow" not in out
    assert "four needles" in out
    assert not list(folder.glob("*.json*l"))


def test_plans_of_one_name_are_numbered(run, folder, tmp_path):
    output = tmp_path / "eval.json"
    plans = ["--plan", "narrow.yaml", "--plan", "again/narrow.yaml", "--no-uniform"]
    counts = ["--needles", "0", "--four-needles", "0", "--ppl-windows", "1", "--lengths", "576"]
    assert run(str(folder), *plans, *counts, "-o", str(output))[0] == 0
    rows = {row["row"]: row["density"] for row in json.loads(output.read_text())["rows"]}
    assert list(rows) == ["dense", "1 narrow", "2 narrow"]
    assert rows["1 narrow"] < rows["2 narrow"]
    assert not {"single", "four"} & json.loads(output.read_text())["rows"][0].keys()


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["/no/such/model"], "/no/such/model"),
        ([".", "--plan", "no-such-plan"], "no-such-plan"),
        ([".", "--plan", "broken.yaml"], "broken.yaml"),
        ([".", "--plan", "other.yaml"], "layers: 3 against 2"),
        ([".", "--lengths", "4096"], "over the model's maximum of 2048"),
        ([".", "--lengths", "many"], "lengths must be whole numbers"),
        ([".", "--needles", "0", "--four-needles", "0", "--ppl-windows", "0"], "one of them at least 1"),
        ([".", "--needles", "-3"], "one needle (-3)"),
        ([".", "--task", "riddles=3"], "tasks must be of text, decoded, generation, "),
        ([".", "--task", "single"], "--task is written NAME=COUNT, found 'single'"),
        ([".", "--task", "qa_1=1", "--task-data", "qa_1"], "--task-data is written NAME=FILE, found 'qa_1'"),
        ([".", "--task", "qa_1=1", "--task-data", "qa_1="], "--task-data is written NAME=FILE, found 'qa_1='"),
        ([".", "--task", "single=1", "--needles", "2"], "each name once; found 'single' twice"),
        ([".", "--backend", "fast"], "unknown back-end 'fast'"),
        ([".", "--dtype", "int3"], "dtype must be one of"),
        ([".", "-o", "/no/such/folder/eval.json"], "/no/such/folder"),
        ([".", "-o", "eval.jsonl"], "must not end in .jsonl"),
    ],
)
def test_bad_input_is_one_line(run, args, says):
    code, out, err = run(*args)
    assert (code, out) == (2, "")
    lines = [line for line in err.splitlines() if line.strip()]
    assert lines[-1].startswith("error: ")
    assert says in lines[-1]
    assert sum(line.startswith("error: ") for line in lines) == 1
    assert "Traceback" not in err
