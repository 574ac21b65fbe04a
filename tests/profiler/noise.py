"""Sources of random tokens, and what to measure of them."""

import random
from typing import Any

from moa.profiler.calibration import Sample, Source, whole_text
from moa.profiler.settings import Settings

SETTINGS = Settings(
    lengths=(320, 256), samples=2, variants=(("sink_window", 64), ("sink_window", 128), ("keydiff_window", 64))
)


def noise(tokenizer: Any, length: int, rng: random.Random, chat: bool) -> Sample:
    return whole_text([rng.randrange(200) for _ in range(length)])


NOISE = [Source("noise", noise, "sampled", "nll"), Source("known", noise, "given", "margin", "effect")]
SLOPES = Settings((320,), samples=1, estimator="effect", loss="kl")
