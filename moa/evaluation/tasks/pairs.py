"""Ask for a value in a JSON object of random keys and values (Liu et al., arXiv 2307.03172)."""

import json
import random
from dataclasses import dataclass

from moa.evaluation.tasks.prompted import Prompted, Words
from moa.evaluation.tasks.ruler.vocabulary import distinct, draw


@dataclass(frozen=True)
class Pairs(Prompted):
    """Keys and values are UUIDs, so that nothing but the key itself tells where its value is."""

    def write(self, rng: random.Random, size: int, length: int) -> Words:
        """Return an object of `size` pairs besides the one that is asked for."""
        drawn = distinct(lambda: draw(rng, "uuids"), 2 * (size + 1))
        pairs = dict(zip(drawn[::2], drawn[1::2], strict=True))
        key = rng.choice(list(pairs))
        lines = ",\n ".join(f"{json.dumps(name)}: {json.dumps(value)}" for name, value in pairs.items())
        return Words(
            "The JSON object below maps keys to values. Give the value of the key that is named after it.\n\n"
            f"JSON data:\n{{{lines}}}\n\nKey: {json.dumps(key)}",
            "Corresponding value:", (pairs[key],),
        )  # fmt: skip


TASKS = (Pairs("kv_retrieval", ("kv retrieval",), 0, "JSON objects of random pairs", 64),)
