"""Define tasks whose prompts end with a question, as RULER's: as long as a length allows, answered greedily, scored."""

import random
import re
from abc import abstractmethod
from dataclasses import dataclass
from statistics import mean
from typing import Any, ClassVar

from moa.evaluation.tasks.answered import Answered, Prompt, asked
from moa.plans.errors import MoaError

_UNPRINTABLE = re.compile(r"[\x00-\x1f]")


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
class Prompted(Answered):
    """A task of prompts that grow with a size, and of answers that are scored by the texts in them, as RULER does."""

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
            return Prompt(tuple(asked(tokenizer, words.question, words.lead)), words.answers)

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

    def mark(self, text: str, prompt: Prompt) -> float:
        """Return the part of the answers that the text contains, case ignored; 1 for any of them if one is enough."""
        said = _UNPRINTABLE.sub("\n", text).casefold()
        found = [answer.casefold() in said for answer in prompt.answers]
        return float(any(found)) if self.any_answer else mean(found)

    def known(self, text: str, prompt: Prompt) -> bool:
        """Return whether more text would say nothing more: all answers are there."""
        return self.mark(text, prompt) == 1.0
