"""Define tasks whose prompts end with a question, as RULER's: as long as a length allows, answered greedily, scored."""

import random
import re
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any, ClassVar

from moa.evaluation.greedy import greedy
from moa.evaluation.interval import wilson
from moa.evaluation.rows import Row
from moa.evaluation.tasks.task import Task
from moa.hf.chat import MARK, has_template, pieces
from moa.hf.tokens import begin, encode
from moa.plans.errors import MoaError
from moa.runtime.variant import allocated_bytes

_UNPRINTABLE = re.compile(r"[\x00-\x1f]")


@dataclass(frozen=True)
class Prompt:
    """A prompt that ends with the first words of its answer, and the texts that the rest should contain."""

    ids: tuple[int, ...]
    answers: tuple[str, ...]


@dataclass(frozen=True)
class Words:
    """What a prompt says.

    Attributes:
        question: The user's whole turn, text and question.
        lead: The first words of the answer.
        answers: What should follow.
    """

    question: str
    lead: str
    answers: tuple[str, ...]


@dataclass(frozen=True)
class Prompted(Task):
    """A task of prompts that grow with a size, and of answers that are scored by the texts in them, as RULER does.

    Attributes:
        new_tokens: Tokens generated at most; prompt and answer together fit into a sample's length.
    """

    new_tokens: int = 128

    any_answer: ClassVar[bool] = False
    """Whether one of the answers is enough, where otherwise the score is the part of them that is found."""

    @abstractmethod
    def write(self, rng: random.Random, size: int, length: int) -> Words:
        """Return a prompt of a size, 0 or more; more size makes more tokens.

        Args:
            rng: What is drawn at random.
            size: Number of the parts that fill the text: sentences, words, documents.
            length: Tokens of the whole sample, of which some settings depend.
        """

    def samples(self, tokenizer: Any, length: int, count: int, seed: int) -> list[Prompt]:
        """Return prompts, each with as many parts as its length allows.

        Raises:
            MoaError: Not even the smallest prompt fits.
        """
        return [self._sample(tokenizer, length, f"{seed}/{self.name}/{length}/{i}") for i in range(count)]

    def _sample(self, tokenizer: Any, length: int, seed: str) -> Prompt:
        def prompt(size: int) -> Prompt:
            words = self.write(random.Random(seed), size, length)
            return Prompt(tuple(_tokens(tokenizer, words)), words.answers)

        room = length - self.new_tokens
        if (least := len(prompt(0).ids)) > room:
            raise MoaError(
                f"task {self.name} needs at least {least + self.new_tokens} tokens, of which {self.new_tokens} are for "
                f"the answer; found length {length}"
            )
        fits, over = 0, 1
        while over <= room and len(prompt(over).ids) <= room:  # a part has at least a token, unless there are no more
            fits, over = over, 2 * over
        while over - fits > 1:
            size = (fits + over) // 2
            fits, over = (size, over) if len(prompt(size).ids) <= room else (fits, size)
        return prompt(fits)

    def measure(
        self, model: Any, tokenizer: Any, rows: Sequence[Row], content: Prompt
    ) -> Iterator[tuple[Row, dict[str, Any]]]:
        """Yield each row's answer and its score."""
        for row in rows:
            with row.variant.on(model):
                cache = row.variant.cache(model, len(content.ids) + self.new_tokens)
                text = greedy(
                    model, tokenizer, cache, content.ids, 0, self.new_tokens,
                    lambda said: self.known(said, content.answers),
                )  # fmt: skip
                yield row, {
                    "score": self.mark(text, content.answers), "answer": text, "cache_bytes": allocated_bytes(cache)
                }  # fmt: skip

    def mark(self, text: str, answers: Sequence[str]) -> float:
        """Return the part of the answers that the text contains, case ignored; 1 for any of them if one is enough."""
        said = _UNPRINTABLE.sub("\n", text).casefold()
        found = [answer.casefold() in said for answer in answers]
        return float(any(found)) if self.any_answer else mean(found)

    def known(self, text: str, answers: Sequence[str]) -> bool:
        """Return whether more text would say nothing more: all answers are there."""
        return self.mark(text, answers) == 1.0

    def cached(self, content: Prompt) -> int:
        """Return the prompt's length."""
        return len(content.ids)

    def score(self, contents: Sequence[Prompt], results: Sequence[Any], dense: Sequence[Any]) -> dict[str, Any]:
        """Return the mean score with Wilson's interval, which is at least as wide as scores between 0 and 1 need."""
        marks, base = ([r["score"] for r in each] for each in (results, dense))
        rate = mean(marks)
        return {
            "samples": len(marks), "rate": rate, "interval": list(wilson(sum(marks), len(marks))),
            "kept": rate / mean(base) if any(base) else None, "by_sample": marks,
        }  # fmt: skip

    def cells(self, score: dict[str, Any]) -> list[str]:
        """Return the mean score with its 95 % interval."""
        low, high = score["interval"]
        return [f"{score['rate']:.2f} ({low:.2f} to {high:.2f})"]


def _tokens(tokenizer: Any, words: Words) -> list[int]:
    """Return the prompt in tokens, by the chat template where there is one; it ends with the lead of the answer."""
    if not has_template(tokenizer):
        return begin(tokenizer, encode(tokenizer, f"{words.question} {words.lead}"))
    before, after = pieces(tokenizer, [{"role": "user", "content": MARK}], answer=True)
    return begin(tokenizer, encode(tokenizer, f"{before}{words.question}{after}{words.lead}"))
