import json
import math

import numpy as np
import pytest
import torch
from scipy.stats import binomtest
from torch.nn.functional import cross_entropy, kl_div

from moa.evaluation.comparison import compare
from moa.evaluation.haystack import Haystack, Question
from moa.evaluation.interval import paired, wilson
from moa.evaluation.journal import Journal
from moa.evaluation.rows import Row, rows_at
from moa.evaluation.samples import Part
from moa.evaluation.tasks.needles import answered, ask, undecided
from moa.evaluation.tasks.text import divergence, windows
from moa.hf.text import split
from moa.plans.errors import MoaError, ModelMismatch, Unsupported
from moa.plans.plan import FULL, Plan, Rule

SMALL = Part(576, {"text": 1, "single": 2, "four": 1})


@pytest.fixture(scope="module")
def model(fresh, tokenizer):
    return fresh(vocab_size=len(tokenizer), dtype=torch.float32)


@pytest.fixture(scope="module")
def plan(model):
    return Plan.from_rules(model, {}, defaults=Rule(alpha=128, beta=0.0))


@pytest.mark.parametrize(
    ("text", "answer", "right"),
    [
        (" ginger.", "ginger", True),
        (" Ginger and", "ginger", True),
        (" 1973.", "1973", True),
        (" 19731", "1973", False),
        (" not ginger", "ginger", False),
        ("", "ginger", False),
        (" gin", "ginger", False),
        (" the red key", "The red", True),
        (' "ginger".', "ginger", True),
    ],
)
def test_only_the_words_at_the_start_count(text, answer, right):
    assert answered(text, answer) is right


@pytest.mark.parametrize(
    ("text", "open_"),
    [
        ("", True),
        (' "', True),
        (' "gin', True),
        (" ginger", True),
        (" ginger.", False),
        (" gingers", False),
        (" a", False),
    ],
)
def test_decoding_stops_when_the_answer_is_known(text, open_):
    assert undecided(text, "ginger") is open_


@pytest.mark.parametrize("planned", [False, True])
def test_ask_is_greedy_decoding_after_the_text(model, plan, tokenizer, oracle, monkeypatch, planned):
    """The model's own greedy continuation, found without a cache, is a right answer; another word is a wrong one."""
    monkeypatch.setattr("moa.evaluation.tasks.needles.undecided", lambda *_: True)
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(1, len(tokenizer), (330,), generator=generator)
    hay, suffix = ids[:300], ids[300:]
    shown = ids
    for _ in range(9):
        logits = oracle(model, plan, shown) if planned else model(shown[None]).logits[0]
        shown = torch.cat([shown, logits[-1].argmax(-1, keepdim=True)])
    truth = tokenizer.decode(shown[330:338])
    row = Row("row", plan if planned else None, "torch" if planned else None)
    questions = [Question(tuple(suffix.tolist()), answer, 0.5) for answer in (truth, "elsewhere")]
    found = ask(model, tokenizer, row, Haystack(tuple(hay.tolist()), tuple(questions)))
    assert found["answers"] == [truth, truth]
    assert found["right"] == [True, False]
    expected = plan.kv_bytes(300) if planned else 300 * 2 * 2 * 2 * 16 * 4
    assert expected <= found["cache_bytes"] <= expected * 1.125


@torch.no_grad()
def test_divergence_against_the_whole_logits(model, plan, tokenizer, oracle):
    window = windows(tokenizer, 600, 1)[0]
    ids = torch.tensor(window)
    found = divergence(model, [Row("dense", None), Row("plan", plan, "torch")], window)
    dense = model(ids[None]).logits[0, :-1].log_softmax(-1)
    for name, logits in (("dense", dense), ("plan", oracle(model, plan, ids)[:-1].log_softmax(-1))):
        nll = cross_entropy(logits, ids[1:], reduction="none")
        kl = kl_div(logits, dense, reduction="none", log_target=True).sum(-1)
        for measure, values in (("nll", nll), ("kl", kl)):
            quarters = [float(q.mean()) for q in values.tensor_split(4)]
            assert found[name][measure] == pytest.approx(quarters, abs=2e-5)
    assert max(found["dense"]["kl"]) == 0 < found["plan"]["kl"][-1]


def test_windows_are_held_out_text_in_order(tokenizer):
    texts = [tokenizer.decode(ids) for ids in windows(tokenizer, 700, 3)]
    assert [len(ids) for ids in windows(tokenizer, 700, 3)] == [700] * 3
    assert "".join(texts) in "\n\n".join(split("evaluation"))


def test_rows_samples_and_figures(model, plan, tokenizer):
    before = model(torch.arange(1, 80)[None]).logits
    found = compare(model, tokenizer, [("narrow", plan)], [SMALL, Part(600, {"text": 1, "four": 0})])
    assert json.loads(json.dumps(found)) == found
    rows = found["rows"]
    assert [(r["length"], r["row"]) for r in rows] == [
        (n, name) for n in (576, 600) for name in ("dense", "narrow", "uniform like narrow")
    ]
    dense, narrow, twin = rows[:3]
    assert (dense["density"], dense["text"]["kl"]) == (1.0, 0.0)
    assert narrow["density"] == twin["density"] == plan.density(576)
    assert narrow["kv_bytes"] == plan.kv_bytes(576) < dense["kv_bytes"]
    # This plan is a uniform window, so its twin sees the same and has the same figures.
    assert {**twin, "row": "narrow"} == narrow
    assert narrow["text"]["kl"] > 0
    assert dense["text"]["perplexity"] == pytest.approx(math.exp(np.log(dense["text"]["perplexity_by_quarter"]).mean()))
    assert dense["single"]["questions"] == 2
    assert dense["four"]["questions"] == 4
    assert sum(d["questions"] for d in dense["four"]["by_depth"]) == 4
    assert narrow["cache"]["predicted"] <= narrow["cache"]["allocated"] <= 1.125 * narrow["cache"]["predicted"]
    assert "single" not in rows[3]
    assert torch.equal(model(torch.arange(1, 80)[None]).logits, before)


def test_killed_anywhere_the_same_command_goes_on(model, random_plan, tokenizer, tmp_path):
    path = tmp_path / "eval.jsonl"
    arguments = model, tokenizer, [("mixed", random_plan(model, 0))], [SMALL]
    whole = compare(*arguments, journal=Journal(path))
    lines = path.read_bytes().splitlines(keepends=True)
    assert len(lines) == 3 * 4
    path.write_bytes(b"".join(lines[:5]) + lines[5][:40])
    steps = []
    again = compare(
        *arguments,
        journal=Journal(path),
        progress=lambda *step: steps.append(step),
        note=lambda said: pytest.fail(said),
    )
    assert again == whole
    assert sorted(path.read_bytes().splitlines(keepends=True)) == sorted(lines)
    assert [done for done, _, _ in steps] == sorted(done for done, _, _ in steps)
    assert steps[-1][0] == steps[-1][1]
    finished = compare(*arguments, journal=Journal(path), progress=lambda *_: pytest.fail("nothing was left to do"))
    assert finished == whole


def test_a_journal_answers_for_no_other_plan_model_or_seed(fresh, model, plan, tokenizer, tmp_path):
    path = tmp_path / "eval.jsonl"
    part = Part(512, {"single": 1})
    other = Plan.from_rules(model, {}, defaults=Rule(alpha=192, beta=0.0))
    runs = [
        ((model, tokenizer, [("p", plan)], [part]), {}, 2),
        ((model, tokenizer, [("p", other)], [part]), {}, 1),
        ((model, tokenizer, [("p", plan)], [part]), {"seed": 1}, 2),
        ((model, tokenizer, [("p", plan)], [part]), {"backend": "reference"}, 1),
        ((fresh(vocab_size=len(tokenizer), dtype=torch.float32, seed=1), tokenizer, [("p", plan)], [part]), {}, 2),
    ]
    lines = 0
    for arguments, options, new in runs:
        notes = []
        compare(*arguments, uniform=False, journal=Journal(path), note=notes.append, **options)
        said = [f"{path}: {new} results of these rows and samples are of another model, plan, seed"] if lines else []
        assert [note[: len(begin)] for note, begin in zip(notes, said, strict=True)] == said
        lines += new
        assert len(path.read_text().splitlines()) == lines


def test_a_plan_by_two_names_is_measured_once(model, plan, tokenizer, tmp_path):
    path, plans, steps = tmp_path / "eval.jsonl", [("one", plan), ("two", plan)], []
    found = compare(
        model, tokenizer, plans, [SMALL], journal=Journal(path), progress=lambda *step: steps.append(step)
    )  # fmt: skip
    first, *others = [row for row in found["rows"] if row["row"] != "dense"]
    assert [{**row, "row": "one"} for row in others] == [first] * 3  # its uniform twins too, as it is one
    assert len(path.read_text().splitlines()) == 2 * 4
    assert steps[-1][1] == 2 * 4 * 576


def test_a_foreign_journal_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "eval.jsonl"
    path.write_text('{"text": "my data"}\n')
    with pytest.raises(MoaError, match="line 1: not a result of an evaluation"):
        Journal(path)
    assert path.read_text() == '{"text": "my data"}\n'


@pytest.mark.parametrize(
    ("part", "says"),
    [
        (Part(4096, {"text": 1}), "length 4096 is over the model's maximum of 2048 tokens"),
        (Part(100, {"text": 1}), "lengths must be at least 256 tokens, found 100"),
        (Part(512, {"single": 0}), r"one of them at least 1; found contexts with one needle \(0\)"),
        (Part(512, {}), "at least 1; found none"),
        (Part(512, {"single": -1, "text": 1}), r"one needle \(-1\), windows of held-out text \(1\)"),
        (Part(512, {"riddles": 1}), "tasks must be of text, single, four, found 'riddles'"),
        (Part(1024, {"text": 10_000}), "of 1024 tokens, 10000 were asked for"),
    ],
)
def test_bad_parts(model, tokenizer, part, says):
    with pytest.raises(MoaError, match=says):
        compare(model, tokenizer, [], [part])


def test_bad_plans_and_backends(fresh, model, plan, tokenizer):
    with pytest.raises(MoaError, match="distinct names other than dense, found dense"):
        compare(model, tokenizer, [("dense", plan)], [SMALL])
    with pytest.raises(ModelMismatch, match="layers: 2 against 3"):
        compare(fresh(num_hidden_layers=3), tokenizer, [("p", plan)], [SMALL])
    with pytest.raises(Unsupported, match="unknown back-end 'fast'"):
        compare(model, tokenizer, [("p", plan)], [SMALL], backend="fast")


@pytest.mark.parametrize(("right", "count"), [(0, 20), (81, 263), (5, 5), (1, 1)])
def test_wilson_against_scipy(right, count):
    assert wilson(right, count) == pytest.approx(
        tuple(binomtest(right, count).proportion_ci(method="wilson")), abs=1e-6
    )


@pytest.mark.parametrize(
    ("both", "first", "second", "neither", "expected"),
    [(36, 12, 2, 0, (0.2, 0.0569, 0.3404)), (54, 0, 0, 0, (0.0, -0.0664, 0.0664))],
)
def test_paired_against_the_published_examples(both, first, second, neither, expected):
    """Newcombe, Statistics in Medicine 17 (1998), table II, method 10."""
    a = [True] * both + [True] * first + [False] * (second + neither)
    b = [True] * both + [False] * first + [True] * second + [False] * neither
    assert paired(a, b) == pytest.approx(expected, abs=1e-4)
    assert paired(b, a)[1:] == pytest.approx((-expected[2], -expected[1]), abs=1e-4)


@pytest.mark.parametrize("length", [512, 600, 1024, 1000])
def test_a_twin_keeps_at_least_what_the_plan_keeps_and_less_than_a_block_more(model, length):
    for full in range(5):
        rules = [FULL] * full + [Rule(alpha=128, beta=0)] * (4 - full)
        plan = Plan.from_rules(model, {0: rules[:2], 1: rules[2:]})
        _, _, twin = rows_at([("p", plan)], length, True, None)
        assert plan.density(length) <= twin.plan.density(length) < plan.density(length) + 64 / length
