"""Ask for registers of a long list; small models cannot answer, so that it is used only where it is named."""

import random
from typing import Any

from moa.profiler.calibration import Fact, Sample, Source, ask, questions
from moa.profiler.words import ADJECTIVES, NOUNS


def sample(tokenizer: Any, length: int, rng: random.Random, chat: bool) -> Sample:
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


SOURCE = Source("lines", sample, "given", "margin", "effect")
