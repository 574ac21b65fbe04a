"""Rows that keep the same share one prefill of each text, and have the results that each has alone."""

from dataclasses import replace

import pytest
import torch

from moa.evaluation.comparison import compare
from moa.evaluation.prefills import Prefills, kept
from moa.evaluation.rows import Row, rows_at
from moa.evaluation.samples import Part
from moa.evaluation.tasks import TASKS
from moa.plans.errors import Unsupported
from moa.plans.plan import FULL, Plan, Rule
from moa.runtime.applied import apply
from moa.runtime.cache import KVCache
from moa.runtime.variant import Variant

LONG = 260
"""Tokens of a call that only a prefill has: questions and the check of the model's head have fewer."""


WINDOW = Rule(alpha=128, beta=0)


def reading(model, *shares):
    """The plan that keeps everything, of which each layer reads its share."""
    return Plan.from_rules(model, {i: [FULL.model_copy(update={"read": r})] * 2 for i, r in enumerate(shares)})


@pytest.fixture(scope="module")
def rows(model):
    plans = {
        "eighth": reading(model, 1 / 8, 1 / 8), "mixed": reading(model, 1.0, 1 / 16), "all": Plan.dense(model),
        "window": Plan.from_rules(model, {}, defaults=WINDOW.reading(32)),
        "first": reading(model, 1 / 4, 1.0), "all of the window": Plan.from_rules(model, {}, defaults=WINDOW),
        "wider": Plan.from_rules(model, {}, defaults=Rule(alpha=192, beta=0, read=1 / 8)),
    }  # fmt: skip
    return [Row("dense", None), *(Row(name, plan, "torch") for name, plan in plans.items())]


@pytest.fixture
def prefills(model):
    """Tokens of the prefills that the model has done under a plan or none."""
    found = []

    def note(_, args, kwargs):
        ids = kwargs.get("input_ids", args[0] if args else None)
        if ids.shape[1] > LONG:
            found.append(ids.shape[1])

    hook = model.model.register_forward_pre_hook(note, with_kwargs=True)
    yield found
    hook.remove()


@pytest.mark.parametrize(
    ("name", "length", "count"),
    [(name, 640, 4) for name in ("single", "four", "decoded", "text", "passkey")]
    + [("turns", 1280, 4), ("generation", 640, 5)],  # the dense model writes a text, which it reads afterwards
)
def test_results_are_those_of_each_row_alone(model, tokenizer, rows, prefills, name, length, count):
    task = TASKS[name]
    if name == "passkey":
        task = replace(task, new_tokens=8)
    content = task.samples(tokenizer, length, 1, 0)[0]
    alone = {}
    for row in rows:
        alone |= {r.name: result for r, result in task.measure(model, tokenizer, [row], content)}
    assert len(prefills) >= len(rows)
    prefills.clear()
    together = {row.name: result for row, result in task.measure(model, tokenizer, rows, content)}
    assert together == alone
    assert len(prefills) == count  # the dense model, two windows, and all that keep everything


def test_a_copy_reads_as_its_own_plan_does_and_holds_no_more(model, rows):
    ids = torch.arange(1, 301)[None] % 200
    every = Prefills(model, rows, 400, lambda cache: model(ids, past_key_values=cache, use_cache=True).logits[0, -1])
    for row in rows:
        cache, logits = every.under(row)
        fresh = row.variant.cache(model, 400)
        with row.variant.on(model), torch.inference_mode():
            assert torch.equal(model(ids, past_key_values=fresh, use_cache=True).logits[0, -1], logits)
            more = [model(ids[:, :12], past_key_values=each, use_cache=True).logits for each in (cache, fresh)]
        assert torch.equal(*more)
        if isinstance(cache, KVCache):
            assert cache.plan is row.plan
            assert cache.nbytes == fresh.nbytes


def test_a_copy_for_a_plan_that_keeps_something_else_is_refused(model, rows):
    plans = {row.name: row.plan for row in rows}
    cache = KVCache(plans["mixed"])
    with apply(model, plans["mixed"], "torch"):
        model(torch.arange(1, 40)[None], past_key_values=cache, use_cache=True)
    with pytest.raises(Unsupported, match="keeps the same; this one keeps something else"):
        cache.copy_for(plans["window"])
    with pytest.raises(Unsupported, match="layer 0 of the cache has no summaries"):
        cache.copy_for(plans["eighth"])
    assert cache.copy_for(plans["all"]).layers[1].store.summaries is None


def test_which_rows_keep_the_same(model, rows):
    whole, window = ({row.name for row in rows if kept(row) == kept(one)} for one in (rows[1], rows[4]))
    assert whole == {"eighth", "mixed", "all", "first"}
    assert window == {"window", "all of the window"}
    twin = rows_at([("plan", reading(model, 1 / 8, 1.0))], 640, True, "torch")[-1]
    assert kept(twin) == kept(rows[1])
    assert twin.plan.reads()
    assert not rows_at([("plan", Plan.dense(model))], 640, True, "torch")[-1].plan.reads()


def test_a_comparison_counts_each_text_once(model, tokenizer, rows, prefills):
    plans = [(row.name, row.plan) for row in rows if row.name in ("eighth", "mixed", "first")]
    compare(model, tokenizer, plans, [Part(576, {"single": 2, "decoded": 1})], backend="torch", uniform=True)
    assert len(prefills) == 3 * 2  # for each of three samples the dense model, and all that keep everything


def test_rows_of_other_backends_share_nothing(model, prefills):
    rows = [Row(name, Plan.dense(model), name) for name in ("torch", "numba")]
    ids = torch.arange(1, 271)[None] % 200
    every = Prefills(model, rows, 300, lambda cache: model(ids, past_key_values=cache, use_cache=True).logits[0, -1])
    for row in rows:
        cache, _ = every.under(row)
        assert cache.plan == row.plan
    assert len(prefills) == 2
    assert Variant(rows[0].plan, backend="torch") == rows[0].variant
