"""Define how much of what a group keeps a row reads: the pages, their summaries, and every count that follows.

A row at length n, of a rule with `read` = r < 1, sees `kept` keys by `moa.plans.span` and reads the share r of the
bytes of all n keys and values, summaries included. Keys lie in coarse pages of 16, each of four fine pages of 4. Every
full page of either size has a summary, of which a score for the row follows. A row reads, in this order:

- the *floor*: the coarse pages at the start (`given`), the newest full one and the unfinished one, without summaries;
- the summaries of the other full coarse pages, among which it chooses (`choices`);
- the fine summaries in the `opened` coarse pages of best score: eight for each fine page that it fetches;
- the `fetched` fine pages of best score among those.

All kept keys are read, and no summary, where they fit into the bytes or lie in the floor: that is the dense attention
over what is kept. The sizes were chosen by measurement (`docs/experiments/reads.md`).

All arithmetic is integer and broadcasts. Bytes are those of a store in bfloat16, so that what is read does not depend
on the dtype. Only calls with up to 16 new tokens of a sequence read, so the pages that a row chooses among were full
before its call.
"""

from typing import Any

import numpy as np

from moa.plans.errors import brief
from moa.plans.span import BLOCK, IntLike, Ints

COARSE = 16
"""Keys in a coarse page."""
FINE = 4
"""Keys in a fine page."""
INSIDE = COARSE // FINE
"""Fine pages in a coarse page."""
OPENS = 8
"""Fine summaries that are scored for each fine page to be fetched."""
SUMMARIES = BLOCK // COARSE + BLOCK // FINE
"""Summaries of a block of 64 keys: those of its coarse pages, then those of its fine pages."""
SHORT = 16
"""The most new tokens of a sequence in a call that read; with more of them all that is kept is read."""
SELECTION = "pages 16 and 4"
"""Name of these sizes, of summaries and their score (`moa.kernels.paged`): profiles and plans of reads are for it."""
READ_STEPS = 256
"""`read` is a multiple of 1/256."""


def ours(selection: Any) -> str:
    """Return the name of a selection that a file has, if rows read by it here; else raise a ValueError."""
    if selection != SELECTION:
        raise ValueError(f"must be {brief(SELECTION)}, as plans read here, found {brief(selection)}: make it anew")
    return SELECTION


def slow_channels(head_size: int) -> Ints:
    """Return the channels that summaries describe: those of the slower half of the rotary pairs (i, i + D/2)."""
    half = head_size // 2
    slow = np.arange(half // 2, half)
    return np.concatenate([slow, half + slow])


def summary_bytes(head_size: int) -> int:
    """Return the bytes of a summary: 4 bits for each of D/2 slow channels, a scale and a spread of 16 bits each."""
    return head_size // 4 + 4


def token_bytes(head_size: int) -> int:
    """Return the bytes of a key and its value in bfloat16."""
    return 4 * head_size


def choices(kept: IntLike, given: IntLike) -> Ints:
    """Return how many coarse pages a row chooses among: the full ones that it keeps, without the floor's.

    Args:
        kept: Keys that the row sees, itself included (`moa.plans.span`).
        given: Of those the first, which it always reads: a multiple of 16. They are one page, or the whole sink where
            keys move into it.
    """
    return np.maximum(kept // COARSE - given // COARSE - 1, 0)


def fetched(read256: IntLike, length: IntLike, kept: IntLike, given: IntLike, head_size: int) -> Ints:
    """Return how many fine pages a row fetches of those that it chooses among; all of them where it reads all.

    Args:
        read256: The rule's `read` in 1/256, 1 to 256.
        length: Tokens up to the row, itself included.
        kept, given: See `choices`.
        head_size: Channels of a key.
    """
    among, token, summary = choices(kept, given), token_bytes(head_size), summary_bytes(head_size)
    fixed = (kept - COARSE * among) * token + among * summary
    left = read256 * length * token - READ_STEPS * fixed
    bought = np.maximum(left, 0) // (READ_STEPS * (FINE * token + OPENS * summary))
    fits = READ_STEPS * kept <= read256 * length
    return np.where(fits, INSIDE * among, np.minimum(bought, INSIDE * among))


def opened(pages: IntLike, among: IntLike) -> Ints:
    """Return in how many of `among` coarse pages the fine summaries are scored, to fetch `pages` fine ones."""
    return np.minimum(OPENS * pages // INSIDE, among)


def read_bytes(
    read256: IntLike, length: IntLike, kept: IntLike, given: IntLike, head_size: int, token: int | None = None
) -> Ints:
    """Return the bytes that a row reads, summaries included; arguments as for `fetched`.

    `token` is the bytes of a key and its value, None for those in bfloat16; which keys are read does not depend on it.
    """
    among, pages = choices(kept, given), fetched(read256, length, kept, given, head_size)
    keys = kept - COARSE * among + FINE * pages
    chooses = (pages > 0) & (pages < INSIDE * among)
    summaries = np.where(chooses, among + INSIDE * opened(pages, among), 0)
    size = token_bytes(head_size) if token is None else token
    return keys * size + summaries * summary_bytes(head_size)  # type: ignore[no-any-return]
