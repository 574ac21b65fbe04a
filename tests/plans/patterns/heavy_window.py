"""A pattern that only tests know: its sinks hold the keys of greatest norm, a choice that only tests know."""

from typing import ClassVar, Literal

from torch import Tensor

from moa.plans.patterns.elastic import ElasticRule
from moa.plans.patterns.terms import IN_PLACE, Terms


def norms(k: Tensor) -> Tensor:
    return k.float().square().sum(-1)


class HeavyWindow(ElasticRule):
    """The spans of a `sink_window`; sinks of other keys, which take time of their own."""

    pattern: Literal["heavy_window"] = "heavy_window"

    holds: ClassVar[str] = "heavy"
    label: ClassVar[str] = "heavy"
    terms: ClassVar[Terms] = Terms(
        decode={**IN_PLACE.decode, "heavy": lambda blocks: 2},
        prefill={"heavy_pairs": lambda pairs, windowed: pairs.sum(), "heavy_text": lambda pairs, windowed: 1},
    )
