"""Ask RULER's two tasks of aggregation: the words that are common, or most frequent, in a list."""

import random
from dataclasses import dataclass
from string import ascii_lowercase

from moa.evaluation.tasks.prompted import Prompted, Words
from moa.evaluation.tasks.ruler.vocabulary import distinct, parts_of_speech

COMMON = 10
"""Words that are common."""
SHORT = 4096
"""Below this many tokens words are repeated less often."""


@dataclass(frozen=True)
class CommonWords(Prompted):
    """A numbered list in which ten words are repeated more often than the others, after a solved example."""

    def write(self, rng: random.Random, size: int, length: int) -> Words:
        """Return the list with `size` words besides the common ones."""
        few = length < SHORT
        example, known, lead = self._list(rng, *((10, 3, 1) if few else (30, 10, 3)))
        question, answers, _ = self._list(rng, size, *((6, 1) if few else (30, 3)))
        solved = " ".join(f"{i}. {word}" for i, word in enumerate(known, 1))
        return Words(f"{example} {lead}{solved}\n{question}", lead, tuple(answers))

    @staticmethod
    def _list(rng: random.Random, others: int, often: int, seldom: int) -> tuple[str, list[str], str]:
        """Return list and question, the common words, and the first words of the answer."""
        every = parts_of_speech("nouns", "adjectives", "verbs")
        drawn = rng.sample(every, min(COMMON + others, len(every)))
        common = drawn[:COMMON]
        words = common * often + drawn[COMMON:] * seldom
        rng.shuffle(words)
        return (
            "Below is a numbered list of words. In these words, some appear more often than others. Memorize the ones "
            f"that appear most often.\n{' '.join(f'{i}. {word}' for i, word in enumerate(words, 1))}\n"
            f"Question: What are the {COMMON} most common words in the above list?",
            common,
            f"Answer: The top {COMMON} words that appear most often in the list are:",
        )


@dataclass(frozen=True)
class FrequentWords(Prompted):
    """Coded words, drawn by Zipf's law; the most frequent one is dots, which do not count.

    Attributes:
        zeta: Exponent of the law.
    """

    zeta: float = 2.0

    def write(self, rng: random.Random, size: int, length: int) -> Words:
        """Return a text for which `size` words are drawn; those rarer than once are left out."""
        coded = distinct(lambda: "".join(rng.choices(ascii_lowercase, k=6)), max(length // 50, 4) - 1)
        vocabulary, total = ["...", *coded], _zeta(self.zeta)
        words = [word for k, word in enumerate(vocabulary, 1) for _ in range(int(size / k**self.zeta / total))]
        rng.shuffle(words)
        return Words(
            "Read the following coded text and track the frequency of each coded word. Find the three most frequently "
            f"appeared coded words. {' '.join(words)}\nQuestion: Do not provide any explanation. Please ignore the "
            "dots '....'. What are the three most frequently appeared words in the above coded text?",
            "Answer: According to the coded text above, the three most frequently appeared words are:",
            tuple(vocabulary[1:4]),
        )


def _zeta(exponent: float) -> float:
    """Return the sum of 1 / k**exponent over all k, which is the law's total."""
    from scipy.special import zeta

    return float(zeta(exponent))


TASKS = (
    CommonWords("cwe", ("cwe",), 0, "contexts of RULER's cwe", 120),
    FrequentWords("fwe", ("fwe",), 0, "contexts of RULER's fwe", 50),
)
