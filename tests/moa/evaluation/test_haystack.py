import random

import pytest

from moa.evaluation.haystack import FORMATS, HELD_OUT, haystack
from moa.plans.errors import MoaError
from moa.profiler.sources import SOURCES


@pytest.mark.parametrize("needles", [1, 4])
@pytest.mark.parametrize("chat", [True, False])
def test_prompt_has_the_asked_length_and_holds_its_answers(tokenizer, monkeypatch, needles, chat):
    if not chat:
        monkeypatch.setattr(tokenizer, "chat_template", None)
    for index in range(3):
        hay = haystack(tokenizer, 1500, needles, index, 3)
        assert len(hay.ids) + max(len(q.ids) for q in hay.questions) == 1500
        text = tokenizer.decode(hay.ids)
        for question in hay.questions:
            asked = tokenizer.decode(question.ids)
            lead = asked[max(asked.rfind(form.lead.split("{")[0]) for form in FORMATS) :]
            assert text.count(f"{lead} {question.answer}.") == 1
            assert question.answer not in asked


def test_depths_are_stratified_and_true(tokenizer):
    depths = []
    for index in range(5):
        hay = haystack(tokenizer, 3000, 4, index, 5)
        text = tokenizer.decode(hay.ids)
        assert [int(4 * q.depth) for q in hay.questions] == [0, 1, 2, 3]
        for question in hay.questions:
            assert text.index(f" {question.answer}.\n\n") / len(text) == pytest.approx(question.depth, abs=0.1)
            depths.append(question.depth)
    assert sorted(depths) == pytest.approx([(i + 0.5) / 20 for i in range(20)])


def test_samples_differ_and_repeat(tokenizer):
    first, again, other, seeded = (
        haystack(tokenizer, 1024, 1, i, 8, seed=s) for i, s in ((0, 0), (0, 0), (1, 0), (0, 1))
    )
    assert first == again
    assert len({first, other, seeded}) == 3


def test_too_short_is_refused(tokenizer):
    with pytest.raises(MoaError, match=r"length 300 leaves .* at least 64"):
        haystack(tokenizer, 300, 4, 0, 1)


@pytest.mark.parametrize("formats", [FORMATS, HELD_OUT])
def test_no_format_is_one_of_calibration(tokenizer, formats):
    texts = []
    for name in (name for name, source in SOURCES.items() if source.recalls):
        sample = SOURCES[name].sample(tokenizer, 3000, random.Random(0), True)
        texts.append(tokenizer.decode(sample.ids))
    for form in formats:
        pieces = [words.strip() for words in form.lead.split("{key}") if len(words.split()) > 2]
        assert pieces
        assert not [(words, text) for words in pieces for text in texts if words in text]


def test_held_out_formats_are_others(tokenizer):
    assert not {form.lead for form in FORMATS} & {form.lead for form in HELD_OUT}
    hay = haystack(tokenizer, 1500, 4, 0, 1, formats=HELD_OUT)
    leads = [form.lead.split("{key}")[0] or form.lead.split("{key}")[1] for form in HELD_OUT]
    text = tokenizer.decode(hay.ids)
    assert sum(lead in text for lead in leads) == len(hay.questions) == 4
