"""Ask RULER's variable tracking: which names have a value, by a chain of assignments hidden in a text."""

import random
from dataclasses import dataclass
from itertools import pairwise
from string import ascii_uppercase

from moa.evaluation.tasks.prompted import Prompted, Words
from moa.evaluation.tasks.ruler.vocabulary import REPEATED, distinct, hide

EXAMPLE = 5
"""Repeated sentences in the solved example before the question."""


@dataclass(frozen=True)
class Tracking(Prompted):
    """One chain of assignments after a solved example.

    Attributes:
        hops: Assignments after the first.
    """

    hops: int = 4

    def write(self, rng: random.Random, size: int, length: int) -> Words:
        """Return the chain among `size` repeated sentences."""
        example, names, lead = self._chain(rng, EXAMPLE, letters=3)
        question, answers, end = self._chain(rng, size, letters=5)
        return Words(f"{example} {lead} {' '.join(names)}\n\n{question}", end, tuple(answers))

    def _chain(self, rng: random.Random, size: int, letters: int) -> tuple[str, list[str], str]:
        """Return text and question, the names of the chain, and the first words of the answer."""
        names = distinct(lambda: "".join(rng.choices(ascii_uppercase, k=letters)), self.hops + 1)
        value = rng.randint(10_000, 99_999)
        chain = [f"VAR {names[0]} = {value}"] + [f"VAR {name} = VAR {before}" for before, name in pairwise(names)]
        places = sorted(rng.randrange(size + 1) for _ in chain)
        context = "\n".join(hide([REPEATED] * size, places, chain))
        return (
            "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n"
            f"{context}\nQuestion: Find all variables that are assigned the value {value} in the text above.",
            names,
            "Answer: According to the chain(s) of variable assignment in the text above, "
            f"{len(names)} variables are assgined the value {value}, they are:",  # RULER spells it so
        )  # fmt: skip


TASKS = (Tracking("vt", ("vt",), 0, "contexts of RULER's vt", 30),)
