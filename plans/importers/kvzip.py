"""Import KVzip's scores of heads (arXiv 2505.23416, github.com/snu-mllab/KVzip).

A score per layer and KV head says how much attention the head needs to repeat a text. KVzip keeps the whole text in
the heads that score over a threshold, and of the others only the system prompt and what follows the text. So here those
have full attention, and the others a sink and a window. The files of scores are pickles, which moa does not read: load
one with torch (`weights_only=True`) and give the tensor.
"""

from collections.abc import Sequence

import numpy as np

from moa.plans.errors import PlanError
from moa.plans.importers import tables
from moa.plans.makers import two_group
from moa.plans.model import ModelInfo, whole
from moa.plans.patterns import Rule
from moa.plans.span import BLOCK


def read(
    source: tables.Source, info: ModelInfo, *, ratio: float, sink: int = BLOCK, recent: int = 256
) -> dict[int, Sequence[Rule]]:
    """Return the rules of each layer.

    Args:
        source: The scores [layers][KV heads].
        info: The model.
        ratio: The part of heads that keep everything, over 0 and at most 1. Below 1 it is rounded as KVzip does: the
            threshold is the score in place int(ratio * heads) from the top, and only higher ones are over it.
        sink: First tokens that the other heads see.
        recent: Last tokens that they see.

    Raises:
        PlanError: Scores or options are invalid.
    """
    if not 0 < ratio <= 1:
        raise PlanError(f"ratio must be over 0 and at most 1, found {ratio:g}")
    sink, recent = whole("sink", sink), whole("recent", recent)
    table = tables.scores(source, info)
    down = np.sort(table, axis=None)[::-1]
    threshold = -np.inf if ratio == 1 else down[max(int(table.size * ratio) - 1, 0)]
    full = [(int(layer), int(head)) for layer, head in np.argwhere(table > threshold)]
    return dict(two_group(info, full, recent, sink)[0])
