import numpy as np
import pytest
import torch
from torch.nn.functional import kl_div

from moa.evaluation.rows import Row
from moa.evaluation.tasks import TASKS
from moa.evaluation.tasks.generation import Begun, generated
from moa.plans.plan import Plan, Rule


@torch.no_grad()
def test_the_dense_model_s_text_is_decoded_against_the_whole_logits(fresh, tokenizer, oracle):
    model, task = fresh(vocab_size=len(tokenizer)), TASKS["generation"]
    plan = Plan.from_rules(model, {}, defaults=Rule(alpha=0, beta=1, read=1 / 4))
    (begun,) = task.samples(tokenizer, 401, 1, 0)
    assert (len(begun.ids), begun.tokens) == (201, 200)
    ids = torch.tensor(begun.ids)
    for _ in range(200):
        ids = torch.cat([ids, model(ids[None]).logits[0, -1].argmax(-1, keepdim=True)])
    assert generated(model, begun) == ids[201:].tolist()
    rows = [Row("dense", None), Row("all", Plan.dense(model), "torch"), Row("plan", plan, "torch")]
    found = {row.name: result for row, result in task.measure(model, tokenizer, rows, begun)}
    dense = model(ids[None]).logits[0, 200:-1].log_softmax(-1)
    read = oracle(model, plan, ids[:-1], np.arange(400) >= 201)[200:].log_softmax(-1)
    for name, logits in (("dense", dense), ("all", dense), ("plan", read)):
        kl = kl_div(logits, dense, reduction="none", log_target=True).sum(-1)
        agrees = logits.argmax(-1) == ids[201:]
        assert found[name]["kl"] == pytest.approx([float(x.mean()) for x in kl.tensor_split(8)], abs=2e-5)
        assert found[name]["agrees"] == pytest.approx([float(x.double().mean()) for x in agrees.tensor_split(8)])
        assert found[name]["first"] == (200 if agrees.all() else int((~agrees).nonzero()[0]))
    assert found["all"]["first"] == 200
    assert found["plan"]["first"] < 200


def test_a_score_is_of_all_texts():
    task, begun = TASKS["generation"], Begun((1, 2), 8)
    results = [
        {"kl": [0.0] * 4 + [1.0] * 4, "agrees": [1.0] * 8, "first": 8},
        {"kl": [0.0] * 8, "agrees": [1.0] * 2 + [0.5] * 6, "first": 3},
    ]
    score = task.score([begun] * 2, results, results)
    assert score["kl"] == 0.25
    assert score["agreement"] == pytest.approx((8 + 5) / 16)
    assert score["agreement_by_part"] == [1.0] * 2 + [0.75] * 6
    assert score["first"] == 5.5
    assert task.cells(score) == ["0.812", "0.2500", "6"]


def test_at_most_a_thousand_tokens_are_generated(tokenizer):
    (begun,) = TASKS["generation"].samples(tokenizer, 4096, 1, 0)
    assert (len(begun.ids), begun.tokens) == (3096, 1000)
