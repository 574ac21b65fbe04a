"""Calibration, validation, evaluation and use make tokens alike, whatever the tokenizer adds to a text."""

import hashlib
import json
import random
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from tokenizers.processors import TemplateProcessing

from moa.evaluation.haystack import haystack
from moa.evaluation.tasks.text import windows
from moa.generating import _encode
from moa.hf import text
from moa.hf.chat import MARK, pieces, render
from moa.hf.tokens import begin, chat_tokens, encode, start
from moa.plans.errors import MoaError, Unsupported
from moa.profiler.calibration import Sample
from moa.profiler.documents import document_source
from moa.profiler.sources import SOURCES

PLAIN = "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}<|end|>\n{% endfor %}"
WITH_BOS = "{{ bos_token }}" + PLAIN
TURN = [{"role": "user", "content": "hello"}]


def adding(tokenizer: Any, template: str | None, form: str) -> Any:
    """A tokenizer of its own that puts special tokens around a text."""
    own = deepcopy(tokenizer)
    own.add_special_tokens({"additional_special_tokens": ["<mask>"]})
    special = [(name, own.convert_tokens_to_ids(name)) for name in ("<s>", "</s>", "<mask>")]
    own.backend_tokenizer.post_processor = TemplateProcessing(single=form, special_tokens=special)
    own.chat_template = template
    return own


@pytest.fixture(params=["<s> $A", "<s> $A </s>", "<mask> <s> $A"], ids=["bos", "bos-eos", "two"])
def form(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=[None, PLAIN, WITH_BOS], ids=["no-template", "template", "template-with-bos"])
def special(tokenizer: Any, request: pytest.FixtureRequest, form: str) -> Any:
    template = request.param
    return adding(tokenizer, "<mask>" + template if template == WITH_BOS and "mask" in form else template, form)


def write(path: Path, rows: list[dict[str, str]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def check(tokenizer: Any, ids: Any, length: int) -> None:
    """The length asked, one beginning, and no end."""
    first = start(tokenizer)
    assert len(ids) == length
    assert list(ids[: len(first)]) == first
    assert not set(first) & set(ids[len(first) :])
    assert tokenizer.eos_token_id not in ids


def test_what_the_tokenizer_adds(tokenizer: Any, special: Any, form: str) -> None:
    assert start(tokenizer) == []
    assert special.convert_ids_to_tokens(start(special)) == form.split(" $A")[0].split()


@pytest.mark.parametrize("chat", [True, False])
@pytest.mark.parametrize("name", list(SOURCES))
def test_calibration_begins_as_the_tokenizer_begins(special: Any, name: str, chat: bool) -> None:
    chat = chat and special.chat_template is not None
    sample = SOURCES[name].sample(special, 1200, random.Random(1), chat)
    check(special, sample.ids, 1200)
    for i, (begins, ends) in zip(sample.response, sample.needles, strict=False):
        assert special.decode([sample.ids[i]]).strip() in special.decode(sample.ids[begins:ends])


def test_evaluation_and_use_begin_likewise(special: Any) -> None:
    for part in ("evaluation", "validation"):
        for window in windows(special, 700, 3, part):
            check(special, window, 700)
    hay = haystack(special, 1500, 2, 0, 3)
    check(special, [*hay.ids, *max((q.ids for q in hay.questions), key=len)], 1500)
    for chat in {False, special.chat_template is not None}:
        ids = _encode(special, "hello", chat)[0].tolist()
        check(special, ids, len(ids))
        if not chat:
            assert special.decode(ids, skip_special_tokens=True) == "hello"


def test_windows_of_documents_begin_likewise(special: Any, tmp_path: Path) -> None:
    told = "".join(f"{i} " for i in range(900))
    for opening in ("", "".join(special.convert_ids_to_tokens(start(special)))):
        source = document_source(write(tmp_path / "d.jsonl", [{"text": opening + told}]), special, [512, 1024])
        found = set()
        for seed in range(8):
            sample = source.sample(special, 512, random.Random(seed), True)
            check(special, sample.ids, 512)
            assert special.decode(sample.ids, skip_special_tokens=True) in told
            assert sample.response == tuple(range(1, 512))
            found.add(sample.ids)
        assert len(found) > 1


@pytest.mark.parametrize("chat", [True, False])
@pytest.mark.parametrize("size", [300, 900])
def test_a_prompt_of_ones_own_is_asked_as_in_use(special: Any, tmp_path: Path, chat: bool, size: int) -> None:
    prompt, response = "".join(f"{i} " for i in range(size))[:size], "r" * 300
    spec = write(tmp_path / "d.jsonl", [{"prompt": prompt, "response": response}])
    rendered = chat and special.chat_template is not None
    asked = _encode(special, prompt, rendered)[0].tolist()
    lengths = [len(asked) + 300, 512]
    for length in lengths:
        sample = document_source(spec, special, [length], chat).sample(special, length, random.Random(0), chat)
        check(special, sample.ids, length)
        assert sample.response == tuple(range(length - 300, length))
        assert special.decode(sample.ids[-300:]) == response
        assert list(sample.ids[length - 320 : -300]) == asked[-20:]
        if rendered:
            assert special.decode(sample.ids, skip_special_tokens=True).startswith("<|user|>\n")
    assert list(sample.ids) != asked + encode(special, response)  # the second did lose its beginning
    whole = document_source(spec, special, lengths[:1], chat).sample(special, lengths[0], random.Random(0), chat)
    assert list(whole.ids) == asked + encode(special, response)


def test_a_chat_in_use_has_todays_date(tokenizer: Any) -> None:
    dated = deepcopy(tokenizer)
    dated.chat_template = "{{ strftime_now('%Y') }}" + PLAIN
    then, now = (dated.decode(chat_tokens(dated, TURN, now=now)) for now in (False, True))
    assert then.startswith("2024")
    assert now == dated.apply_chat_template(TURN, tokenize=False)


def test_text_that_brings_its_beginning_along_has_it_once(tokenizer: Any) -> None:
    own = adding(tokenizer, WITH_BOS, "<s> $A")
    assert begin(own, encode(own, "<s>hello")) == own("hello")["input_ids"]
    assert chat_tokens(own, TURN) == own.apply_chat_template(TURN, return_dict=True)["input_ids"]


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("{{ raise_exception('turns must be of a system, too') }}", "turns of user: turns must be of a system, too"),
        ("{{ messages[0]['content'] + 1 }}", "cannot render turns of user"),
        ("{{ messages[0]['content'] }}{{ messages[0]['content'] }}", "once, found 2 of 1 marked places"),
        ("nothing", "once, found 0 of 1 marked places"),
    ],
)
def test_a_template_that_cannot_hold_the_text_is_refused(tokenizer: Any, template: str, says: str) -> None:
    own = deepcopy(tokenizer)
    own.chat_template = template
    with pytest.raises(MoaError, match=says):
        pieces(own, [{"role": "user", "content": MARK}])


def test_a_long_template_is_refused(tokenizer: Any, tmp_path: Path) -> None:
    own = deepcopy(tokenizer)
    own.chat_template = "x" * 300 + PLAIN
    spec = write(tmp_path / "d.jsonl", [{"prompt": "p" * 600, "response": "r"}])
    with pytest.raises(MoaError, match="length 512 must be twice what the chat template begins with, found 309 tokens"):
        document_source(spec, own, [512, 600])
    assert render(own, TURN)


def digest(*what: object) -> str:
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()[:16]


SAME = {
    "text": "09f68f856adee950", "facts": "bc8364594abc3823", "pairs": "50a6e804da4d05ad", "lines": "5274e8933480aab0",
    "haystack": "3eaf74bac4833535", "windows": "3dd86d356e48b3f5", "data": "e8d8bb533e2b1f5d",
    "documents": "da27fce42ece2978",
}  # fmt: skip
"""Of a tokenizer that adds nothing, with a chat template: so is SmolLM2-135M-Instruct's, of the measured tables."""


def test_samples_stay_what_the_measured_results_are_from(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = {
        str(i): "".join(f"Sentence {j} of part {i} says {(i * 37 + j * j) % 101}.\n" for j in range(60))
        for i in range(9)
    }
    monkeypatch.setattr(text, "documents", lambda: made)  # else the text would be the Python version's

    def of(sample: Sample) -> str:
        return digest(sample.ids, sample.response, sample.needles)

    hay = haystack(tokenizer, 1500, 2, 0, 3)
    rows = [{"text": "".join(f"word {j * i} " for j in range(200))} for i in range(1, 5)]
    data = document_source(write(tmp_path / "d.jsonl", rows), tokenizer, [512])
    found = {name: of(source.sample(tokenizer, 2048, random.Random(5), True)) for name, source in SOURCES.items()}
    assert {
        **found, "haystack": digest(hay.ids, [q.ids for q in hay.questions]),
        "windows": digest(windows(tokenizer, 700, 3)), "data": of(data.sample(tokenizer, 512, random.Random(2), True)),
        "documents": data.digest[:16],
    } == SAME  # fmt: skip


def test_a_tokenizer_that_changes_the_text_is_refused() -> None:
    def odd(_text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        return {"input_ids": [1, 2] if add_special_tokens else [3]}

    with pytest.raises(Unsupported, match=r"found \[1, 2\] for \[3\]"):
        start(odd)
