"""Pattern `keydiff_window`: a sink of the keys most unlike the others, and a window that grows with the text."""

from typing import ClassVar, Literal

from moa.plans.patterns.elastic import ElasticRule
from moa.plans.patterns.rule import register
from moa.plans.patterns.terms import IN_PLACE, Terms
from moa.plans.span import KEYDIFF


@register
class KeyDiffWindow(ElasticRule):
    """A rule with the spans of a `sink_window`, whose sink holds selected keys once keys leave the window.

    Those are the first 4 of the text and, of all that left, the keys most unlike the others of their block
    (`moa.kernels.keydiff` says which). Memory and density are those of a `sink_window` of the same numbers.
    """

    pattern: Literal["keydiff_window"] = "keydiff_window"
    """What the sink holds: here the first 4 keys of the text and those most unlike the others of their block."""

    holds: ClassVar[str] = KEYDIFF
    terms: ClassVar[Terms] = Terms(
        decode={**IN_PLACE.decode, "keydiff": lambda blocks: 1},  # a step asks whether keys move
        prefill={  # every query block is a call of its own, on a copy of its keys
            "keydiff": lambda pairs, windowed: pairs.sum(),
            "keydiff_chunk": lambda pairs, windowed: len(pairs),
        },
    )
    label: ClassVar[str] = "keydiff"
    about: ClassVar[str] = "groups whose sinks hold other keys than the first"
