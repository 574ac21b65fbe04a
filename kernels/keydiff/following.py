"""Let keys move into sinks before a decode step: by the back-end where it has its own way to do so, else by torch."""

from moa.kernels.backend import Backend
from moa.kernels.call import Packed, Visibility
from moa.kernels.keydiff.selection import scores
from moa.kernels.keydiff.sinks import Sinks
from moa.kernels.store import Store


def follow(store: Store, sinks: Sinks, *, batch: Packed, seen: Visibility, backend: Backend) -> None:
    """Let a block leave the window of every sink whose sequence's one new token is the first not to see it."""
    if backend.follow_keydiff is not None and sinks.are_scored_by(scores):
        backend.follow_keydiff(store, sinks, batch=batch, seen=seen)
    else:
        sinks.follow(store, batch, seen)
