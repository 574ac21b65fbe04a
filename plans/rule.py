"""The rule of one group, and the union of patterns that a plan file may name."""

import math
import operator
from numbers import Real
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PlainSerializer

from moa.plans.errors import brief
from moa.plans.schema import PATTERN_NAMES, Strict
from moa.plans.span import BETA_STEPS, BLOCK

LIMIT = 2**31 - 1
"""Largest sink and |alpha|, so that int64 arithmetic in 1/256ths of a token cannot overflow."""


def _integer(value: Any) -> int:
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise ValueError(f"must be an integer, found {brief(value)}")
    return operator.index(value)


def _sink(value: Any) -> int:
    sink = _integer(value)
    if not BLOCK <= sink <= LIMIT or sink % BLOCK:
        raise ValueError(f"must be a positive multiple of {BLOCK}, found {sink}")
    return sink


def _beta(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= float(value) <= 1:
        raise ValueError(f"must be a number from 0 to 1, found {brief(value)}")
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


class KeyDiffWindow(SinkWindow):
    """A rule of the same spans, whose sink holds other keys than the first once keys leave the window.

    Those are the first 4 of the text and, of all that left, the keys most unlike the others of their block
    (`moa.kernels.keydiff` says which). Memory and density are those of a `SinkWindow` of the same numbers.
    """

    pattern: Literal["keydiff_window"] = "keydiff_window"  # type: ignore[assignment]


Rule = SinkWindow
"""Any rule; a `KeyDiffWindow` is one too."""

Pattern = Annotated[SinkWindow | KeyDiffWindow, Field(discriminator="pattern")]
"""Any pattern a plan file may name; further ones join the union."""

PATTERNS = dict(zip(PATTERN_NAMES, (SinkWindow, KeyDiffWindow), strict=True))
"""The class of each pattern."""

FULL = Rule(alpha=0, beta=1)
"""Full attention."""
