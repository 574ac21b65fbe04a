"""Take from a journal what an earlier run measured, and measure the rest."""

import sys
from collections.abc import Callable
from typing import Any

from moa.evaluation.journal import Journal


def kept(journal: Journal, name: str, measure: Callable[[], Any], /, **about: Any) -> Any:
    """Return the journal's result under `name`, or a new one, which it keeps and a line on stderr tells of.

    Args:
        journal: The journal.
        name: Key of what the result depends on.
        measure: Returns the result in JSON types.
        about: What people should read of it in the journal.
    """
    if journal.get(name) is None:
        journal.put(name, measure(), **about)
        print("measured", *about.values(), file=sys.stderr, flush=True)
    return journal.get(name)
