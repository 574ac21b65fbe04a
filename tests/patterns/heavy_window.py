"""A pattern that only tests know: its sinks hold the keys of greatest norm, a choice that only tests know."""

from typing import ClassVar, Literal

from torch import Tensor

from moa.plans.patterns.elastic import ElasticRule


def norms(k: Tensor) -> Tensor:
    return k.float().square().sum(-1)


class HeavyWindow(ElasticRule):
    """The spans of a `sink_window`; sinks of other keys."""

    pattern: Literal["heavy_window"] = "heavy_window"

    holds: ClassVar[str] = "heavy"
