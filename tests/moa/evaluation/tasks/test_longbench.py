"""LongBench's tasks: rows in their authors' format, what prompts say of them, and how answers are scored."""

import json

import pytest

import moa
from moa.evaluation.tasks import TASKS
from moa.evaluation.tasks.answered import Prompt
from moa.evaluation.tasks.longbench import TASKS as LONGBENCH
from moa.evaluation.tasks.longbench import metrics, rows
from moa.evaluation.tasks.longbench.first import EXAMPLES, Classed, LongBench
from moa.evaluation.tasks.longbench.second import Choices, letter
from moa.plans.errors import MoaError

FIRST = {
    "input": "Where does the river end?", "context": "The river begins in the hills. " * 60 + "It ends in the bay.",
    "answers": ["in the bay", "the bay"], "length": 400, "dataset": "x", "language": "en",
    "all_classes": ["Lake", "Lake or bay", "Hill"], "_id": "a1",
}  # fmt: skip
SECOND = {
    "_id": "b1", "domain": "x", "sub_domain": "y", "difficulty": "easy", "length": "short", "question": "Where to? ",
    "choice_A": "the hills", "choice_B": "the bay", "choice_C": "nowhere", "choice_D": "a lake", "answer": "B",
    "context": "The river ends in the bay.",
}  # fmt: skip


def saved(path, entries, lines=True):
    path.write_text("\n".join(map(json.dumps, entries)) if lines else json.dumps(entries))
    return str(path)


@pytest.fixture
def task(tmp_path):
    """A task of LongBench by its name, of three rows in a file."""

    def of(name):
        data = saved(tmp_path / "rows.jsonl", [FIRST | {"input": f"{FIRST['input']} {i}"} for i in range(3)])
        found = LongBench.of(name)
        return type(found)(**{**vars(found), "data": data})

    return of


@pytest.mark.parametrize("name", [each.task for each in LONGBENCH if isinstance(each, LongBench)])
def test_prompts_have_text_and_question_where_the_task_has_one(task, tokenizer, name):
    prompt = task(name).samples(tokenizer, 4096, 1, 0)[0]
    text = tokenizer.decode(list(prompt.ids))
    assert text.count(FIRST["context"]) == 1
    asks = name not in ("gov_report", "multi_news", "passage_count", "lcc")
    assert (FIRST["input"] in text) == asks
    assert ("<|user|>" in text) == (name not in EXAMPLES)
    assert prompt.answers == ("in the bay", "the bay")
    assert prompt.classes == (tuple(FIRST["all_classes"]) if name == "trec" else ())
    assert "{" not in text.replace(FIRST["context"], "")


def test_published_prompts_beside_the_rows_are_used(task, tokenizer, tmp_path):
    prompts = {"hotpotqa": "Q: {input} T: {context} {other}", "qasper": "{input}"}
    (tmp_path / "dataset2prompt.json").write_text(json.dumps(prompts))
    text = tokenizer.decode(list(task("hotpotqa").samples(tokenizer, 4096, 1, 0)[0].ids))
    assert f"Q: {FIRST['input']}" in text
    assert "{other}" in text
    for name in ("qasper", "trec"):
        with pytest.raises(MoaError, match=rf"dataset2prompt.json must be an object whose {name} is a prompt with"):
            task(name).samples(tokenizer, 4096, 1, 0)


def test_too_long_a_text_loses_its_middle(task, tokenizer):
    hotpot = task("hotpotqa")
    whole, cut = (hotpot.samples(tokenizer, n, 3, 0)[0] for n in (4096, 1024))
    assert len(whole.ids) > 1024 - 32 >= len(cut.ids) >= 1024 - 32 - 2
    text = tokenizer.decode(list(cut.ids))
    assert text.startswith("<|user|>\nThe river begins in the hills.")
    assert text.count("Question: Where does the river end? 0\nAnswer:<|end|>") == 1
    with pytest.raises(MoaError, match="task longbench:hotpotqa allows 32 tokens for an answer; found length 40"):
        hotpot.samples(tokenizer, 40, 1, 0)


def test_the_seed_draws_rows_and_all_of_them_keep_their_order(task, tokenizer):
    qasper = task("qasper")
    every = qasper.samples(tokenizer, 4096, 3, 0)
    assert [f"end? {i}" in tokenizer.decode(list(prompt.ids)) for i, prompt in enumerate(every)] == [True] * 3
    drawn = [qasper.samples(tokenizer, 4096, 1, seed)[0] for seed in range(8)]
    assert drawn == [qasper.samples(tokenizer, 4096, 1, seed)[0] for seed in range(8)]
    assert len(set(drawn)) > 1
    assert set(drawn) <= set(every)
    with pytest.raises(MoaError, match="task longbench:qasper has 3 samples, found 4"):
        qasper.samples(tokenizer, 4096, 4, 0)


def test_f1_is_that_of_words_without_articles_and_punctuation():
    assert metrics.f1("The Bay!", "bay") == 1.0
    assert metrics.f1("in the bay", "in a hill") == 0.5
    assert metrics.f1("red red blue", "red red green") == pytest.approx(2 / 3)
    assert metrics.f1("red red blue", "red green") == pytest.approx(2 / 5)
    assert metrics.f1("", "bay") == metrics.f1("hill", "bay") == 0.0


def test_rouge_l_is_that_of_the_longest_common_subsequence():
    pytest.importorskip("rouge")
    assert metrics.rouge_l("we saw ships", "we saw ships") == pytest.approx(1)
    assert metrics.rouge_l("we saw three ships", "ships we saw") == pytest.approx(2 * (2 / 4 * 2 / 3) / (2 / 4 + 2 / 3))
    assert metrics.rouge_l("", "we saw") == metrics.rouge_l("nothing", "we saw") == 0.0


def test_code_is_compared_line_by_line():
    pytest.importorskip("rapidfuzz")
    assert metrics.similar("```python\n# a comment\nreturn x\nmore", "return x") == 1.0
    assert metrics.similar("abc", "abd") == 0.67  # two edits of six letters
    assert metrics.similar("# only a comment", "return x") == 0.0
    lcc, prompt = LongBench.of("lcc"), Prompt((), ("return x",))
    assert lcc.mark("\nreturn x\nreturn y", prompt) == 1.0
    assert [lcc.known(text, prompt) for text in ("\n", "return", "# no\nreturn", "\nreturn x\n")] == [False] * 3 + [
        True
    ]


@pytest.mark.parametrize(
    ("text", "score"),
    [("It is Lake or bay", 1.0), ("Lake or bay, not Hill", 0.5), ("Lake", 0.0), ("lake or bay", 0.0), ("", 0.0)],
)
def test_classes_are_named(text, score):
    assert metrics.classified(text, "Lake or bay", FIRST["all_classes"]) == score
    assert (
        LongBench.of("trec").mark(f"\n{text}\nHill", Classed((), ("Lake or bay",), tuple(FIRST["all_classes"])))
        == score
    )


def test_numbers_are_counted_and_one_line_counts_where_the_task_says_so():
    assert metrics.counted("Paragraph 3 or 4", "Paragraph 3") == 0.5
    assert metrics.counted("none", "3") == metrics.counted("13", "3") == 0.0
    trivia, prompt = LongBench.of("triviaqa"), Prompt((), ("the hill", "bay"))
    assert trivia.mark("\nThe bay\nPassage: more", prompt) == 1.0
    assert [trivia.known(text, prompt) for text in ("\n", "\nThe", "\nThe bay\n")] == [False, False, True]
    assert LongBench.of("hotpotqa").mark("The bay\nand more words", prompt) == 0.4
    assert not LongBench.of("hotpotqa").known("The bay\n", prompt)


@pytest.mark.parametrize("lines", [True, False])
def test_the_second_version_asks_for_a_letter(tmp_path, tokenizer, lines):
    task = Choices("longbench:v2", ("v2",), 0, "questions", data=saved(tmp_path / "data.json", [SECOND], lines))
    prompt = task.samples(tokenizer, 2048, 1, 0)[0]
    text = tokenizer.decode(list(prompt.ids))
    assert "\nThe river ends in the bay.\n" in text
    assert "Question: Where to?\n(A) the hills\n(B) the bay\n(C) nowhere\n(D) a lake\n\n" in text
    assert task.mark("**The correct answer is (B)**", prompt) == 1.0
    assert task.mark("The correct answer is (A)", prompt) == 0.0
    assert [letter(said) for said in ("The correct answer is C.", "It is (B)", "")] == ["C", None, None]
    assert letter("The correct answer is A or rather The correct answer is (D)") == "D"
    assert [task.known(said, prompt) for said in ("The correct answer is B", "The correct answer is *(B)")] == [
        False,
        True,
    ]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "has no rows"), ("{", "neither JSON lines nor a list"), ("[1]", r"row 1: .*; context is None"),
        (json.dumps(FIRST) + "\n" + json.dumps(FIRST | {"answers": "x"}), r"row 2: .*answers \(list\).*answers is 'x'"),
    ],
)  # fmt: skip
def test_files_of_another_format_are_refused(tmp_path, tokenizer, text, says):
    path = tmp_path / "rows.jsonl"
    path.write_text(text)
    task = LongBench.of("qasper")
    with pytest.raises(MoaError, match=says):
        type(task)(**{**vars(task), "data": str(path)}).samples(tokenizer, 4096, 1, 0)


def test_rows_come_from_the_hub_where_no_file_is_given(monkeypatch, tokenizer):
    asked = []

    def load(name, *, columns, config, split):
        asked.append((name, config, split, tuple(columns)))
        return [{**FIRST, **SECOND}], list(columns)

    monkeypatch.setattr(rows, "load_rows", load)
    for task in LONGBENCH:
        assert len(task.samples(tokenizer, 4096, 1, 0)) == 1
    rows._rows.cache_clear()
    assert ("Xnhyacinth/LongBench", "hotpotqa", "test", ("context", "input", "answers")) in asked
    assert ("Xnhyacinth/LongBench", "trec", "test", ("context", "input", "answers", "all_classes")) in asked
    assert asked[-1][:3] == ("zai-org/LongBench-v2", None, "train")


def test_an_evaluation_has_their_scores(model, tokenizer, plan, tmp_path):
    data = {
        "longbench:hotpotqa": saved(tmp_path / "hotpotqa.jsonl", [FIRST]),
        "longbench:v2": saved(tmp_path / "v2.json", [SECOND], lines=False),
    }
    found = moa.evaluate_plans(
        (model, tokenizer), {"plan": plan}, lengths=[700], tasks=dict.fromkeys(data, 1), data=data, uniform=False,
        backend="torch",
    )  # fmt: skip
    assert [row["longbench:hotpotqa"]["samples"] for row in found["rows"]] == [1, 1]
    assert all(0 <= row["longbench:hotpotqa"]["score"] <= 1 for row in found["rows"])
    assert "rate" in found["rows"][0]["longbench:v2"]
    assert found["effective_context"].keys() == {"longbench:v2"}
    assert TASKS["longbench:hotpotqa"].cells(found["rows"][0]["longbench:hotpotqa"])[0].endswith(")")
