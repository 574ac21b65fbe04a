"""Make calibration samples: plain text, generated long-dependency tasks, and the user's own documents.

The generated tasks put many facts at stratified depths of one context and ask about each of them afterwards, so that a
single backward pass covers every depth.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Literal

from moa.hf.chat import MARK, pieces
from moa.hf.text import prose, scatter
from moa.hf.tokens import begin, encode, start
from moa.plans.errors import MoaError
from moa.profiler.words import ADJECTIVES, CITIES, COLOURS, NAMES, NOUNS

Labels = Literal["sampled", "greedy", "given"]
Loss = Literal["nll", "margin", "kl"]

TOKENS_PER_QUESTION = 160
"""One question per so many tokens of length: 6 at 1,024, 25 at 4,096."""


@dataclass(frozen=True)
class Sample:
    """One calibration sequence.

    Attributes:
        ids: Token ids, as many as the profiled length.
        response: Indices (> 0) of the tokens whose prediction is measured.
        needles: For each of these tokens, start and end of the statement in `ids` that holds the answer; empty where
            nothing is asked.
    """

    ids: tuple[int, ...]
    response: tuple[int, ...]
    needles: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class Source:
    """A kind of calibration text.

    Attributes:
        name: Its name in the profile.
        sample: Function from (tokenizer, length, random state, chat) to one sample.
        labels: Default labels of the response tokens.
        loss: Default loss.
        estimator: Default estimator, a name in `moa.profiler.estimators.ESTIMATORS`.
        digest: Digest of the texts that samples are drawn from, where the source's name does not identify them.
    """

    name: str
    sample: Callable[[Any, int, random.Random, bool], Sample]
    labels: Labels
    loss: Loss
    estimator: str = "fisher"
    digest: str = ""


@dataclass(frozen=True)
class Fact:
    """A fact to remember. The words that lead up to the answer are given, so that a model need only recall it."""

    lead: str
    answer: str
    question: str

    @property
    def statement(self) -> str:
        """The sentence in which the context states the fact."""
        return f"{self.lead} {self.answer}."


def text_sample(tokenizer: Any, length: int, rng: random.Random, chat: bool) -> Sample:
    """Return consecutive documents, whose every token but the first is response; plain text, whatever `chat` says."""
    first = start(tokenizer)
    return whole_text([*first, *prose(tokenizer, length - len(first), rng, "calibration")])


def facts_sample(tokenizer: Any, length: int, rng: random.Random, chat: bool) -> Sample:
    """Return sentences about cities and people, scattered through prose, and questions about them."""
    facts = []
    cities, names = rng.sample(CITIES, len(CITIES)), rng.sample(NAMES, len(NAMES))
    for city, name, _ in zip(cities, names, range(questions(length)), strict=False):
        number, colour = str(rng.randrange(10_000, 100_000)), rng.choice(COLOURS)
        goods, weather = rng.choice(NOUNS), rng.choice(ADJECTIVES)
        kinds = [
            (f"The special magic number for {city} is", number, f"What is the special magic number for {city}?"),
            (f"The locker of {name} opens with the code", number, f"Which code opens the locker of {name}?"),
            (f"{name} moved last year to", city, f"To which city did {name} move last year?"),
            (f"The bicycle of {name} is painted", colour, f"What colour is the bicycle of {name}?"),
            (f"The shop in {city} only sells a kind of", goods, f"What does the shop in {city} sell?"),
            (f"{name} describes the weather in {city} as", weather, f"How is the weather in {city} by {name}?"),
        ]
        facts.append(Fact(*rng.choice(kinds)))
    return ask(tokenizer, length, rng, chat, facts)


def pairs_sample(tokenizer: Any, length: int, rng: random.Random, chat: bool) -> Sample:
    """Return keys with values and things with owners, scattered through prose, and questions about them."""
    facts = []
    for adjective, noun in rng.sample([(a, n) for a in ADJECTIVES for n in NOUNS], questions(length)):
        key, thing = f'"{adjective}_{noun}"', f"{adjective} {noun}"
        value = rng.choice([rng.choice(CITIES), rng.choice(COLOURS), str(rng.randrange(10, 1000))])
        kinds = [
            (f"The value of {key} is", value, f"What is the value of {key}?"),
            (f"Owner of the {thing}:", rng.choice(NAMES), f"Who is the owner of the {thing}?"),
        ]
        facts.append(Fact(*rng.choice(kinds)))
    return ask(tokenizer, length, rng, chat, facts)


def lines_sample(tokenizer: Any, length: int, rng: random.Random, chat: bool) -> Sample:
    """Return a list of registers, in which every line looks like the one asked about, and questions about some."""
    labels = [f"{a}-{b}" for a in ADJECTIVES for b in NOUNS]
    rng.shuffle(labels)
    lines = [
        Fact(f"line {label}: REGISTER is", f"<{rng.randrange(1, 50_000)}>", f"What is the REGISTER in line {label}?")
        for label in labels
    ]
    listed = lines[: max(4, length // 24)]
    step = len(listed) / questions(length)
    asked = [listed[int((i + rng.random()) * step)] for i in range(questions(length))]
    return ask(tokenizer, length, rng, chat, asked, listed)


SOURCES: dict[str, Source] = {
    s.name: s
    for s in (
        Source("text", text_sample, "sampled", "nll"),
        Source("facts", facts_sample, "given", "margin", "effect"),
        Source("pairs", pairs_sample, "given", "margin", "effect"),
        Source("lines", lines_sample, "given", "margin", "effect"),
    )
}

DEFAULT = ("text", "facts", "pairs")
"""Sources used when none is named; small models cannot answer `lines`."""


def questions(length: int) -> int:
    """Return how many questions are asked about a context of `length` tokens."""
    return max(4, length // TOKENS_PER_QUESTION)


def whole_text(ids: Sequence[int]) -> Sample:
    """Return the sample whose every token but the first is response."""
    return Sample(tuple(ids), tuple(range(1, len(ids))))


def ask(
    tokenizer: Any, length: int, rng: random.Random, chat: bool, facts: Sequence[Fact],
    listed: Sequence[Fact] | None = None,
) -> Sample:  # fmt: skip
    """Return a context that fills the length, then questions about the facts with their answers, in random order.

    Args:
        tokenizer: Any transformers tokenizer.
        length: Length of the whole sample, in tokens.
        rng: Random state.
        chat: Whether to render turns with the tokenizer's chat template.
        facts: The facts asked about, in the order of their depth.
        listed: A context that is a list of facts and no prose; None scatters `facts` through prose.

    Raises:
        MoaError: The questions alone are longer than `length`.
    """
    turns = rng.sample(list(facts), len(facts))
    encoded = _render(tokenizer, chat, turns)
    while len(turns) > 1 and sum(map(len, encoded)) > length // 2:  # a tokenizer of many small tokens asks less
        encoded = _render(tokenizer, chat, turns := turns[: len(turns) * 3 // 4])
    context, places = _context(tokenizer, length - sum(map(len, encoded)), rng, facts, listed)
    ids = [*encoded[0], *context]
    response: list[int] = []
    needles: list[tuple[int, int]] = []
    for i, piece in enumerate(encoded[1:]):
        if i % 2:  # pieces alternate: question, answer, question, answer, ...
            response += range(len(ids), len(ids) + len(piece))
            start, stop = (len(encoded[0]) + place for place in places[turns[i // 2]])
            needles += [(start, stop)] * len(piece)
        ids += piece
    return Sample(tuple(ids), tuple(response), tuple(needles))


def _render(tokenizer: Any, chat: bool, turns: Sequence[Fact]) -> list[list[int]]:
    """Return the tokens before the context, of question, answer, question, answer, ..., and after the last answer."""
    if not chat:
        asked = [f"\n\nQuestion: {t.question}\nAnswer: {t.lead}{MARK} {t.answer}{MARK}" for t in turns]
        texts = ["", *"".join(asked).split(MARK)]
    else:
        messages = []
        for i, t in enumerate(turns):
            opening = f"Remember the facts in this text.\n\n{MARK}\n\n" if i == 0 else ""
            messages += [
                {"role": "user", "content": opening + t.question},
                {"role": "assistant", "content": f"{t.lead}{MARK} {t.answer}{MARK}"},
            ]
        texts = pieces(tokenizer, messages)
    first, *rest = (encode(tokenizer, text) for text in texts)
    return [begin(tokenizer, first), *rest]


def _context(
    tokenizer: Any, room: int, rng: random.Random, facts: Sequence[Fact], listed: Sequence[Fact] | None
) -> tuple[list[int], dict[Fact, tuple[int, int]]]:
    """Return exactly `room` tokens that state every fact, one in each stratum of the depth, and where they state it."""
    if listed is not None:
        stated = [encode(tokenizer, f"{f.statement}\n") for f in listed]
        wanted = set(map(id, facts))
        spare = [i for i, f in enumerate(listed) if id(f) not in wanted]
        rng.shuffle(spare)
        while sum(map(len, stated)) > room and spare:
            stated[spare.pop()] = []
    else:
        stated = [encode(tokenizer, f"\n{f.statement}\n") for f in facts]
    left = room - sum(map(len, stated))
    if left < 0:
        raise MoaError(
            f"a task's {len(facts)} facts take {room - left} tokens, and its questions leave {room}: use a longer "
            f"length, by {-left} tokens at least, or the source text alone"
        )
    filler = prose(tokenizer, left, rng, "calibration")
    depths = [1.0 if listed is not None else (i + rng.random()) / len(stated) for i in range(len(stated))]
    before = accumulate(map(len, stated), initial=0)
    starts = [int(depth * left) + length for depth, length in zip(depths, before, strict=False)]
    places = [(start, start + len(piece)) for start, piece in zip(starts, stated, strict=True)]
    return scatter(filler, depths, stated), dict(zip(facts if listed is None else listed, places, strict=True))
