"""RULER's tasks: what their prompts say, and how answers are scored."""

import json
import random
import re
from collections import Counter

import pytest

import moa
from moa.evaluation.tasks import TASKS
from moa.evaluation.tasks.answered import Prompt
from moa.evaluation.tasks.ruler import TASKS as RULER
from moa.evaluation.tasks.ruler.documents import Answering, Hotpot, Squad
from moa.evaluation.tasks.ruler.vocabulary import REPEATED, draw
from moa.plans.errors import MoaError

WRITTEN = [task.name for task in RULER if not isinstance(task, Answering)]
LENGTH = 8192
NEEDLE = re.compile(r"One of the special magic (\w+) for (\S+) is: (\S+)\.")


def text_of(tokenizer, name, length=LENGTH, seed=0):
    prompt = TASKS[name].samples(tokenizer, length, 1, seed)[0]
    return tokenizer.decode(list(prompt.ids)), prompt.answers


@pytest.mark.parametrize("name", WRITTEN)
def test_samples_are_as_long_as_their_length_allows(two_samples, tokenizer, name):
    task = TASKS[name]
    for prompt in two_samples(task, LENGTH, 600):  # a sentence is many tokens
        assert all(answer in tokenizer.decode(list(prompt.ids)) for answer in prompt.answers)
        assert task.mark(f"\x07{' '.join(prompt.answers).upper()}", prompt) == 1.0
        assert task.mark("nothing of it", prompt) == 0.0


@pytest.mark.parametrize(
    ("name", "needles", "answers"),
    [("niah_single_1", 1, 1), ("niah_single_2", 1, 1), ("niah_multikey_1", 4, 1), ("niah_multivalue", 4, 4),
     ("niah_multiquery", 4, 4), ("niah_multikey_2", 20, 1), ("niah_multikey_3", 10, 1)],
)  # fmt: skip
def test_needles_are_in_the_text_and_the_asked_ones_are_the_answers(tokenizer, name, needles, answers):
    text, wanted = text_of(tokenizer, name)
    found = NEEDLE.findall(text)
    assert len(found) >= needles if needles > 4 else len(found) == needles
    asked = text.rpartition("mentioned in the provided text?")[0].rpartition("\n")[2]
    assert sorted(value for _, key, value in found if key in asked) == sorted(wanted)
    assert len(wanted) == answers
    many = answers > 1
    assert text.endswith(f"mentioned in the provided text {'are' if many else 'is'}")
    assert ("Some special magic numbers are hidden" in text) == many


def test_the_kinds_of_values():
    rng = random.Random(0)
    assert re.fullmatch(r"[1-9]\d{6}", draw(rng, "numbers"))
    assert re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", draw(rng, "uuids"))
    assert re.fullmatch(r"[a-z]\S*-\S+( \S+)*", draw(rng, "words"))


def test_the_chain_of_variables_leads_to_the_answers(tokenizer):
    text, wanted = text_of(tokenizer, "vt")
    value = re.findall(r"assigned the value (\d+) in the text above", text)[-1]
    names = []
    for name, source in re.findall(r"VAR (\w{5}) = (?:VAR )?(\w+)", text):
        if source in (value, *names):
            names.append(name)
    assert tuple(names) == wanted
    assert len(wanted) == 5
    solved = re.search(r"they are:  ((?:[A-Z]{3} ?){5})\n", text)
    assert solved is not None
    assert text.endswith(f"5 variables are assgined the value {value}, they are:")


class Pieces:
    """A tokenizer whose tokens are words with the white space before them, so that a text is its tokens, joined."""

    chat_template = None

    def __call__(self, text, add_special_tokens=True):
        return {"input_ids": re.findall(r"\s*\S+|\s+$", text)}


def test_the_solved_example_of_variables_is_as_long_as_ruler_s():
    (prompt,) = TASKS["vt"].samples(Pieces(), 2048, 1, 0)
    example, question = "".join(prompt.ids).split("\n\n\n\n")
    used = len(Pieces()(example)["input_ids"]) + 30
    sentences = example.count(REPEATED)
    assert sentences % 5 == 0
    assert used <= 500 < used + 5 * len(REPEATED.split())
    assert re.search(r"they are:  [A-Z]{3}( [A-Z]{3}){4}$", example)
    for part, letters in ((example, 3), (question, 5)):
        text = part.split("following text.\n\n")[1].split("\nQuestion: ")[0]
        assert len(re.findall(rf"VAR [A-Z]{{{letters}}} = (?:\d{{5}}|VAR [A-Z]{{{letters}}} ) ", text)) == 5
        noise = re.sub(r"VAR [A-Z]+ = (?:\d+|VAR [A-Z]+ ) ", "", text)
        assert noise == " ".join([f"{REPEATED}\n"] * text.count(REPEATED))


@pytest.mark.parametrize(("length", "often", "seldom"), [(4095, 6, 1), (12_000, 30, 3)])
def test_common_words_are_repeated_as_often_as_said(tokenizer, length, often, seldom):
    text, wanted = text_of(tokenizer, "cwe", length)
    listed = text.split("Memorize the ones that appear most often.\n")[2].split("\nQuestion:")[0]
    numbers = re.findall(r"(\d+)\. (.+?)(?= \d+\. |$)", listed)
    assert [int(number) for number, _ in numbers] == list(range(1, len(numbers) + 1))
    counts = Counter(word for _, word in numbers)
    assert {counts[word] for word in wanted} == {often}
    assert len(wanted) == 10
    assert {counts[word] for word in counts if word not in wanted} <= {seldom}


def test_frequent_words_follow_zipf_s_law(tokenizer):
    text, wanted = text_of(tokenizer, "fwe")
    words = text.split("frequently appeared coded words. ")[1].split("\nQuestion:")[0].split()
    counts = Counter(words).most_common(4)
    assert [word for word, _ in counts] == ["...", *wanted]
    for k, (_, count) in enumerate(counts, 1):
        assert count == pytest.approx(counts[0][1] / k**2, abs=1)


def test_marks_are_the_part_of_the_answers_or_any_of_them():
    needles, documents = TASKS["niah_multivalue"], TASKS["qa_1"]
    assert needles.mark("it is ABC\x00, and def", Prompt((), ("abc", "DEF", "ghi", "jkl"))) == 0.5
    assert documents.mark("It is ABC", Prompt((), ("abc", "xyz"))) == 1.0
    assert documents.mark("It is AB", Prompt((), ("abc", "xyz"))) == 0.0


def test_a_length_without_room_is_refused(tokenizer):
    with pytest.raises(
        MoaError, match=r"task niah_single_1 needs at least \d+ tokens, of which 128 are for the answer"
    ):
        TASKS["niah_single_1"].samples(tokenizer, 300, 1, 0)


@pytest.fixture
def squad(tmp_path):
    """SQuAD 2.0's format: two articles, and a question without an answer."""
    articles = [
        {
            "title": title,
            "paragraphs": [
                {
                    "context": f"{title} paragraph {i} says {title}{i}.",
                    "qas": [
                        {"question": f"What says {title} {i}?", "answers": [{"text": f"{title}{i}"}, {"text": "else"}]},
                        {"question": "Impossible?", "answers": [], "is_impossible": True},
                    ],
                }
                for i in range(40)
            ],
        }
        for title in ("North", "South")
    ]
    path = tmp_path / "dev.json"
    path.write_text(json.dumps({"data": articles}))
    return path


def test_squad_s_paragraphs_fill_the_text_those_of_the_article_first(tokenizer, squad):
    task = Squad("qa_1", ("qa_1",), 0, "questions", 32, data=str(squad))
    for prompt in task.samples(tokenizer, 4096, 3, 0):
        text = tokenizer.decode(list(prompt.ids))
        title, number = re.search(r"Question: What says (\w+) (\d+)\?", text).groups()
        assert prompt.answers == (f"{title}{number}", "else")
        shown = re.findall(r"Document (\d+):\n(\w+) paragraph (\d+) says", text)
        assert (title, number) in {each[1:] for each in shown}
        assert [int(i) for i, *_ in shown] == list(range(1, len(shown) + 1))
        assert Counter(each[1] for each in shown)[title] == min(40, len(shown))
        assert 4096 - 100 < len(prompt.ids) + 32 <= 4096
        assert text.endswith("Answer:")


def test_hotpot_s_paragraphs_all_stand_in_the_text(tokenizer, tmp_path):
    rows = [
        {
            "question": f"Which is {i}?",
            "answer": f"number {i}",
            "context": [[f"T{i}{j}", ["a ", "b."]] for j in range(3)],
        }
        for i in range(4)
    ]
    path = tmp_path / "hotpot.json"
    path.write_text(json.dumps(rows))
    prompt = Hotpot("qa_2", ("qa_2",), 0, "questions", 32, data=str(path)).samples(tokenizer, 4096, 1, 0)[0]
    text = tokenizer.decode(list(prompt.ids))
    number = re.search(r"Question: Which is (\d)\?", text).group(1)
    assert prompt.answers == (f"number {number}",)
    assert len(re.findall(r"Document \d+:\nT\d\d\na b\.", text)) == 12  # there are no more


def test_rows_of_the_hub_are_read_likewise(monkeypatch):
    rows = {
        "rajpurkar/squad_v2": [
            {"title": "A", "context": "c1", "question": "q1", "answers": {"text": ["a1"]}},
            {"title": "A", "context": "c2", "question": "q2", "answers": {"text": []}},
        ],
        "hotpotqa/hotpot_qa": [
            {"question": "q", "answer": "a", "context": {"title": ["t1", "t2"], "sentences": [["x"], ["y", "z"]]}}
        ],
    }
    module = "moa.evaluation.tasks.ruler.documents.load_rows"
    monkeypatch.setattr(module, lambda name, **_: (rows[name], []))
    assert [(each.question, each.needed, each.near) for each in Squad.read(None)] == [("q1", ("c1",), ("c2",))]
    assert Hotpot.read(None)[0].needed == ("t1\nx", "t2\nyz")


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({"qa_1": "absent.json"}, "no data file at absent.json"),
        ({"niah_single_1": "x"}, "task data is for qa_1, qa_2, .*found 'niah_single_1'"),
    ],
)
def test_bad_data_is_refused(model, tokenizer, data, says):
    with pytest.raises(MoaError, match=says):
        moa.evaluate_plans((model, tokenizer), {}, tasks={"qa_1": 1}, data=data)


def test_a_file_of_another_format_is_refused(tokenizer, tmp_path):
    (tmp_path / "x.json").write_text("[1]")
    task = Squad("qa_1", ("qa_1",), 0, "questions", 32, data=str(tmp_path / "x.json"))
    with pytest.raises(MoaError, match=r"x\.json must have the format of Squad's JSON; TypeError"):
        task.samples(tokenizer, 1024, 1, 0)


def test_rows_are_scored_and_shown(model, plan, tokenizer, squad, monkeypatch):
    """The random model knows nothing; where it is made to say the answer, decoding stops and the score is 1."""
    found = moa.evaluate_plans(
        (model, tokenizer), {"plan": plan}, lengths=[1024], tasks={"niah_single_1": 1, "qa_1": 1},
        data={"qa_1": squad}, uniform=False, backend="torch",
    )  # fmt: skip
    for row in found["rows"]:
        assert row["niah_single_1"] == {
            "samples": 1, "rate": 0.0, "interval": [0.0, pytest.approx(0.793, abs=1e-3)], "kept": None,
            "by_sample": [0.0],
        }  # fmt: skip
        assert row["cache"]["allocated"] >= row["cache"]["predicted"] > 0
    monkeypatch.setattr("moa.evaluation.tasks.answered.greedy", lambda *_: "Or else.")
    again = moa.evaluate_plans(
        (model, tokenizer), {"plan": plan}, lengths=[1024], tasks={"qa_1": 2}, data={"qa_1": squad}, uniform=False
    )
    assert [row["qa_1"]["rate"] for row in again["rows"]] == [1.0, 1.0]
    assert [row["qa_1"]["kept"] for row in again["rows"]] == [1.0, 1.0]
