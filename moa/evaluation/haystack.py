"""Make haystacks: held-out prose with hidden sentences (needles), which are asked about once the text is cached.

Calibration uses none of the formats (`moa.profiler.calibration`), and the prose is held out from it. The prompt
ends with the first words of the answer, so that the next words are the answer itself, as in RULER (arXiv 2404.06654).
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from moa.hf.chat import MARK, has_template, pieces
from moa.hf.text import prose, scatter
from moa.hf.tokens import begin, encode
from moa.plans.errors import MoaError


@dataclass(frozen=True)
class Format:
    """A kind of needle: `{key}` is what the question names; the statement is `lead`, the answer and a full stop."""

    question: str
    lead: str
    keys: tuple[str, ...]
    answers: tuple[str, ...]


_NAMES = ("Abel", "Boris", "Dmitri", "Greta", "Hugo", "Jonas", "Karin", "Louis", "Marta", "Nils", "Olga", "Pavel")
FORMATS = (
    Format(
        "What is the secret ingredient in the soup of {key}?", "The secret ingredient in the soup of {key} is called",
        _NAMES,
        ("ginger", "honey", "mustard", "saffron", "cinnamon", "garlic", "vanilla", "pepper", "butter", "lemon"),
    ),
    Format(
        "To which day was the dentist appointment of {key} moved?", "The dentist appointment of {key} was moved to",
        _NAMES, ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"),
    ),
    Format(
        "What does the picture painted on the {key} door show?", "The picture painted on the {key} door shows a",
        ("round", "wooden", "glass", "marble", "iron", "copper", "garden", "cellar", "kitchen", "northern"),
        ("dragon", "castle", "rabbit", "mountain", "ship", "candle", "feather", "mirror", "bridge", "tiger", "lion"),
    ),
    Format(
        "In which year was the {key} Festival held for the first time?",
        "The {key} Festival was held for the first time in the year",
        ("Lantern", "Harvest", "Kite", "Salmon", "Tulip", "Harbor", "Maple", "Snow", "Pumpkin", "Cherry", "Bonfire"),
        tuple(str(year) for year in range(1801, 1990)),
    ),
    Format(
        "What animal does {key} keep in the garden?", "The animal that {key} keeps in the garden is called a", _NAMES,
        ("parrot", "turtle", "hamster", "ferret", "goat", "pony", "lizard", "falcon", "peacock", "donkey", "llama"),
    ),
    Format(
        "What instrument does {key} play on stage?", "The instrument that {key} plays on stage is the", _NAMES,
        ("violin", "piano", "trumpet", "guitar", "cello", "flute", "harp", "banjo", "organ", "clarinet", "accordion"),
    ),
)  # fmt: skip

HELD_OUT = (
    Format(
        "From which platform does the night train to {key} leave?", "The night train to {key} leaves from platform",
        ("Lisbon", "Oslo", "Vienna", "Prague", "Dublin", "Madrid", "Warsaw", "Helsinki", "Zagreb", "Naples", "Geneva"),
        tuple(str(number) for number in range(11, 100)),
    ),
    Format(
        "In which country was the ship {key} built?", "The ship {key} was built in",
        ("Aurora", "Bellona", "Calypso", "Delphine", "Endeavour", "Fortuna", "Meridian", "Northwind", "Orion"),
        ("Norway", "Peru", "Japan", "Greece", "Canada", "Portugal", "Chile", "Finland", "Egypt", "Ireland", "Turkey"),
    ),
    Format(
        "What is the profession of {key}?", "The profession that {key} learned is that of a",
        ("Agnes", "Bruno", "Clara", "Edgar", "Frieda", "Gustav", "Ingrid", "Konrad", "Lotte", "Otto", "Rosa", "Stefan"),
        ("baker", "lawyer", "plumber", "farmer", "surgeon", "tailor", "butcher", "painter", "miner", "barber", "judge"),
    ),
    Format(
        "What is stored in the warehouse on {key} Street?", "The warehouse on {key} Street is filled with",
        ("Amber", "Birch", "Canal", "Elm", "Foundry", "Granite", "Hazel", "Juniper", "Linden", "Mill", "Orchard"),
        ("timber", "carpets", "cotton", "bicycles", "furniture", "tobacco", "paper", "bottles", "tyres", "leather"),
    ),
    Format(
        "How many stamps are in the collection of {key}?", "The number of stamps in the collection of {key} is",
        ("Agnes", "Bruno", "Clara", "Edgar", "Frieda", "Gustav", "Ingrid", "Konrad", "Lotte", "Otto", "Rosa", "Stefan"),
        tuple(str(number) for number in range(101, 1000)),
    ),
)  # fmt: skip
"""Formats that benchmarks report on. Two comparisons asked for them, with other seeds, and changed nothing: estimators
for tasks, and objectives at 4,096 tokens (docs/experiments/effect-or-fisher.md and far-needles.md)."""


@dataclass(frozen=True)
class Question:
    """A question about a haystack: its tokens up to where the answer starts, the answer, the needle's depth."""

    ids: tuple[int, ...]
    answer: str
    depth: float


@dataclass(frozen=True)
class Haystack:
    """A text that is cached once, and the questions asked about it, each on its own or one after the other."""

    ids: tuple[int, ...]
    questions: tuple[Question, ...]


def haystack(
    tokenizer: Any, length: int, needles: int, index: int, of: int, seed: int = 0,
    formats: Sequence[Format] = FORMATS, chat: bool = False,
) -> Haystack:  # fmt: skip
    """Return sample `index` of `of`: the text and its longest question together have `length` tokens.

    In a chat each question follows the right answer to the one before it, and all of them fit into the length.

    Args:
        tokenizer: Any transformers tokenizer; its chat template is used when it has one.
        length: Tokens of text and question.
        needles: Needles in the text, at most one of each format, at stratified depths; one question each.
        index: Number of the sample; depths sweep evenly from sample to sample.
        of: Number of samples.
        seed: Seed of the text and the needles.
        formats: Kinds of needles to draw from.
        chat: Whether the questions are turns of one chat, or each follows the text.

    Raises:
        MoaError: The length leaves no room for the text.
    """
    rng = random.Random(f"{seed}/{length}/{needles}/{index}")
    before, after = frame(tokenizer)
    head = begin(tokenizer, encode(tokenizer, before + "Read the text below, then answer the question about it.\n\n"))
    depths = [(i + (index + 0.5) / of) / needles for i in range(needles)]
    statements, questions, said = [], [], "\n\n"
    for form, depth in zip(rng.sample(formats, needles), depths, strict=True):
        key, answer = rng.choice(form.keys), rng.choice(form.answers)
        lead = form.lead.format(key=key)
        statements.append(encode(tokenizer, f"\n\n{lead} {answer}.\n\n"))
        asked = encode(tokenizer, f"{said}Question: {form.question.format(key=key)}{after}{lead}")
        questions.append(Question(tuple(asked), answer, depth))
        said = f" {answer}.{_next_turn(tokenizer)}" if chat else said
    sizes = [len(q.ids) for q in questions]
    room = length - len(head) - (sum(sizes) if chat else max(sizes)) - sum(map(len, statements))
    if room < 64:
        raise MoaError(f"length {length} leaves {room} tokens for the text of a haystack; at least 64 are needed")
    text = scatter(prose(tokenizer, room, rng, "evaluation"), depths, statements)
    return Haystack((*head, *text), tuple(questions))


def frame(tokenizer: Any) -> tuple[str, str]:
    """Return the prompt before the user's text, and the one between it and the answer."""
    if not has_template(tokenizer):
        return "", "\nAnswer: "
    before, after = pieces(tokenizer, [{"role": "user", "content": MARK}], answer=True)
    return before, after


def _next_turn(tokenizer: Any) -> str:
    """Return the prompt between an answer and the user's next words."""
    if not has_template(tokenizer):
        return "\n\n"
    turns = [{"role": role, "content": MARK} for role in ("user", "assistant", "user")]
    return pieces(tokenizer, turns, answer=True)[2]
