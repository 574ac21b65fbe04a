"""MoA's elastic rule (arXiv 2406.14909, section 4): a window that grows linearly with the length."""

from collections.abc import Sequence
from typing import Annotated

from pydantic import BeforeValidator, Field

from moa.plans.patterns.rule import LIMIT, Numbers, Rule, Share, integer
from moa.plans.span import BETA_STEPS, BLOCK


class ElasticRule(Rule):
    """A rule that aims at a span of alpha + beta*n tokens, the sink included; full attention is alpha 0, beta 1."""

    alpha: Annotated[int, BeforeValidator(integer), Field(ge=-LIMIT, le=LIMIT)]
    """Constant part of the span, tokens; may be negative."""
    beta: Share
    """Part of the length that is kept, 0 to 1 in steps of 1/256."""

    @property
    def beta256(self) -> int:
        """Beta in steps of 1/256, 0 to 256."""
        return int(self.beta * BETA_STEPS)

    @property
    def numbers(self) -> Numbers:
        """Sink, alpha, beta in 1/256."""
        return self.sink, self.alpha, self.beta256

    @classmethod
    def of(cls, numbers: Numbers) -> "ElasticRule":
        """Return the rule of these `numbers`."""
        sink, alpha, beta256 = map(int, numbers)
        return cls.model_validate({"sink": sink, "alpha": alpha, "beta": beta256 / BETA_STEPS})

    @classmethod
    def candidates(
        cls, sink: int, near: Sequence[int], far: Sequence[int], short: int, longest: int
    ) -> Sequence[Numbers]:
        """Return full attention first, then windows proportional to the length, then all lines through two windows."""
        found = [(sink, 0, BETA_STEPS)]
        found += [(sink, 0, round(BETA_STEPS * w / longest)) for w in far]
        for at_short in sorted({*near, *far}):  # wider than the short length: everything is seen there
            for at_longest in far:
                growth = (at_longest - at_short) / (longest - short)
                if 0 <= growth <= 1:
                    beta256 = round(BETA_STEPS * growth)
                    # Exact at the longest length: the row that decides there is the first of its block.
                    row = (longest - 1) // BLOCK * BLOCK + 1
                    found.append((sink, sink + at_longest - beta256 * row // BETA_STEPS, beta256))
        return found

    @classmethod
    def probe(cls, window: float, length: int, *, grows: bool = False) -> "ElasticRule":
        """Return full attention's share of the window, or alpha alone."""
        if grows:
            return cls.of((BLOCK, 0, round(BETA_STEPS * window / length)))
        return cls.of((BLOCK, BLOCK + round(window), 0))
