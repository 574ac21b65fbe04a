"""Make and measure the rows that are compared at equal bytes read: searched plans beside Quest, UNIQUE and RocketKV."""

from collections.abc import Sequence
from typing import Any

import reads_baselines
from peers.samples import TASKS
from provenance import said
from reads_parts.backend import added

from moa.evaluation.comparison import compare
from moa.evaluation.journal import Journal
from moa.evaluation.samples import Part
from moa.profiler.profile import Profile

PLAN = "searched"
HALF = "half kept"
ROWS = PLAN, "uniform", "quest", "unique", "window", "keydiff"
"""The rows of `reads_baselines.py` that stand here, by the beginnings of their names; RocketKV is the last two."""
LEFT_OUT = "quest as counted there"
"""It reads more than the budget."""
NAMES = {"quest": "Quest", "unique": "UNIQUE", "window": "RocketKV, window", "keydiff": "RocketKV, keydiff"}
"""What some of them are called here."""

Entries = list[tuple[str, reads_baselines.Entry]]


def entries(profile: Profile, shares: Sequence[str], length: int) -> Entries:
    """Return the rows at a length by name; those of a share read no more of all bytes in a step."""
    found = []
    for share in shares:
        for each in reads_baselines.entries(profile, reads_baselines.SHARES[share], length):
            kind, *rest = each.name.split(", ")
            if kind in ROWS and each.name != LEFT_OUT:
                found.append((", ".join([NAMES.get(kind, kind), *rest, f"{share} read"]), each))
    return found


def measure(
    model: Any, tokenizer: Any, rows: Entries, length: int, counts: dict[str, int], seed: int, journal: Journal
) -> list[dict[str, Any]]:
    """Return the rows as measured, each by its method's back-end.

    A question that is given stands in the text, of which a prefill reads everything, so those are measured too.
    """
    found: dict[str, dict[str, Any]] = {}
    with added(reads_baselines.methods(), model.device):
        for backend in dict.fromkeys(each.backend for _, each in rows):
            mine = [(name, each.plan) for name, each in rows if each.backend == backend]
            part, told = Part(length, counts, TASKS), said(f"{length:,} tokens, {backend or 'moa'}")
            measured = compare(model, tokenizer, mine, [part], uniform=False, backend=backend, seed=seed,
                               journal=journal, progress=told)  # fmt: skip
            found |= {row["row"]: row for row in measured["rows"]}
    return [found[name] | {"read": each.read} for name, each in rows]
