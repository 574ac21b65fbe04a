import numpy as np
import pytest
import torch

from moa.evaluation.haystack import Haystack, Question
from moa.evaluation.rows import Row
from moa.evaluation.tasks.needles import answered, ask, undecided
from moa.plans.plan import Plan, Rule


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
def test_a_question_is_decoded_as_its_answer_is_where_a_plan_reads(fresh, tokenizer, oracle, monkeypatch):
    """The 30 tokens of the question read, and so do those of the answer; the text does not."""
    model = fresh(vocab_size=len(tokenizer))
    plan = Plan.from_rules(model, {}, defaults=Rule(alpha=0, beta=1, read=1 / 4))
    monkeypatch.setattr("moa.evaluation.tasks.needles.undecided", lambda *_: True)
    shown = torch.randint(1, len(tokenizer), (330,), generator=torch.Generator().manual_seed(5))
    hay = Haystack(tuple(shown[:300].tolist()), (Question(tuple(shown[300:].tolist()), "x", 0.5),))
    whole = shown
    for _ in range(8):
        reads = np.arange(len(shown)) >= 300
        shown = torch.cat([shown, oracle(model, plan, shown, reads)[-1].argmax(-1, keepdim=True)])
        late = np.arange(len(whole)) >= 330
        whole = torch.cat([whole, oracle(model, plan, whole, late)[-1].argmax(-1, keepdim=True)])
    found = ask(model, tokenizer, Row("row", plan, "torch"), hay)
    monkeypatch.setattr("moa.evaluation.tasks.needles.answered", lambda text, answer: text == answer)
    at_once = tokenizer.decode(whole[330:])
    assert found["answers"] == [tokenizer.decode(shown[330:])] != [at_once]
    known = Haystack(
        hay.ids, tuple(Question(hay.questions[0].ids, answer, 0.5) for answer in (*found["answers"], at_once))
    )
    found = ask(model, tokenizer, Row("row", plan, "torch"), known)
    assert (found["right"], found["in_one_call"]) == ([True, False], [False, True])
    dense = ask(model, tokenizer, Row("dense", None), hay)
    assert "in_one_call" not in dense
