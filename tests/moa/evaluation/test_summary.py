"""One row of the evaluation's table from results that are written out here."""

import pytest

from moa import Plan
from moa.evaluation.haystack import Haystack, Question
from moa.evaluation.samples import Sample
from moa.evaluation.summary import summarise, table
from moa.evaluation.tasks.needles import Needles
from moa.plans.patterns import FULL


def test_answers_are_counted_by_depth_and_against_the_dense_models(model):
    depths = (0.1, 0.3, 0.55, 0.95)
    hay = Haystack(tuple(range(400)), tuple(Question((1,), "x", depth) for depth in depths))
    answers = [True, False, True, False], [True, True, True, False]
    result, dense = ({"right": right, "cache_bytes": 7} for right in answers)
    row = summarise("narrow", Plan.dense(model), [Sample("four", 512, 0, hay)], [result], [dense], model.dtype)
    four = row["four"]
    assert (four["right"], four["questions"], four["rate"]) == (2, 4, 0.5)
    assert four["by_question"] == "1010"
    assert four["kept"] == pytest.approx(2 / 3)
    assert four["minus_dense"][0] == -0.25
    assert [(d["right"], d["questions"]) for d in four["by_depth"]] == [(1, 1), (0, 1), (1, 1), (0, 0), (0, 1)]
    assert row["cache"] == {"tokens": 400, "predicted": Plan.dense(model).kv_bytes(400, 1, model.dtype), "allocated": 7}


def test_quarters_have_the_same_weight_and_dense_is_the_base(model):
    sample = Sample("text", 512, 0, list(range(512)))
    result, dense = {"nll": [2.0, 2, 2, 3], "kl": [0.0, 0, 0, 0.4]}, {"nll": [2.0, 2, 2, 2], "kl": [0.0] * 4}
    text = summarise("narrow", Plan.dense(model), [sample], [result], [dense], model.dtype)["text"]
    assert text["perplexity_against_dense"] == pytest.approx(2.718281828**0.25)
    assert (text["kl"], text["kl_by_quarter"]) == (pytest.approx(0.1), [0, 0, 0, 0.4])


def test_the_table_has_the_tasks_that_some_row_has():
    row = {"length": 512, "row": "dense", "density": 1.0, "kv_bytes": 2**20}
    four = {"four": {"rate": 0.5, "interval": [0.1, 0.9]}}
    headings, rows = table([row, row | four])
    assert headings == ["tokens", "row", "density", "KV cache, MiB", "four needles"]
    assert [cells[4:] for cells in rows] == [["-"], ["0.50 (0.10 to 0.90)"]]


def test_what_questions_in_one_call_find_has_a_column_where_a_row_reads(model):
    hay = Haystack(tuple(range(400)), tuple(Question((1,), "x", depth) for depth in (0.1, 0.3)))
    sample, dense = Sample("four", 512, 0, hay), {"right": [True, True]}
    older, newer = {"right": [True, False]}, {"right": [True, False], "in_one_call": [True, True]}
    plan = Plan.from_rules(model, {}, defaults=FULL.model_copy(update={"read": 1 / 8}))
    rows = [summarise(name, Plan.dense(model) if mine is dense else plan, [sample], [mine], [dense], model.dtype)
            for name, mine in (("dense", dense), ("older", older), ("newer", newer))]  # fmt: skip
    assert [row["four"].get("in_one_call") for row in rows] == [None, None, {"right": 2, "questions": 2, "rate": 1.0}]
    headings, cells = table(rows)
    assert headings[5:] == ["four needles", "four needles, asked in one call"]
    assert [row[-1] for row in cells] == ["-", "-", "1.00"]
    assert table(rows[:2])[0][5:] == ["four needles"]


def test_what_is_read_has_a_column_where_a_plan_reads_less_than_it_keeps(model):
    plan = Plan.from_rules(model, {}, defaults=FULL.model_copy(update={"read": 1 / 8}))
    sample = Sample("text", 512, 0, list(range(512)))
    result = {"nll": [2.0] * 4, "kl": [0.0] * 4}
    rows = [summarise(name, of, [sample], [result], [result], model.dtype)
            for name, of in (("dense", Plan.dense(model)), ("reads", plan))]  # fmt: skip
    assert rows[1]["read"] == plan.read_density(512) < 0.2
    headings, cells = table(rows)
    assert headings[:5] == ["tokens", "row", "density", "read", "KV cache, MiB"]
    assert [row[2:4] for row in cells] == [["1.000", "1.000"], ["1.000", f"{plan.read_density(512):.3f}"]]


def test_a_task_says_how_many_tokens_its_caches_hold(model):
    class Pages(Needles):
        def cached(self, content):
            return 64 * content

        def score(self, contents, results, dense):
            return {}

    task = Pages("pages", (), 0, "pages")
    row = summarise("dense", Plan.dense(model), [Sample("pages", 512, 0, 3)], [{"cache_bytes": 5}], [{}], "bfloat16",
                    {"pages": task})  # fmt: skip
    assert row["cache"]["tokens"] == 192
