"""Ask for the number in a line of a record: the retrieval task of MoA (arXiv 2406.14909), after LongEval's of lmsys."""

import random
import re
from dataclasses import dataclass

from moa.evaluation.tasks.answered import Prompt
from moa.evaluation.tasks.prompted import Prompted, Words
from moa.evaluation.tasks.ruler.vocabulary import distinct, draw

LARGEST = 50_000
"""The largest number in a line; the smallest is 1."""


@dataclass(frozen=True)
class Lines(Prompted):
    """Lines are named by two words, and each has a number: `line calm-otter: REGISTER_CONTENT is <31898>`."""

    def write(self, rng: random.Random, size: int, length: int) -> Words:
        """Return a record of `size` lines besides the one that is asked for."""
        names = distinct(lambda: draw(rng, "words"), size + 1)
        numbers = {name: rng.randint(1, LARGEST) for name in names}
        asked = rng.choice(names)
        record = "\n".join(f"line {name}: REGISTER_CONTENT is <{number}>" for name, number in numbers.items())
        return Words(
            "Below is a record of lines. Each has a name and, at its end, a number as its REGISTER_CONTENT. Memorize "
            f"the number of each line, since I will ask for one of them.\n\n{record}\n\nThe record is over. What is "
            f"the REGISTER_CONTENT in line {asked}?",
            f"The REGISTER_CONTENT in line {asked} is", (str(numbers[asked]),),
        )  # fmt: skip

    def mark(self, text: str, prompt: Prompt) -> float:
        """Return 1 if the first number of the text is the answer: shorter numbers are in longer ones."""
        return float(re.findall(r"\d+", text)[:1] == list(prompt.answers))

    def known(self, text: str, prompt: Prompt) -> bool:
        """Return whether the first number has ended."""
        return re.search(r"\d\D", text) is not None


TASKS = (Lines("line_retrieval", ("line retrieval",), 0, "records of lines", 16),)
