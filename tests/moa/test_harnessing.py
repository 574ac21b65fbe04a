"""Tasks of the lm-evaluation-harness on local data, dense and under plans."""

import json
import math
import re
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import moa
from moa.cli.main import app
from moa.plans.errors import MoaError
from moa.plans.plan import Plan, Rule

WORDS = ("the", "river", "runs", "slowly", "to", "the", "sea", "while", "boats", "wait", "in", "harbour", "for", "wind")
TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: {kind}
doc_to_text: "{{{{question}}}}"
metadata: {{version: 3.0}}
{more}
"""
LIKELY = """doc_to_target: "{{answer}}"
metric_list: [{metric: perplexity}]
"""
EXACT = """doc_to_target: "{{answer}}"
generation_kwargs: {until: ["."], max_gen_toks: 6, do_sample: false}
metric_list: [{metric: exact_match}]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tasks on eight long questions: how likely the answer is, and a text to generate."""
    place = tmp_path_factory.mktemp("tasks")
    rows = [
        {"question": " ".join(WORDS[(i * k) % len(WORDS)] for k in range(120)), "answer": f" {WORDS[i]}"}
        for i in range(1, 9)
    ]
    data = place / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, kind, more in (("harbour", "loglikelihood", LIKELY), ("sailing", "generate_until", EXACT)):
        (place / f"{name}.yaml").write_text(TASK.format(name=name, data=data, kind=kind, more=more))
    return place


@torch.no_grad()
def test_figures_are_those_of_the_model_under_the_plan(folder: Path, fresh, tokenizer, oracle, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval", reason="lm_eval is not installed")
    model = fresh(vocab_size=len(tokenizer), dtype=torch.float32)
    plan = Plan.from_rules(model, {}, defaults=Rule(alpha=128, beta=0))
    steps: list[tuple[int, int, str]] = []
    found = moa.evaluate_harness(
        (model, tokenizer), {"plan": plan}, ["harbour", "sailing"], folder=folder, limit=6, backend="torch",
        output=tmp_path / "out.json", progress=lambda *step: steps.append(step),
    )  # fmt: skip
    assert found["tasks"]["harbour"] == 3.0
    assert json.loads((tmp_path / "out.json").read_text()) == found
    assert steps == [(0, 2, "dense"), (1, 2, "plan"), (2, 2, "plan")]
    rows = [json.loads(line) for line in (folder / "data.jsonl").read_text().splitlines()][:6]
    for run, planned in zip(found["rows"], (False, True), strict=True):
        likely = []
        for row in rows:
            text, whole = (tokenizer(row["question"] + more)["input_ids"] for more in ("", row["answer"]))
            ids = torch.tensor(whole)
            logits = oracle(model, plan, ids) if planned else model(ids[None]).logits[0]
            chosen = logits[len(text) - 1 : -1].log_softmax(-1).gather(1, ids[len(text) :, None])
            likely.append(float(chosen.sum()))
        assert run["row"] == ("plan" if planned else "dense")
        wanted = math.exp(-sum(likely) / len(likely))
        assert run["tasks"]["harbour"]["perplexity"]["value"] == pytest.approx(wanted, rel=1e-4)
        assert list(run["tasks"]["sailing"]) == ["exact_match"]
    dense, under = (run["tasks"]["harbour"]["perplexity"]["value"] for run in found["rows"])
    assert abs(under / dense - 1) > 1e-3


def test_ruler_s_tasks_get_tokenizer_and_lengths(model_folder: Path) -> None:
    """Its frequent words need no data; the harness's RULER has a metric for each length."""
    pytest.importorskip("lm_eval", reason="lm_eval is not installed")
    found = moa.evaluate_harness(str(model_folder), {}, ["ruler_fwe"], lengths=[1024], limit=1)
    assert found["rows"][0]["tasks"]["ruler_fwe"] == {"1024": {"value": 0.0, "stderr": None}}
    with pytest.raises(MoaError, match="over the model's maximum"):
        moa.evaluate_harness(str(model_folder), {}, ["ruler_fwe"], lengths=[8192])
    with pytest.raises(MoaError, match="lengths must be one or more numbers"):
        moa.evaluate_harness(str(model_folder), {}, ["ruler_fwe"], lengths=[])


def test_what_is_refused(folder: Path, model_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval", reason="lm_eval is not installed")
    with pytest.raises(MoaError, match="lm_eval has no task 'riddles'"):
        moa.evaluate_harness(str(model_folder), {}, ["harbour", "riddles"], folder=folder)
    with pytest.raises(MoaError, match="limit must be from 1 to"):
        moa.evaluate_harness(str(model_folder), {}, ["harbour"], folder=folder, limit=0)
    with pytest.raises(MoaError, match="no folder of tasks at"):
        moa.evaluate_harness(str(model_folder), {}, ["harbour"], folder=tmp_path / "none")


def test_the_command_prints_each_metric_beside_the_others(
    folder: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("lm_eval", reason="lm_eval is not installed")
    line = ["eval", str(model_folder), "--harness", "harbour", "--harness-folder", str(folder)]
    shown = CliRunner(env={"COLUMNS": "200"}).invoke(app, [*line, "--harness-limit", "1"])
    assert shown.exit_code == 0, shown.output
    assert re.search(r"harbour +perplexity +\d+", shown.stdout)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--harness", "x", "--needles", "3"], "give no samples of moa's own tasks"),
        (["--harness-limit", "1"], "are for --harness"),
        (["--harness-lengths", "1024"], "are for --harness"),
    ],
)
def test_the_command_refuses_what_does_not_go_together(options: list[str], message: str) -> None:
    refused = CliRunner().invoke(app, ["eval", "model", *options])
    assert message in str(refused.exception)


def test_without_the_harness_a_line_says_how_to_get_it(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(MoaError, match=r"need lm_eval: pip install 'moa-attention\[harness\]'"):
        moa.evaluate_harness(str(model_folder), {}, ["harbour"])
