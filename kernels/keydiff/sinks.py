"""Keep track of the keys in a layer's sinks where these are not the first keys.

When a block leaves the window of such a group, its keys and the sink's are sorted by their scores: the best lie in the
sink from then on, the others where the block lay. So back-ends read such a sink like any other. The ring has one block
to spare, so the last block that left can come back unchanged when tokens are removed from the cache.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from moa.kernels.call import Packed, Visibility
from moa.kernels.keydiff.leaving import leave, places, reorder
from moa.kernels.keydiff.selection import PINNED, Scores
from moa.kernels.sink_contents import SCORES
from moa.kernels.store import Store
from moa.plans.span import BLOCK, Ints


class Alike(NamedTuple):
    """Groups that move together, in one operation."""

    size: int
    """Slots of each sink."""
    holds: str
    """Which keys the sinks hold."""
    groups: Tensor
    """int64 [groups], on the device."""


class Sinks:
    """Scores and origins of the keys in the sinks of one layer.

    Attributes:
        holds: Which keys each KV head's sink holds, names in `SCORES`.
        groups: KV heads whose sinks these are, those that do not hold the first keys, int64, rising.
        moving: How many these are.
        first_at: First blocks besides the sink that rows see, on the host: from positions [n] to [n, kv_heads].
        folded: Blocks before it have left the window for the sink, int32 [sequences, kv_heads], on the device.
        can_undo: 1 where the last block that left can come back, int8 [sequences, kv_heads], on the device.
        score: Scores of the keys in each sink, in their order, then of those that the last block's leaving dropped,
            float32 [sequences, kv_heads, most + 64], where `most` is the slots of the largest sink.
        position: Their places in the text, int64 of the same shape.
        groups_on_device: `groups`, int32.
        places: For each KV head its place among `groups` or -1, int32.
    """

    def __init__(
        self, sink: Ints, holds: Sequence[str], first_at: Callable[[Ints], Ints], sequences: int, device: torch.device
    ) -> None:
        self.holds, self.first_at = tuple(holds), first_at
        self.groups = np.flatnonzero([SCORES[name] is not None for name in holds])
        self.moving, self._sink = len(self.groups), sink
        self._still = b""  # the last state in which `follow` found nothing to do
        shape = (sequences, len(sink), int(sink[self.groups].max()) + BLOCK)
        place = np.full(len(sink), -1)
        place[self.groups] = np.arange(self.moving)
        with torch.inference_mode(False):
            self._start = torch.from_numpy((sink // BLOCK).astype(np.int32)).to(device)
            self.folded = self._start.repeat(sequences, 1)
            self.can_undo = torch.zeros_like(self.folded, dtype=torch.int8)
            self.score = torch.zeros(shape, dtype=torch.float32, device=device)
            self.position = torch.zeros(shape, dtype=torch.int64, device=device)
            self.groups_on_device, self.places = (
                torch.from_numpy(x.astype(np.int32)).to(device) for x in (self.groups, place)
            )
            alike: dict[tuple[int, str], list[int]] = {}
            for group in self.groups.tolist():
                alike.setdefault((self.sink(group), holds[group]), []).append(group)
            self._alike = [Alike(*kind, torch.tensor(groups).to(device)) for kind, groups in sorted(alike.items())]

    @property
    def state(self) -> tuple[Tensor, ...]:
        """The tensors that change as keys move."""
        return self.score, self.position, self.folded, self.can_undo

    def sink(self, group: int) -> int:
        """Return the slots of a group's sink."""
        return int(self._sink[group])

    def folded_on_host(self) -> Ints:
        """Return a copy of `folded`, int64; it waits for the device."""
        return self.folded.cpu().numpy().astype(np.int64)

    def known(self, k: Tensor, sequence: int, groups: list[int]) -> tuple[Tensor, Tensor]:
        """Return the scores and positions of keys, two [groups, keys].

        Args:
            k: The sink's keys, then those of whole blocks from the first besides it on [groups, keys, D].
            sequence: The sequence whose keys they are.
            groups: The groups whose keys they are; they see the same.
        """
        scores_of = SCORES[self.holds[groups[0]]]
        assert scores_of is not None
        size, begin = self.sink(groups[0]), int(self.folded[sequence, groups[0]])
        moved = size if begin > size // BLOCK else 0  # keys that are not where the text has them
        position = (torch.arange(k.shape[1], device=k.device) + BLOCK * begin - size).repeat(len(groups), 1)
        position[:, :moved] = self.position[sequence, groups, :moved]
        score = torch.cat([self.score[sequence, groups, :moved], scores_of(k[:, moved:])], 1)
        return score.masked_fill(position < PINNED, torch.inf), position

    def put(
        self, store: Store, sequence: int, groups: list[int], folded: int, k: Tensor, v: Tensor, score: Tensor,
        position: Tensor,
    ) -> None:  # fmt: skip
        """Write keys and values [groups, sink, D] to sinks, and note their scores and positions [groups, sink].

        The block before `folded` cannot come back afterwards.
        """
        size = self.sink(groups[0])
        at = store.base[sequence, groups, None] + torch.arange(size, device=k.device)
        store.k[at], store.v[at] = k, v
        self.score[sequence, groups, :size], self.position[sequence, groups, :size] = score, position
        self.folded[sequence, groups], self.can_undo[sequence, groups] = folded, 0

    def are_scored_by(self, scores_of: Scores) -> bool:
        """Return whether the keys of all these sinks are chosen by `scores_of`."""
        return all(SCORES[kind.holds] is scores_of for kind in self._alike)

    def follow(self, store: Store, batch: Packed, seen: Visibility) -> None:
        """Let a block leave the window of every sink whose sequence's one new token is the first not to see it.

        On a GPU nothing waits, and in a compiled graph nothing is decided when it is made.
        """
        if self.folded.is_cpu and not torch.compiler.is_compiling():
            # All that the result depends on; it changes in one step of 64.
            state = (batch.past.numpy() // BLOCK).tobytes() + self.folded.numpy().tobytes()
            if state == self._still:
                return
            if not self._lags(self.first_at(batch.past.numpy())):
                self._still = state
                return
        self._leave(store, seen.first[:, batch.past // BLOCK].T)

    def advance(self, store: Store, first: Ints, sequences: Ints | None = None) -> None:
        """Let blocks leave the window until sinks are what rows see from blocks `first` on, besides the sink.

        Args:
            store: Holds every block from `folded` on.
            first: int64 [sequences, kv_heads].
            sequences: The sequences to update; None for all.
        """
        wanted = np.zeros_like(first)
        here = slice(None) if sequences is None else sequences
        wanted[here] = first[here]
        edge = torch.from_numpy(wanted).to(self.folded.device)
        for _ in range(self._lags(wanted)):
            self._leave(store, edge)

    def take_back(self, store: Store, first: Ints) -> None:
        """Bring back the last block that left, where rows see it from blocks `first` [sequences, kv_heads] on.

        Of the keys that were sorted when it left, its own are the newest.
        """
        sequence, group = np.nonzero(self._beyond(first) > 0)
        for size in {self.sink(g) for g in group.tolist()}:
            mine = self._sink[group] == size
            s, g = (torch.from_numpy(x[mine]).to(self.folded.device) for x in (sequence, group))
            at, _ = places(store.base, store.capacity, s, g, self.folded[s, g].long() - 1, size)
            order = self.position[s, g, : size + BLOCK].argsort(1)
            for x in (self.score, self.position):
                x[s, g, : size + BLOCK] = x[s, g, : size + BLOCK].gather(1, order)
            reorder(store.k, store.v, at, order)
            self.folded[s, g] -= 1
            self.can_undo[s, g] = 0

    def can_take_back(self, first: Ints) -> bool:
        """Return whether the sinks can go back to what rows see from blocks `first` [sequences, kv_heads] on."""
        back = self._beyond(first)
        return bool(((back <= 0) | ((back == 1) & (self.can_undo.cpu().numpy() > 0))).all())

    def reset(self) -> None:
        """Set all sinks to those of empty texts."""
        self.folded.copy_(self._start.expand_as(self.folded))
        self.can_undo.zero_()

    def select(self, index: Tensor) -> "Sinks":
        """Return new sinks whose sequence i is a copy of sequence `index[i]`."""
        new = object.__new__(Sinks)
        new.__dict__ |= self.__dict__
        with torch.inference_mode(False):
            new.score, new.position, new.folded, new.can_undo = (x[index].clone() for x in self.state)
        return new

    def _leave(self, store: Store, edge: Tensor) -> None:
        for size, holds, groups in self._alike:
            leave(store.k, store.v, *self.state, store.base, store.capacity, edge, groups, size, holds)

    def _beyond(self, first: Ints) -> Ints:
        """Return how many more blocks have left than rows see gone from blocks `first` on; 0 where no key moves."""
        found = np.zeros_like(first)
        found[:, self.groups] = (self.folded_on_host() - first)[:, self.groups]
        return found

    def _lags(self, first: Ints) -> int:
        """Return how many blocks must leave, of the sink that lags behind `first` most."""
        return max(0, int(-self._beyond(first).min()))
