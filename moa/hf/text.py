"""Split the plain text that comes with every Python (`pydoc_data.topics`) into calibration and evaluation.

Profiling reads one part and evaluation the other, so that no plan is judged on text that it was fitted to. A study's
validation reads the evaluation's documents from the other end: the two overlap only where evaluation reads past its
longest documents. The reference manual repeats whole sections under several names; a document that shares a paragraph
with a longer one is left out, so that no text is in both parts. The text, and so the split, depends on the version of
Python.
"""

import random
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import cycle
from pydoc_data.topics import topics
from typing import Any, Literal

from moa.hf.tokens import encode

Part = Literal["calibration", "validation", "evaluation"]

_SHARED = 200
"""Characters from which a repeated paragraph counts as shared text rather than a stock phrase."""


@cache
def documents() -> dict[str, str]:
    """Return the documents by name, the longest first; no long paragraph is in two of them."""
    kept: dict[str, str] = {}
    seen: set[str] = set()
    for name, text in sorted(topics.items(), key=lambda item: (-len(item[1]), item[0])):
        paragraphs = {p.strip() for p in text.split("\n\n") if len(p.strip()) >= _SHARED}
        if not paragraphs & seen:
            kept[name] = text
        seen |= paragraphs
    return kept


def split(part: Part) -> list[str]:
    """Return the texts of one part, the longest first: every third document is evaluation, the rest calibration.

    The part `validation` has the evaluation's documents, the shortest first.
    """
    held_out = part != "calibration"
    texts = [text for i, text in enumerate(documents().values()) if (i % 3 == 1) == held_out]
    return texts[::-1] if part == "validation" else texts


def prose(tokenizer: Any, count: int, rng: random.Random, part: Part) -> list[int]:
    """Return `count` tokens of one part's documents, in a random order."""
    documents = split(part)
    order: Iterator[str] = cycle(rng.sample(documents, len(documents)))
    ids: list[int] = []
    while len(ids) < count:
        ids += encode(tokenizer, next(order) + "\n\n")
    return ids[:count]


def scatter(filler: Sequence[int], depths: Sequence[float], pieces: Sequence[Sequence[int]]) -> list[int]:
    """Return the filler with each piece inserted at its depth (0 to 1, ascending)."""
    cuts = [int(depth * len(filler)) for depth in depths]
    out: list[int] = []
    for start, stop, piece in zip([0, *cuts], [*cuts, len(filler)], [*pieces, []], strict=True):
        out += [*filler[start:stop], *piece]
    return out
