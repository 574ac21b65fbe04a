"""Measure needle retrieval: facts are hidden in a text that is cached once, and asked about."""

import re
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from moa.evaluation.greedy import greedy, last_logits
from moa.evaluation.haystack import FORMATS, Format, Haystack, Question, haystack
from moa.evaluation.interval import paired, wilson
from moa.evaluation.prefills import Prefills
from moa.evaluation.rows import Row
from moa.evaluation.tasks.task import Task
from moa.plans.errors import Unsupported
from moa.plans.reading import SHORT
from moa.runtime.continuation import longrope_limit
from moa.runtime.variant import allocated_bytes

ANSWER_TOKENS = 8
"""Tokens generated per question at most; the answer counts when it stands at their start."""
DEPTHS = 5
"""Retrieval by depth is reported in fifths of the text."""


@dataclass(frozen=True)
class Needles(Task):
    """Contexts with needles at stratified depths, and one question about each.

    Attributes:
        needles: Number of needles in each context, at most one of each format.
        formats: Kinds of needles.
        chat: Whether the questions are turns of one chat, each after the right answers to those before it.
    """

    needles: int = 1
    formats: tuple[Format, ...] = FORMATS
    chat: bool = False

    def samples(self, tokenizer: Any, length: int, count: int, seed: int) -> list[Haystack]:
        """Return the haystacks."""
        return [
            haystack(tokenizer, length, self.needles, i, count, seed, self.formats, self.chat) for i in range(count)
        ]

    def measure(
        self, model: Any, tokenizer: Any, rows: Sequence[Row], content: Haystack
    ) -> Iterator[tuple[Row, dict[str, Any]]]:
        """Yield each row's answers as they come."""
        read = text_read(model, rows, content)
        for row in rows:
            yield row, ask(model, tokenizer, row, content, self.chat, read)

    def cached(self, content: Haystack) -> int:
        """Return the length of the text, whose cache is measured."""
        return len(content.ids)

    def score(self, contents: Sequence[Haystack], results: Sequence[Any], dense: Sequence[Any]) -> dict[str, Any]:
        """Return the right answers."""
        return retrieval(contents, results, dense)

    def cells(self, score: dict[str, Any]) -> list[str]:
        """Return the rate with its 95 % interval."""
        low, high = score["interval"]
        return [f"{score['rate']:.2f} ({low:.2f} to {high:.2f})"]


@torch.inference_mode()
def ask(
    model: Any, tokenizer: Any, row: Row, hay: Haystack, chat: bool = False, read: Prefills[Tensor] | None = None
) -> dict[str, Any]:
    """Return greedy answers to every question, each from a copy of a cache that has read the text once.

    In a chat, each question also follows the questions before it and the right answers to them.

    Under a plan that reads less than it keeps, questions come in calls of as many tokens as do read, as answers are
    decoded: in one call a question would read everything, and its last token would choose the answer's first. What
    that finds is there beside it.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        row: How it is run.
        hay: The text and its questions.
        chat: Whether the questions are turns of one chat.
        read: Gives the text's cache; by default the row reads it for itself.

    Returns:
        `right`: one bool per question; `answers`: the generated texts; `cache_bytes`: the size of the text's cache;
        `in_one_call`, under a plan that reads: whether the answer is right where the question comes in one call.

    Raises:
        Unsupported: The model rotates keys in another way after the answer than before the question.
    """
    check_answers(model, hay, chat)
    (cache, _), cached = (read or text_read(model, [row], hay)).under(row), len(hay.ids)
    with row.variant.on(model):
        allocated = allocated_bytes(cache)
        reads = row.plan is not None and row.plan.reads()
        answers: list[str] = []
        at_once: list[str] = []

        def answer(own: Any, q: Question, step: int) -> str:
            for i in range(0, len(q.ids), step):
                logits = last_logits(model, own, q.ids[i : i + step], cached + i)
            behind = deepcopy(own) if chat else own  # a chat goes on behind the question, with the right answer
            known = partial(_decided, answer=q.answer)
            return greedy(model, tokenizer, behind, logits, cached + len(q.ids), ANSWER_TOKENS, known)

        for q in hay.questions:
            if reads:
                at_once.append(answer(deepcopy(cache), q, len(q.ids)))
            answers.append(answer(cache if chat else deepcopy(cache), q, SHORT if reads else len(q.ids)))
            cached += len(q.ids) if chat else 0
    found = {"right": _right(answers, hay), "answers": answers, "cache_bytes": allocated}
    return found | ({"in_one_call": _right(at_once, hay)} if reads else {})


def _right(answers: Sequence[str], hay: Haystack) -> list[bool]:
    return [answered(text, q.answer) for text, q in zip(answers, hay.questions, strict=True)]


def text_read(model: Any, rows: Sequence[Row], hay: Haystack) -> Prefills[Tensor]:
    """Return what reads the text for each of some rows."""
    return Prefills(model, rows, len(hay.ids), lambda cache: last_logits(model, cache, hay.ids, 0))


def check_answers(model: Any, hay: Haystack, chat: bool = False) -> None:
    """Refuse a text whose answers the model cannot continue.

    Raises:
        Unsupported: The model rotates keys in another way after the answer than before the question.
    """
    sizes = [len(q.ids) for q in hay.questions]
    longest = len(hay.ids) + (sum(sizes) if chat else max(sizes)) + ANSWER_TOKENS
    limit = longrope_limit(model.config.get_text_config())
    if limit is not None and len(hay.ids) <= limit < longest:
        raise Unsupported(
            f"a text of {len(hay.ids)} tokens, with question and answer up to {longest}: the model rotates keys of "
            f"texts over {limit} tokens in another way, so choose lengths up to {limit - ANSWER_TOKENS} or well over it"
        )


def answered(text: str, answer: str) -> bool:
    """Return whether `text` starts with the words of `answer`, ignoring case and punctuation."""
    wanted = _words(answer)
    return _words(text)[: len(wanted)] == wanted


def _decided(text: str, answer: str) -> bool:
    return not undecided(text, answer)


def undecided(text: str, answer: str) -> bool:
    """Return whether more text is needed to tell if this is the answer: leading quotes do not count, its end does."""
    said, wanted = " ".join(_words(text)), " ".join(_words(answer))
    return wanted.startswith(said) and (said != wanted or text[-1:].isalnum())


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())


def retrieval(contents: Sequence[Haystack], results: Sequence[Any], dense: Sequence[Any]) -> dict[str, Any]:
    """Return right answers, also by question and depth, with 95 % intervals; `kept` is the part of dense's rate.

    Those to questions in one call are there if every result has them; results of an older version have none.
    """
    right = [ok for r in results for ok in r["right"]]
    base = [ok for r in dense for ok in r["right"]]
    depths = [q.depth for hay in contents for q in hay.questions]
    by_depth = [[ok for ok, d in zip(right, depths, strict=True) if int(d * DEPTHS) == i] for i in range(DEPTHS)]
    low, high = wilson(sum(right), len(right))
    once = [ok for r in results for ok in r.get("in_one_call", ())]
    in_one_call = {"right": sum(once), "questions": len(once), "rate": sum(once) / len(right)}
    difference = paired(right, base)
    return {
        "right": sum(right),
        "questions": len(right),
        "rate": sum(right) / len(right),
        "interval": [low, high],
        "minus_dense": list(difference),
        "kept": sum(right) / sum(base) if any(base) else None,
        "by_question": "".join(str(int(ok)) for ok in right),
        "by_depth": [{"right": sum(group), "questions": len(group)} for group in by_depth],
        **({"in_one_call": in_one_call} if len(once) == len(right) else {}),
    }


TASKS = (
    Needles("single", ("one needle",), 20, "contexts with one needle", needles=1),
    Needles("four", ("four needles",), 5, "contexts with four needles and a question about each", needles=4),
)
