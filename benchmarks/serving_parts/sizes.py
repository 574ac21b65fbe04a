"""How much each stage does: in a measurement, and in a try of minutes."""

from typing import NamedTuple

TOLERANCE = 1e-4
"""Of logprobs in float32; where the two best tokens are nearer than that, either may come."""


class Sizes(NamedTuple):
    """Sizes; lengths are in tokens.

    Attributes:
        longest: The longest text that engines take (--max-model-len).
        limits: Lengths of the texts of `concurrency`.
        pool: Memory for keys and values of `pages`, `concurrency` and `crowd`, MiB.
        prompts: Lengths of the prompts of `equality`.
        new: New tokens of each.
        held: Length of the prompt of `pages`.
        length: Length of each prompt of `prefill`, `decode` and `crowd`.
        batches: Requests that decode at once.
        rounds: Rounds of `prefill` and of `decode`.
        steps: Decode steps of a round; all rounds together pass one border of blocks.
        requests: Requests of `crowd`.
        answers: New tokens of each, one crowd per number.
        calls: Requests of `cancellations`.
        texts: The shortest and the longest prompt of those.
        replies: The fewest and the most new tokens of those.
    """

    longest: int = 4096
    limits: tuple[int, ...] = (4096, 8192)
    pool: int = 400
    prompts: tuple[int, ...] = (1500, 2200, 3000)
    new: int = 96
    held: int = 3000
    length: int = 2000
    batches: tuple[int, ...] = (1, 8)
    rounds: int = 8
    steps: int = 8
    requests: int = 32
    answers: tuple[int, ...] = (64, 512)
    calls: int = 200
    texts: tuple[int, int] = (20, 1500)
    replies: tuple[int, int] = (4, 96)


FULL = Sizes()
SMALL = Sizes(
    longest=1024, limits=(1024,), pool=48, prompts=(190, 446, 700), new=8, held=700, length=400, batches=(1, 2),
    rounds=2, steps=2, requests=6, answers=(8, 16), calls=12, texts=(20, 300), replies=(4, 16),
)  # fmt: skip
"""The shortest prompts under which every part of every stage has something to do."""
