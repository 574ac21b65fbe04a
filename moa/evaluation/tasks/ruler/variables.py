"""Ask RULER's variable tracking: which names have a value, by a chain of assignments hidden in a text."""

import random
from dataclasses import dataclass, replace
from itertools import pairwise
from string import ascii_uppercase
from typing import Any

from moa.evaluation.tasks.answered import Prompt
from moa.evaluation.tasks.prompted import Prompted, Words
from moa.evaluation.tasks.ruler.vocabulary import REPEATED, distinct, hide, places
from moa.hf.tokens import encode

EXAMPLE_TOKENS, EXAMPLE_STEP = 500, 5
"""RULER's solved example is the longest within so many tokens, those of an answer included, in steps of sentences."""


@dataclass(frozen=True)
class Tracking(Prompted):
    """One chain of assignments after a solved example.

    Attributes:
        hops: Assignments after the first.
        solved: Repeated sentences of the solved example; 0 for as many as RULER's has with the tokenizer.
    """

    hops: int = 4
    solved: int = 0

    def samples(self, tokenizer: Any, length: int, count: int, seed: int) -> list[Prompt]:
        """Return prompts, each with as many parts as its length allows."""
        if not self.solved:
            return replace(self, solved=self._solved(tokenizer)).samples(tokenizer, length, count, seed)
        return super().samples(tokenizer, length, count, seed)

    def _solved(self, tokenizer: Any) -> int:
        """Return the size of the solved example."""
        room, size = EXAMPLE_TOKENS - self.new_tokens, EXAMPLE_STEP
        while len(encode(tokenizer, self._example(random.Random(0), size + EXAMPLE_STEP))) <= room:
            size += EXAMPLE_STEP
        return size

    def write(self, rng: random.Random, size: int, length: int) -> Words:
        """Return the chain among `size` repeated sentences."""
        example = self._example(rng, self.solved)
        question, answers, lead = self._chain(rng, size, letters=5)
        return Words(f"{example}\n\n\n\n{question}", lead, tuple(answers))

    def _example(self, rng: random.Random, size: int) -> str:
        """Return a solved question."""
        question, names, lead = self._chain(rng, size, letters=3)
        return f"{question} {lead}  {' '.join(names)}"

    def _chain(self, rng: random.Random, size: int, letters: int) -> tuple[str, list[str], str]:
        """Return text and question, the names of the chain, and the first words of the answer."""
        names = distinct(lambda: "".join(rng.choices(ascii_uppercase, k=letters)), self.hops + 1)
        value = rng.randrange(10_000, 99_999)
        chain = [f"VAR {names[0]} = {value}"] + [f"VAR {name} = VAR {before} " for before, name in pairwise(names)]
        text = [f"{REPEATED}\n"] * max(size, len(chain) + 1)
        context = " ".join(hide(text, places(rng, len(text), len(chain)), chain))
        return (
            "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n"
            f"{context}\nQuestion: Find all variables that are assigned the value {value} in the text above.",
            names,
            "Answer: According to the chain(s) of variable assignment in the text above, "
            f"{len(names)} variables are assgined the value {value}, they are:",  # RULER spells it so
        )  # fmt: skip


TASKS = (Tracking("vt", ("vt",), 0, "contexts of RULER's vt", 30),)
