"""The rule of one group, and the union of patterns that a plan file may name."""

import math
import operator
from numbers import Real
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PlainSerializer

from moa.plans.schema import Strict
from moa.plans.span import BETA_STEPS, BLOCK

LIMIT = 2**31 - 1
"""Largest sink and |alpha|, so that int64 arithmetic in 1/256ths of a token cannot overflow."""


def _integer(value: Any) -> int:
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise ValueError(f"must be an integer, found {value!r}")
    return operator.index(value)


def _sink(value: Any) -> int:
    sink = _integer(value)
    if not BLOCK <= sink <= LIMIT or sink % BLOCK:
        raise ValueError(f"must be a positive multiple of {BLOCK}, found {sink}")
    return sink


def _beta(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= float(value) <= 1:
        raise ValueError(f"must be a number from 0 to 1, found {value!r}")
    steps = float(value) * BETA_STEPS
    if not steps.is_integer():
        low = math.floor(steps)
        raise ValueError(
            f"must be a multiple of 1/{BETA_STEPS}, found {value}; "
            f"the nearest are {low / BETA_STEPS} and {(low + 1) / BETA_STEPS}"
        )
    return steps / BETA_STEPS


def _plain(beta: float) -> float | int:
    return int(beta) if beta.is_integer() else beta


class SinkWindow(Strict):
    """A rule: the sink and a window whose reach grows with length (`moa.plans.span` says who sees what).

    The span aimed at is alpha + beta*n, the sink included; full attention is alpha 0, beta 1.
    """

    pattern: Literal["sink_window"] = "sink_window"
    sink: Annotated[int, BeforeValidator(_sink)] = BLOCK
    """Tokens at the start of the text that are always seen; a positive multiple of 64."""
    alpha: Annotated[int, BeforeValidator(_integer), Field(ge=-LIMIT, le=LIMIT)]
    """Constant part of the span, tokens; may be negative."""
    beta: Annotated[float, BeforeValidator(_beta), PlainSerializer(_plain)]
    """Part of the length that is kept, 0 to 1 in steps of 1/256."""

    @property
    def beta256(self) -> int:
        """Beta in steps of 1/256, 0 to 256."""
        return int(self.beta * BETA_STEPS)


Rule = SinkWindow
"""The one pattern of version 1."""

Pattern = Annotated[SinkWindow, Field(discriminator="pattern")]
"""Any pattern a plan file may name; further ones join as `SinkWindow | Other`."""

FULL = Rule(alpha=0, beta=1)
"""Full attention."""
