"""Pass keys, pairs, lines and chats: what their prompts say, and how answers are scored."""

import json
import re

import pytest
import torch

from moa.evaluation.haystack import haystack
from moa.evaluation.rows import Row
from moa.evaluation.tasks import TASKS
from moa.evaluation.tasks.answered import Prompt
from moa.evaluation.tasks.needles import ask
from moa.plans.plan import Plan

LENGTH = 4096


def written(tokenizer, name, seed=0):
    prompt = TASKS[name].samples(tokenizer, LENGTH, 1, seed)[0]
    return tokenizer.decode(list(prompt.ids)), prompt.answers


@pytest.mark.parametrize(("name", "part"), [("passkey", 90), ("kv_retrieval", 83), ("line_retrieval", 80)])
def test_samples_are_as_long_as_their_length_allows(two_samples, name, part):
    two_samples(TASKS[name], LENGTH, part)


def test_a_pass_key_is_said_twice_in_a_repeated_text(tokenizer):
    text, (answer,) = written(tokenizer, "passkey")
    assert re.findall(r"\d+", text) == [answer] * 2
    assert f"The pass key is {answer}. Remember it. {answer} is the pass key." in text
    assert text.count("The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again.") > 30
    assert text.endswith("The pass key is")
    depths = {written(tokenizer, "passkey", seed)[0].index("Remember it") // 500 for seed in range(12)}
    assert len(depths) > 3


def test_pairs_are_an_object_of_json_with_the_key_in_it(tokenizer):
    text, (answer,) = written(tokenizer, "kv_retrieval")
    pairs = json.loads(text[text.index("{") : text.index("}") + 1])
    assert len(pairs) > 30
    assert len({*pairs, *pairs.values()}) == 2 * len(pairs)
    key = re.search(r'\n\nKey: "(\S+)"', text)
    assert key is not None
    assert pairs[key[1]] == answer
    assert text.endswith("Corresponding value:")


def test_lines_are_those_of_longeval_and_one_is_asked_for(tokenizer):
    text, (answer,) = written(tokenizer, "line_retrieval")
    lines = dict(re.findall(r"^line (.+): REGISTER_CONTENT is <(\d+)>$", text, re.MULTILINE))
    assert len(lines) > 40
    assert all(1 <= int(number) <= 50_000 for number in lines.values())
    asked = re.search(r"What is the REGISTER_CONTENT in line (.+)\?", text)
    assert asked is not None
    assert lines[asked[1]] == answer
    assert text.endswith(f"The REGISTER_CONTENT in line {asked[1]} is")


@pytest.mark.parametrize(
    ("text", "right", "known"),
    [(" <318>.", 1, True), ("318", 1, False), ("3180>", 0, True), (" <31", 0, False), ("it is 318 ", 1, True),
     ("12, not 318", 0, True), ("none", 0, False)],
)  # fmt: skip
def test_the_first_number_is_the_answer_once_it_has_ended(text, right, known):
    task = TASKS["line_retrieval"]
    prompt = Prompt((), ("318",))
    assert task.mark(text, prompt) == right
    assert task.known(text, prompt) is known


def test_turns_follow_the_right_answers_to_those_before(tokenizer):
    chat = haystack(tokenizer, 2500, 4, 1, 3, chat=True)
    text, *turns = (tokenizer.decode(list(part)) for part in (chat.ids, *(q.ids for q in chat.questions)))
    assert len(chat.ids) + sum(len(q.ids) for q in chat.questions) == 2500
    assert turns[0].startswith("\n\nQuestion: ")
    for before, turn, said in zip(chat.questions, turns[1:], turns, strict=False):
        lead = said.rpartition("<|end|>\n")[2]
        assert turn.startswith(f" {before.answer}.<|end|>\n<|user|>\nQuestion: ")
        assert f"{lead} {before.answer}." in text
        assert "?<|end|>" in turn


def test_a_plain_chat_needs_no_template(tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizer, "chat_template", None)
    chat = haystack(tokenizer, 2500, 2, 0, 1, chat=True)
    turn = tokenizer.decode(list(chat.questions[1].ids))
    assert turn.startswith(f" {chat.questions[0].answer}.\n\nQuestion: ")
    assert "?\nAnswer: " in turn


@pytest.mark.parametrize("planned", [False, True])
def test_a_chat_s_answers_are_those_to_the_whole_text_so_far(model, plan, tokenizer, oracle, monkeypatch, planned):
    monkeypatch.setattr("moa.evaluation.tasks.needles.undecided", lambda *_: True)
    chat, shown, wanted = haystack(tokenizer, 700, 2, 0, 1, chat=True), torch.tensor([], dtype=torch.int64), []
    shown = torch.tensor(chat.ids)
    for question in chat.questions:
        shown = torch.cat([shown, torch.tensor(question.ids)])
        ids = shown
        for _ in range(8):
            logits = oracle(model, plan, ids) if planned else model(ids[None]).logits[0]
            ids = torch.cat([ids, logits[-1].argmax(-1, keepdim=True)])
        wanted.append(tokenizer.decode(ids[len(shown) :]))
    row = Row("row", plan if planned else None, "torch" if planned else None)
    assert ask(model, tokenizer, row, chat, chat=True)["answers"] == wanted


def test_turns_are_scored_by_turn(model, tokenizer):
    task = TASKS["turns"]
    contents = task.samples(tokenizer, 2500, 2, 0)
    assert all(len(content.questions) == 4 for content in contents)
    results = [{"right": [True, True, False, False]}, {"right": [True, False, False, True]}]
    score = task.score(contents, results, results)
    assert [turn["right"] for turn in score["by_turn"]] == [2, 1, 0, 1]
    assert score["right"] == 4
    _, result = next(task.measure(model, tokenizer, [Row("plan", Plan.dense(model), "torch")], contents[0]))
    assert len(result["right"]) == 4
