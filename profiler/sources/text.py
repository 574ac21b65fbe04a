"""Draw plain text: the documentation that comes with every Python."""

import random
from typing import Any

from moa.hf.text import prose
from moa.hf.tokens import start
from moa.profiler.calibration import Sample, Source, whole_text


def sample(tokenizer: Any, length: int, rng: random.Random, chat: bool) -> Sample:
    """Return consecutive documents, whose every token but the first is response; plain text, whatever `chat` says."""
    first = start(tokenizer)
    return whole_text([*first, *prose(tokenizer, length - len(first), rng, "calibration")])


SOURCE = Source("text", sample, "sampled", "nll", default=True)
