"""RULER's tasks as moa writes and scores them, beside lm_eval's: the same text once random words have one name."""

import random
import re
from collections import Counter
from dataclasses import replace
from importlib import import_module

import pytest
from transformers import BatchEncoding

from moa.evaluation.tasks import TASKS
from moa.evaluation.tasks.answered import Prompt
from moa.evaluation.tasks.ruler.vocabulary import REPEATED

LENGTH, SIZE = 1024, 30


class Pieces:
    """A tokenizer whose tokens are words with the white space before them."""

    chat_template = None

    def __call__(self, text, add_special_tokens=True):
        return BatchEncoding({"input_ids": re.findall(r"\s*\S+|\s+$", text)})


@pytest.fixture
def theirs(monkeypatch):
    """A module of lm_eval's RULER, which must not download what only its essays need."""
    pytest.importorskip("lm_eval", reason="lm_eval is not installed")
    pytest.importorskip("nltk", reason="nltk is not installed").data.find  # noqa: B018
    monkeypatch.setattr("nltk.data.find", lambda *_: None)
    return lambda name: import_module(f"lm_eval.tasks.ruler.{name}")


def written(name, size=SIZE, **changed):
    words = replace(TASKS[name], **changed).write(random.Random(0), size, LENGTH)
    return f"{words.question} {words.lead}", words.answers


def plain(text):
    return " ".join(text.split())


def test_variables(theirs):
    module, tokenizer = theirs("vt_utils"), Pieces()
    example = module.sys_vartrack_w_noise_random(tokenizer, 1, 500, incremental=5)[0]
    (found,) = module.sys_vartrack_w_noise_random(tokenizer, 1, LENGTH, icl_example=dict(example))
    (prompt,) = TASKS["vt"].samples(tokenizer, LENGTH, 1, 0)
    ours = "".join(prompt.ids)

    def named(text):
        text, assigned = re.subn(r"VAR [A-Z]+ = (?:\d+|VAR [A-Z]+ ) ", "", text)
        return re.sub(r"\b[A-Z]{3,}\b", "NAME", re.sub(r"\d{5}", "NUMBER", text)), assigned

    split = "\n\n\n\n"
    (their_example, their_question), (our_example, our_question) = (
        text.split(split) for text in (f"{found['input']} {found['gen_prefix']}", ours)
    )
    assert named(our_example) == named(their_example)
    shortened = (
        re.sub(rf"(?:{re.escape(REPEATED)}\n ?)+", "", named(each)[0]) for each in (our_question, their_question)
    )
    assert len(set(shortened)) == 1


def test_common_words(theirs):
    example, text, answers = theirs("cwe_utils").generate_input_output(SIZE + 10, LENGTH)
    ours, right = written("cwe")
    lists = []
    for whole, wanted in ((f"{example}\n{text}", answers), (ours, right)):
        numbered = re.findall(r"\d+\. (.+?)(?= \d+\. |\n)", whole.split("most often.\n")[2])
        counts = Counter(numbered)
        shape = re.sub(r"\d+\. [^\n]+?(?= \d+\. |\n)", "ITEM", whole)
        lists.append((plain(shape), sorted(counts.values()), {counts[word] for word in wanted}))
    assert lists[0] == lists[1]


def test_frequent_words(theirs):
    module, size = theirs("fwe_utils"), 500
    text, answers, _ = module.generate_input_output(10**6, Pieces(), num_words=size, vocab_size=LENGTH // 50)
    found = []
    for whole, right in ((text, answers), written("fwe", size)):
        before, after = whole.split("coded words. ")
        coded, end = after.split("\nQuestion:")
        counts = Counter(coded.split())
        found.append((before, end, sorted(counts.values()), [counts[word] for word in right], counts["..."]))
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("name", "kinds"),
    [("niah_single_1", ("repeat", "words", "numbers")), ("niah_multikey_3", ("needle", "uuids", "uuids"))],
)
def test_needles_in_what_is_no_essay(theirs, name, kinds):
    utils, module = theirs("niah_utils"), theirs("prepare_niah")
    haystack, keys, values = kinds
    (found,) = module.generate_samples(
        module.get_haystack(haystack), Pieces(), max_seq_length=LENGTH, template=utils.TEMPLATE, type_haystack=haystack,
        type_needle_k=keys, type_needle_v=values, num_samples=1,
    )  # fmt: skip
    ours, _ = written(name)
    needle = r"(?:One of the special magic \w+ for [^:\n]+ is: \S+\.\n?)"

    def shape(text):
        text = re.sub(rf"{needle}|{re.escape(REPEATED)}\n?", "", text)
        return plain(re.sub(r"(?<= for )[^\n]+?(?= mentioned in)", "KEY", text))

    assert shape(ours) == shape(f"{found['input']} {found['gen_prefix']}")
    assert re.findall(needle, ours)


@pytest.mark.parametrize("text", ["ABC, x", "abc\x00 Def ghi", "none", " abc def ghi jkl\n"])
def test_scores(theirs, text):
    module, answers = theirs("common_utils"), ["abc", "DEF", "ghi", "jkl"]
    for name in ("niah_multivalue", "vt", "cwe", "fwe"):
        doc = {"max_length": LENGTH, "outputs": answers}
        wanted = module.process_results(doc, [text])[str(LENGTH)]
        assert TASKS[name].mark(text, Prompt((), tuple(answers))) == wanted
