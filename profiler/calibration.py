"""Define calibration samples and their sources, and make generated long-dependency tasks of facts and questions.

The generated tasks put many facts at stratified depths of one context and ask about each of them afterwards, so that a
single backward pass covers every depth.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Literal, get_args

from moa.hf.chat import MARK, pieces
from moa.hf.text import prose, scatter
from moa.hf.tokens import begin, encode
from moa.plans.errors import MoaError

Labels = Literal["sampled", "greedy", "given"]
Loss = Literal["nll", "margin", "kl"]
LABELS: tuple[Labels, ...] = get_args(Labels)
LOSSES: tuple[Loss, ...] = get_args(Loss)
ESTIMATORS = ("fisher", "effect", "first-order", "first-order-abs", "mass")
"""Names of the functions of `moa.profiler.estimators`, here so that help texts need no torch."""

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
        estimator: Default estimator, one of `ESTIMATORS`.
        default: Whether it is used when no source is named.
        digest: Digest of the texts that samples are drawn from, where the source's name does not identify them.
    """

    name: str
    sample: Callable[[Any, int, random.Random, bool], Sample]
    labels: Labels
    loss: Loss
    estimator: str = "fisher"
    default: bool = False
    digest: str = ""

    @property
    def recalls(self) -> bool:
        """Whether it asks for facts of the context: its harm is an effect on margins, of one length."""
        return self.estimator == "effect"


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
