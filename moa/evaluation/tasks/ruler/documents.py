"""Ask RULER's two tasks of question answering: paragraphs with the answer stand among others."""

import random
from abc import abstractmethod
from dataclasses import dataclass
from functools import cache
from itertools import chain
from pathlib import Path
from typing import ClassVar

from moa.evaluation.tasks.prompted import Prompted, Words
from moa.hf.data import load_rows
from moa.plans.errors import MoaError, shortened
from moa.plans.replace import read_json

ORDER = "Answer the question based on the given documents. Only give me the answer and do not output any other words."

SQUAD, HOTPOT = ("title", "context", "question", "answers"), ("question", "answer", "context")
"""Columns of the data sets on the hub."""


@dataclass(frozen=True)
class Asked:
    """A question, its right answers, the paragraphs that it needs, and others from the same article."""

    question: str
    answers: tuple[str, ...]
    needed: tuple[str, ...]
    near: tuple[str, ...] = ()


@dataclass(frozen=True)
class Answering(Prompted):
    """Questions of a data set, whose other paragraphs fill the text.

    Attributes:
        data: A local JSON file, as the data set's authors publish it; None loads the data set from the hub.
    """

    data: str | None = None

    any_answer: ClassVar[bool] = True

    @staticmethod
    @abstractmethod
    def read(data: str | None) -> tuple[Asked, ...]:
        """Return the questions that have an answer.

        Raises:
            MoaError: The data set cannot be loaded.
            KeyError, TypeError, ValueError: It has another format.
        """

    def write(self, rng: random.Random, size: int, length: int) -> Words:
        """Return a question after the paragraphs that it needs and `size` others, those of its article first."""
        questions = _questions(type(self), self.data)
        asked = rng.choice(questions)
        near = rng.sample(asked.near, len(asked.near))
        every = _paragraphs(type(self), self.data)
        others = [text for text in rng.sample(every, len(every)) if text not in {*asked.needed, *near}]
        shown = [*asked.needed, *[*near, *others][:size]]
        rng.shuffle(shown)
        context = "\n\n".join(f"Document {i}:\n{text}" for i, text in enumerate(shown, 1))
        return Words(
            f"{ORDER}\n\nThe following are given documents.\n\n{context}\n\n{ORDER}\n\nQuestion: {asked.question}",
            "Answer:", asked.answers,
        )  # fmt: skip


@dataclass(frozen=True)
class Squad(Answering):
    """SQuAD 2.0's questions with an answer (arXiv 1806.03822)."""

    @staticmethod
    def read(data: str | None) -> tuple[Asked, ...]:
        """Return the questions; near are the other paragraphs of the article."""
        if data is None:
            rows = [
                (row["title"], row["context"], row["question"], row["answers"]["text"])
                for row in load_rows("rajpurkar/squad_v2", columns=SQUAD, split="validation")[0]
            ]
        else:
            rows = [
                (article["title"], paragraph["context"], each["question"], [a["text"] for a in each["answers"]])
                for article in read_json(Path(data))["data"]
                for paragraph in article["paragraphs"]
                for each in paragraph["qas"]
            ]
        articles: dict[str, dict[str, None]] = {}
        for title, context, _, _ in rows:
            articles.setdefault(title, {})[context] = None
        return tuple(
            Asked(question, tuple(answers), (context,), tuple(text for text in articles[title] if text != context))
            for title, context, question, answers in rows
            if answers
        )


@dataclass(frozen=True)
class Hotpot(Answering):
    """HotpotQA's questions with their distractors (arXiv 1809.09600)."""

    @staticmethod
    def read(data: str | None) -> tuple[Asked, ...]:
        """Return the questions; each needs all ten paragraphs that come with it."""
        if data is None:
            rows = [
                (row["question"], row["answer"], zip(row["context"]["title"], row["context"]["sentences"], strict=True))
                for row in load_rows("hotpotqa/hotpot_qa", columns=HOTPOT, config="distractor", split="validation")[0]
            ]
        else:
            rows = [(row["question"], row["answer"], row["context"]) for row in read_json(Path(data))]
        return tuple(
            Asked(question, (answer,), tuple(f"{title}\n{''.join(sentences)}" for title, sentences in context))
            for question, answer, context in rows
        )


@cache
def _questions(kind: type[Answering], data: str | None) -> tuple[Asked, ...]:
    """Return a data set's questions.

    Raises:
        MoaError: It cannot be loaded, or has another format.
    """
    try:
        questions = kind.read(data)
    except (KeyError, TypeError, ValueError, OSError) as error:
        if isinstance(error, MoaError):
            raise
        found = f"{type(error).__name__}: {shortened(str(error), 200)}"
        raise MoaError(f"{data or 'the data set'} must have the format of {kind.__name__}'s JSON; {found}") from error
    if not questions:
        raise MoaError(f"{data or 'the data set'} has no question with an answer")
    return questions


@cache
def _paragraphs(kind: type[Answering], data: str | None) -> list[str]:
    """Return all paragraphs of a data set."""
    return list(dict.fromkeys(chain.from_iterable((*each.needed, *each.near) for each in _questions(kind, data))))


TASKS = (
    Squad("qa_1", ("qa_1",), 0, "questions of RULER's qa_1, from SQuAD", 32),
    Hotpot("qa_2", ("qa_2",), 0, "questions of RULER's qa_2, from HotpotQA", 32),
)
