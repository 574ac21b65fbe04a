"""Pattern `sink_window`: the first keys of the text, and a window that grows with it."""

from typing import Literal

from moa.plans.patterns.elastic import ElasticRule
from moa.plans.patterns.rule import register


@register
class SinkWindow(ElasticRule):
    """A rule whose sink holds the first keys, as in StreamingLLM (arXiv 2309.17453)."""

    pattern: Literal["sink_window"] = "sink_window"
    """What the sink holds: here the first keys of the text."""
