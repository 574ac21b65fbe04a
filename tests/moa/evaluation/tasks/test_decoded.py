import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy, kl_div

from moa.evaluation.rows import Row
from moa.evaluation.tasks import TASKS
from moa.plans.plan import Plan, Rule


@torch.no_grad()
@pytest.mark.parametrize("length", [600, 601])
def test_the_end_of_a_window_is_decoded_against_the_whole_logits(fresh, tokenizer, oracle, length):
    """Half of a short window; under a plan that reads, its tokens read, and those before it do not."""
    model, task = fresh(vocab_size=len(tokenizer)), TASKS["decoded"]
    plan = Plan.from_rules(model, {}, defaults=Rule(alpha=0, beta=1, read=1 / 4))
    window = task.samples(tokenizer, length, 1, 0)[0]
    ids, begin = torch.tensor(window), length - length // 2
    rows = [Row("dense", None), Row("all", Plan.dense(model), "torch"), Row("plan", plan, "torch")]
    found = {row.name: result for row, result in task.measure(model, tokenizer, rows, window)}
    dense = model(ids[None]).logits[0, begin:-1].log_softmax(-1)
    read = oracle(model, plan, ids, np.arange(length) >= begin)[begin:-1].log_softmax(-1)
    for name, logits in (("dense", dense), ("all", dense), ("plan", read)):
        nll = cross_entropy(logits, ids[begin + 1 :], reduction="none")
        kl = kl_div(logits, dense, reduction="none", log_target=True).sum(-1)
        for measure, values in (("nll", nll), ("kl", kl)):
            quarters = [float(q.mean()) for q in values.tensor_split(4)]
            assert found[name][measure] == pytest.approx(quarters, abs=2e-5)
    assert min(found["plan"]["kl"]) > 1e-3
