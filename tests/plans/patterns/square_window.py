"""A pattern that only tests know: a window that grows with the root of the length."""

from collections.abc import Sequence
from math import isqrt
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from moa.plans.patterns.rule import Numbers, Rule
from moa.plans.span import BETA_STEPS, Ints, Window


def rooted(sink: Ints, floor: Ints, root: Ints, n: Ints) -> Ints:
    """A constant and `root` times the root of n, whole tokens; below n it grows by less than a token per token."""
    widths = np.vectorize(lambda x: isqrt(int(x)), otypes=[np.int64])(root * root * n)
    return BETA_STEPS * (floor + widths)


class SquareWindow(Rule):
    """Floor + root * sqrt(n) tokens besides the sink."""

    pattern: Literal["square_window"] = "square_window"
    floor: Annotated[int, Field(ge=0)] = 0
    root: Annotated[int, Field(ge=0)]

    window: ClassVar[Window] = staticmethod(rooted)
    label: ClassVar[str] = "square"
    about: ClassVar[str] = "groups whose windows grow with the root of the length"

    @property
    def numbers(self) -> Numbers:
        return self.sink, self.floor, self.root

    @classmethod
    def of(cls, numbers: Numbers) -> "SquareWindow":
        sink, floor, root = map(int, numbers)
        return cls(sink=sink, floor=floor, root=root)

    @classmethod
    def candidates(
        cls, sink: int, near: Sequence[int], far: Sequence[int], short: int, longest: int
    ) -> Sequence[Numbers]:
        roots = [(sink, 0, max(1, round(window / longest**0.5))) for window in far]
        return [(sink, 2**30, 0), *((sink, window, 0) for window in far), *roots]

    @classmethod
    def probe(cls, window: float, length: int, *, grows: bool = False) -> "SquareWindow":
        return cls(root=max(1, round(window / length**0.5))) if grows else cls(floor=round(window), root=0)
