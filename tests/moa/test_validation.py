"""The distance of a plan from dense that a search measures."""

from copy import deepcopy

import pytest
import torch

from moa.hf.load import load_model
from moa.hf.logits import hidden_of
from moa.plans.errors import MoaError
from moa.plans.plan import FULL, Plan
from moa.plans.reading import SHORT
from moa.validation import Validation


def test_dense_is_at_no_distance_and_a_cut_plan_at_some(model_folder):
    model, tokenizer = load_model(model_folder)
    check = Validation(model, tokenizer, 512, texts=2)
    dense, cut = (list(check(p)) for p in (Plan.dense(model), Plan.uniform(model, 0.4, at=512)))
    assert len(dense) == 2
    assert dense[-1].kl == pytest.approx(0, abs=1e-6)
    assert dense[-1].recall == pytest.approx(0, abs=1e-6)
    assert cut[-1].kl > 1e-6
    assert cut[-1].recall != pytest.approx(cut[-1].kl)  # of answers, not of text
    assert list(check(Plan.uniform(model, 0.4, at=512))) == cut


def test_a_tokenizer_without_a_chat_template(model_folder):
    model, tokenizer = load_model(model_folder)
    bare = deepcopy(tokenizer)
    bare.chat_template = None
    plan = Plan.uniform(model, 0.4, at=512)
    assert list(Validation(model, bare, 512, texts=1)(plan)) != list(Validation(model, tokenizer, 512, texts=1)(plan))


def test_as_many_windows_as_there_are(model_folder, monkeypatch):
    model, tokenizer = load_model(model_folder)
    monkeypatch.setattr("moa.validation.windows", lambda *_: [[1] * 512])
    assert len(list(Validation(model, tokenizer, 512)(Plan.dense(model)))) == 1
    monkeypatch.setattr("moa.validation.windows", lambda *_: [])
    with pytest.raises(MoaError, match="no window of 512 tokens: give a shorter --validate-length"):
        Validation(model, tokenizer, 512)


def test_with_reads_plans_are_measured_as_decoding_runs_them(model_folder, monkeypatch):
    model, tokenizer = load_model(model_folder)
    whole, check = (Validation(model, tokenizer, 512, texts=2, reads=reads) for reads in (False, True))
    cut = Plan.uniform(model, 0.4, at=512)
    prefill, steps = list(whole(cut)), list(check(cut))
    rounding = 5 * torch.finfo(torch.float32).eps  # of log-probabilities about -5, whose differences are small here
    assert [x.recall for x in steps] == pytest.approx([x.recall for x in prefill], rel=1e-3, abs=rounding)  # same rows
    assert steps[-1].kl > prefill[-1].kl  # of the end alone, where more is cut
    little = Plan.from_rules(model, {}, defaults=FULL.model_copy(update={"read": 1 / 32}))
    assert next(whole(little)).kl == pytest.approx(0, abs=1e-6)
    (first, *_), last = calls(monkeypatch, lambda: list(check(little))[-1])
    assert last.kl > 1e-6
    assert last.recall > 1e-6
    assert first[0] == 512 - 256 - SHORT
    assert set(first[1:]) == {SHORT}


def calls(monkeypatch, run):
    """Return the tokens of every forward call, text by text, and what `run` returns."""
    found = []

    def noted(model, ids, cache=None, **where):
        if cache is not None and not cache.get_seq_length():
            found.append([])
        found[-1].append(ids.shape[1])
        return hidden_of(model, ids, cache, **where)

    monkeypatch.setattr("moa.evaluation.tasks.decoded.hidden_of", noted)
    done = run()
    return found, done
