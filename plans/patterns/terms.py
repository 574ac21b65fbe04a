"""Terms of time: a pattern says how often a group pays each, and `moa.search.fit` finds the milliseconds of each."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from moa.plans.span import Floats

Bools = npt.NDArray[np.bool_]


class Terms(NamedTuple):
    """How often a group pays each term, by the term's name; patterns that are computed alike share their terms.

    Attributes:
        decode: Per term, a function of the blocks that a decode step reads of the cache, over all sequences; where it
            chooses what it reads, of those that it reads in any case.
        prefill: Per term, a function of the (query, key) pairs of each query block of a text, float64 [blocks], and of
            whether the block sees less than everything, bool [blocks].
    """

    decode: Mapping[str, Callable[[float], float]]
    prefill: Mapping[str, Callable[[Floats, Bools], float]]


IN_PLACE = Terms(
    decode={"block": lambda blocks: blocks},
    prefill={
        "whole": lambda pairs, windowed: pairs[~windowed].sum(),
        "windowed": lambda pairs, windowed: pairs[windowed].sum(),
        "chunk": lambda pairs, windowed: windowed.sum(),
    },
)
"""Of groups whose keys stay where they are. One causal call computes `whole` pairs; every other query block is a call
of its own, a `chunk`."""
