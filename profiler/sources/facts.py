"""Ask for facts about cities and people, which are scattered through prose."""

import random
from typing import Any

from moa.profiler.calibration import Fact, Sample, Source, ask, questions
from moa.profiler.words import ADJECTIVES, CITIES, COLOURS, NAMES, NOUNS


def sample(tokenizer: Any, length: int, rng: random.Random, chat: bool) -> Sample:
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


SOURCE = Source("facts", sample, "given", "margin", "effect", default=True)
