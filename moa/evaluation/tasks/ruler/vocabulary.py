"""Provide the random words, numbers and identifiers of RULER, which takes its words from `wonderwords`."""

import random
import uuid
from collections.abc import Callable, Sequence
from functools import cache

from moa.plans.errors import MoaError

KINDS = ("words", "numbers", "uuids")
REPEATED = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
"""The text around what RULER hides, where it is no essay."""


@cache
def parts_of_speech(*names: str) -> list[str]:
    """Return the distinct words of some parts of speech, `nouns`, `adjectives` or `verbs`, sorted.

    Raises:
        MoaError: `wonderwords` is not installed.
    """
    try:
        from wonderwords import RandomWord
    except ImportError:
        raise MoaError("words are drawn from wonderwords: pip install 'moa-attention[eval]'") from None
    known = RandomWord()
    return sorted({word for name in names for word in known.filter(include_categories=[name])})


def draw(rng: random.Random, kind: str) -> str:
    """Return a random word (adjective-noun), number of seven digits, or UUID."""
    if kind == "words":
        return f"{rng.choice(parts_of_speech('adjectives'))}-{rng.choice(parts_of_speech('nouns'))}"
    if kind == "numbers":
        return str(rng.randint(10**6, 10**7 - 1))
    return str(uuid.UUID(int=rng.getrandbits(128), version=4))


def distinct(drawn: Callable[[], str], count: int) -> list[str]:
    """Return as many different words as are drawn, in their order."""
    found: dict[str, None] = {}
    while len(found) < count:
        found[drawn()] = None
    return list(found)


def places(rng: random.Random, size: int, count: int) -> list[int]:
    """Return different places among `size` parts of a text, ascending; the last part stays behind all of them."""
    return sorted(rng.sample(range(size), count))


def hide(text: Sequence[str], places: Sequence[int], pieces: Sequence[str]) -> list[str]:
    """Return the text with each piece before the part at its place; places ascend."""
    hidden = list(text)
    for place, piece in reversed(list(zip(places, pieces, strict=True))):
        hidden.insert(place, piece)
    return hidden


def listed(names: Sequence[str]) -> str:
    """Return the names as RULER joins them: with commas, and an `and` before the last."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])}, and {names[-1]}"
