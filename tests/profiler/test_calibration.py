import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from moa.hf.text import split
from moa.plans.errors import MoaError
from moa.profiler import sources
from moa.profiler.calibration import Fact, ask, questions
from moa.profiler.estimators import ESTIMATORS
from moa.profiler.sources import DEFAULT, SOURCES

TASKS = [name for name, source in SOURCES.items() if source.recalls]


def test_every_source_of_the_folder_is_listed() -> None:
    files = Path(sources.__path__[0]).glob("*.py")
    assert {file.stem for file in files} - {"__init__"} == set(SOURCES)
    assert set(DEFAULT) <= {name for name, source in SOURCES.items() if source.estimator in ESTIMATORS}


@pytest.mark.parametrize("chat", [True, False])
@pytest.mark.parametrize("length", [2048, 3000])
@pytest.mark.parametrize("name", list(SOURCES))
def test_samples_have_exactly_the_length_and_repeat_by_seed(tokenizer: Any, name: str, length: int, chat: bool) -> None:
    draw = SOURCES[name].sample
    sample = draw(tokenizer, length, random.Random(3), chat)
    assert len(sample.ids) == length
    assert sample == draw(tokenizer, length, random.Random(3), chat)
    assert sample != draw(tokenizer, length, random.Random(4), chat)
    assert min(sample.response) >= 1
    assert list(sample.response) == sorted(set(sample.response))


@pytest.mark.parametrize("chat", [True, False])
@pytest.mark.parametrize("name", TASKS)
def test_responses_are_the_answers_stated_in_the_context(tokenizer: Any, name: str, chat: bool) -> None:
    sample = SOURCES[name].sample(tokenizer, 4096, random.Random(0), chat)
    runs: list[list[int]] = []
    for i in sample.response:
        if runs and runs[-1][-1] == i - 1:
            runs[-1].append(i)
        else:
            runs.append([i])
    assert questions(4096) // 2 <= len(runs) <= questions(4096)
    context = tokenizer.decode(sample.ids[: runs[0][0]])
    for run in runs:
        assert tokenizer.decode([sample.ids[i] for i in run]).strip() in context


def test_facts_lie_at_every_depth(tokenizer: Any) -> None:
    facts = [Fact(f"Fact {i} is", f"x{i}y", f"What is fact {i}?") for i in range(12)]
    sample = ask(tokenizer, 4096, random.Random(1), True, facts)
    text = tokenizer.decode(sample.ids[: sample.response[0]])  # the context, and the first question
    depths = [text.index(f.statement) / len(text) for f in facts]
    assert depths == sorted(depths)
    assert depths[0] < 0.2
    assert depths[-1] > 0.8
    assert max(b - a for a, b in pairwise(depths)) < 0.25


def test_a_length_too_short_for_the_questions_is_refused(tokenizer: Any) -> None:
    with pytest.raises(MoaError, match="use a longer length, by"):
        SOURCES["facts"].sample(tokenizer, 256, random.Random(0), True)


def test_text_is_calibration_text_only(tokenizer: Any) -> None:
    sample = SOURCES["text"].sample(tokenizer, 3000, random.Random(0), True)
    text = tokenizer.decode(sample.ids)
    assert any(text[:400] in document or document[:200] in text for document in split("calibration"))
    assert not any(document[:200] in text for document in split("evaluation"))
