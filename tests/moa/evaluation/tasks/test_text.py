import math

import pytest
import torch
from torch.nn.functional import cross_entropy, kl_div

from moa.evaluation.rows import Row
from moa.evaluation.tasks import TASKS
from moa.evaluation.tasks.text import divergence, windows
from moa.hf.text import split


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


@torch.no_grad()
def test_figures_by_position(model, plan, tokenizer, oracle):
    task = TASKS["text"]
    (window,) = task.samples(tokenizer, 601, 1, 0)
    rows = [Row("dense", None), Row("plan", plan, "torch")]
    found = {row.name: result for row, result in task.measure(model, tokenizer, rows, window)}
    ids = torch.tensor(window)
    nll = cross_entropy(oracle(model, plan, ids)[:-1], ids[1:], reduction="none")
    fine = found["plan"]["by_position"]
    assert fine["nll"] == pytest.approx([float(x.mean()) for x in nll.tensor_split(32)], abs=2e-5)
    score = task.score([window], [found["plan"]], [found["dense"]])
    assert score["perplexity_by_position"] == pytest.approx([math.exp(x) for x in fine["nll"]])
    assert score["kl_by_position"] == fine["kl"]
    older = {name: figures for name, figures in found["plan"].items() if name != "by_position"}
    score.pop("perplexity_by_position"), score.pop("kl_by_position")
    assert task.score([window] * 2, [older, found["plan"]], [found["dense"]] * 2) == score | {"windows": 2}
