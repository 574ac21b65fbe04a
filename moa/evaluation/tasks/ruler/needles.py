"""Ask RULER's eight needle tasks: values of keys, hidden in a text."""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import cycle, islice

from moa.evaluation.tasks.prompted import Prompted, Words
from moa.evaluation.tasks.ruler.vocabulary import REPEATED, distinct, draw, hide, listed, places
from moa.hf.text import split

DEPTHS = [round(100 * i / 39) for i in range(40)]
"""Per cent of an essay's sentences before a needle."""


@dataclass(frozen=True)
class Hidden(Prompted):
    """Needles "One of the special magic {kind} for {key} is: {value}."

    Attributes:
        haystack: What they are hidden in: `repeat` (one sentence over and over), `docs` (in place of RULER's essays) or
            `needle` (more needles, of other keys).
        keys, values: Kinds of keys and values, of `moa.evaluation.tasks.ruler.vocabulary.KINDS`.
        hidden: Number of keys.
        each: Values of each key.
        asked: Number of keys asked about.
    """

    haystack: str = "docs"
    keys: str = "words"
    values: str = "numbers"
    hidden: int = 1
    each: int = 1
    asked: int = 1

    def write(self, rng: random.Random, size: int, length: int) -> Words:
        """Return the needles among `size` sentences."""
        names = distinct(lambda: draw(rng, self.keys), self.hidden)
        drawn = distinct(lambda: draw(rng, self.values), self.hidden * self.each)
        values = {name: drawn[i * self.each : (i + 1) * self.each] for i, name in enumerate(names)}
        needles = [self._needle(name, value) for name in names for value in values[name]]
        rng.shuffle(needles)
        asked = rng.sample(names, self.asked)
        answers = tuple(value for name in asked for value in values[name])
        of = listed(asked)
        if len(answers) == 1:
            one = self.values[:-1]
            opening, question, verb = f"A special magic {one} is", f"What is the special magic {one}", "is"
        else:
            one = self.values
            opening, question, verb = f"Some special magic {one} are", f"What are all the special magic {one}", "are"
        return Words(
            f"{opening} hidden within the following text. Make sure to memorize it. I will quiz you about the {one} "
            f"afterwards.\n{self._context(rng, size, needles)}\n{question} for {of} mentioned in the provided text?",
            f"The special magic {one} for {of} mentioned in the provided text {verb}", answers,
        )  # fmt: skip

    def _needle(self, key: str, value: str) -> str:
        return f"One of the special magic {self.values} for {key} is: {value}."

    def _context(self, rng: random.Random, size: int, needles: Sequence[str]) -> str:
        """Return the text with the needles: in a random place each, in an essay at one of RULER's depths."""
        if self.haystack == "docs":
            text, depths = list(islice(cycle(sentences()), size)), sorted(rng.sample(DEPTHS, len(needles)))
            at = [size * depth // 100 for depth in depths]
        else:
            text = [self._filler(rng) for _ in range(max(size, len(needles)))]
            at = places(rng, len(text), len(needles))
        return (" " if self.haystack == "docs" else "\n").join(hide(text, at, needles))

    def _filler(self, rng: random.Random) -> str:
        return REPEATED if self.haystack == "repeat" else self._needle(draw(rng, self.keys), draw(rng, self.values))


@cache
def sentences() -> list[str]:
    """Return the sentences of the held-out documents, white space as single blanks."""
    text = " ".join(" ".join(split("evaluation")).split())
    return re.split(r"(?<=[.!?]) ", text)


def _task(name: str, **settings: str | int) -> Hidden:
    replaced = " (docs)" if settings.get("haystack", "docs") == "docs" else ""
    return Hidden(name, (f"{name}{replaced}",), 0, f"contexts of RULER's {name}", 128, **settings)  # type: ignore[arg-type]


TASKS = (
    _task("niah_single_1", haystack="repeat"),
    _task("niah_single_2"),
    _task("niah_single_3", values="uuids"),
    _task("niah_multikey_1", hidden=4),
    _task("niah_multikey_2", haystack="needle"),
    _task("niah_multikey_3", haystack="needle", keys="uuids", values="uuids"),
    _task("niah_multivalue", each=4),
    _task("niah_multiquery", hidden=4, asked=4),
)
