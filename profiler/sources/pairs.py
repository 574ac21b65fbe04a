"""Ask for values of keys and owners of things, which are scattered through prose."""

import random
from typing import Any

from moa.profiler.calibration import Fact, Sample, Source, ask, questions
from moa.profiler.words import ADJECTIVES, CITIES, COLOURS, NAMES, NOUNS


def sample(tokenizer: Any, length: int, rng: random.Random, chat: bool) -> Sample:
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


SOURCE = Source("pairs", sample, "given", "margin", "effect", default=True)
