"""Ask for a pass key hidden in a repeated sentence (Mohtashami and Jaggi, arXiv 2305.16300)."""

import random
from dataclasses import dataclass

from moa.evaluation.tasks.prompted import Prompted, Words
from moa.evaluation.tasks.ruler.vocabulary import REPEATED, hide


@dataclass(frozen=True)
class Passkey(Prompted):
    """A number of five digits at a random depth; the text around it has no other."""

    def write(self, rng: random.Random, size: int, length: int) -> Words:
        """Return the pass key among `size` repeated sentences."""
        number, place = rng.randint(10_000, 99_999), rng.randrange(size + 1)
        said = f"The pass key is {number}. Remember it. {number} is the pass key."
        text = "\n".join(hide([REPEATED] * size, [place], [said]))
        return Words(
            "The text below has one important piece of information in a lot of irrelevant sentences. Find it and "
            f"memorize it, since you will be asked about it.\n\n{text}\n\nWhat is the pass key?",
            "The pass key is", (str(number),),
        )  # fmt: skip


TASKS = (Passkey("passkey", ("passkey",), 0, "contexts with a pass key", 16),)
