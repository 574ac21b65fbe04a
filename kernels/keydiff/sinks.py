"""Keep track of the keys in a layer's sinks where these are not the first keys.

When a block leaves the window of such a group, its keys and the sink's are sorted by their scores: the best lie in the
sink from then on, the others where the block lay. So back-ends read such a sink like any other. The ring has one block
to spare, so the last block that left can come back unchanged when tokens are removed from the cache.
"""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from moa.kernels.call import Packed
from moa.kernels.keydiff.selection import PINNED, Scores, winners
from moa.kernels.sink_contents import SCORES
from moa.kernels.store import Store, slots
from moa.plans.span import BLOCK, Ints


class Sinks:
    """Scores and origins of the keys in the sinks of one layer.

    Attributes:
        holds: Which keys each KV head's sink holds, names in `SCORES`.
        groups: KV heads whose sinks these are, those that do not hold the first keys, int64, rising.
        first_at: First blocks besides the sink that rows see, on the host: from positions [n] to [n, kv_heads].
        folded: Blocks before it have left the window for the sink, on the host [sequences, kv_heads].
        score: Scores of the keys in each sink, in their order, then of those that the last block's leaving dropped,
            float32 [sequences, kv_heads, most + 64], where `most` is the slots of the largest sink.
        position: Their places in the text, int64 of the same shape.
        on_device: `groups`, and for each KV head its place among them or -1, two int32.
    """

    def __init__(
        self, sink: Ints, holds: Sequence[str], first_at: Callable[[Ints], Ints], sequences: int, device: torch.device
    ) -> None:
        self.holds, self.first_at = tuple(holds), first_at
        self.groups = np.flatnonzero([SCORES[name] is not None for name in holds])
        self._sink, self._start = sink, sink // BLOCK
        self.folded = np.tile(self._start, (sequences, 1))
        self._can_undo = np.zeros(self.folded.shape, np.bool_)
        self._alike = [  # groups that move together
            (size, scores_of, (sink == size) & np.array([name == other for other in holds]))
            for size, name in sorted({(int(sink[group]), holds[group]) for group in self.groups.tolist()})
            if (scores_of := SCORES[name]) is not None
        ]
        self._still = b""  # the last state in which `follow` found nothing to do
        shape = (sequences, len(sink), int(sink[self.groups].max()) + BLOCK)
        with torch.inference_mode(False):
            self.score = torch.zeros(shape, dtype=torch.float32, device=device)
            self.position = torch.zeros(shape, dtype=torch.int64, device=device)
            places = np.full(len(sink), -1, np.int32)
            places[self.groups] = np.arange(len(self.groups))
            self.on_device = tuple(torch.from_numpy(x.astype(np.int32)).to(device) for x in (self.groups, places))

    def sink(self, group: int) -> int:
        """Return the slots of a group's sink."""
        return int(self._sink[group])

    def known(self, k: Tensor, sequence: int, groups: list[int]) -> tuple[Tensor, Tensor]:
        """Return the scores and positions of keys, two [groups, keys]; in a block that is not full yet scores are -inf.

        Args:
            k: The sink's keys, then those from the first block besides it on [groups, keys, D].
            sequence: The sequence whose keys they are.
            groups: The groups whose keys they are; they see the same.
        """
        scores_of = SCORES[self.holds[groups[0]]]
        assert scores_of is not None
        size, begin = self.sink(groups[0]), int(self.folded[sequence, groups[0]])
        moved = size if begin > self._start[groups[0]] else 0  # keys that are not where the text has them
        whole = (k.shape[1] - moved) // BLOCK * BLOCK + moved
        score = torch.full(k.shape[:2], -torch.inf, device=k.device)
        score[:, moved:whole] = scores_of(k[:, moved:whole])
        position = (torch.arange(k.shape[1], device=k.device) + BLOCK * begin - size).repeat(len(groups), 1)
        if moved:
            score[:, :size] = self.score[sequence, groups, :size]
            position[:, :size] = self.position[sequence, groups, :size]
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
        self.folded[sequence, groups], self._can_undo[sequence, groups] = folded, False

    def are_scored_by(self, scores_of: Scores) -> bool:
        """Return whether the keys of all these sinks are chosen by `scores_of`."""
        return all(SCORES[self.holds[group]] is scores_of for group in self.groups.tolist())

    def settle(self, first: Ints, sequences: Ints) -> None:
        """Record that a back-end has updated the sinks of `sequences` to what rows see from blocks `first` on.

        It has left the losers of the last block that left in that block's place, so that the block can come back.
        """
        moved = np.zeros(first.shape, np.bool_)
        moved[np.ix_(sequences, self.groups)] = True
        moved &= self.folded < first
        self.folded, self._can_undo = np.where(moved, first, self.folded), self._can_undo | moved

    def due(self, first: Ints) -> npt.NDArray[np.bool_]:
        """Return which sinks hold other keys than rows see from blocks `first` on: bool [sequences, kv_heads]."""
        there = np.zeros(first.shape, np.bool_)
        there[:, self.groups] = (self.folded != first)[:, self.groups]
        return there

    def advance(self, store: Store, first: Ints, sequences: Ints | None = None) -> None:
        """Update the sinks to the keys that rows see from blocks `first` on, besides the sink.

        Args:
            store: Holds every block from `folded` on, and the last one that left if it must come back.
            first: int64 [sequences, kv_heads].
            sequences: The sequences to update; None for all.
        """
        due = self.due(first)
        if sequences is not None:
            due[np.setdiff1d(np.arange(len(due)), sequences)] = False
        while due.any():
            for size, scores_of, groups in self._alike:
                mine = due & groups
                leaves, returns = mine & (self.folded < first), mine & (self.folded > first)
                if leaves.any():
                    self._fold(store, leaves, size, scores_of)
                if returns.any():
                    self._undo(store, returns, size)
            due &= self.folded != first

    def follow(self, store: Store, batch: Packed) -> None:
        """Update the sinks to what each sequence's one new token sees; read `past` only where a block may end."""
        past = batch.past.cpu().numpy() if batch.past_bounds is None else batch.past_bounds
        # All that the result depends on; it changes in one step of 64.
        state = (past // BLOCK).tobytes() + self.folded.tobytes()
        if state == self._still:
            return
        if self.due(self.first_at(past)).any():
            self.advance(store, self.first_at(batch.past.cpu().numpy()))
        else:
            self._still = state

    def check_crop(self, first: Ints) -> bool:
        """Return whether the sinks can go back to what rows see from blocks `first` [sequences, kv_heads] on."""
        back = (self.folded - first)[:, self.groups]
        return bool(((back <= 0) | ((back == 1) & self._can_undo[:, self.groups])).all())

    def select(self, index: Tensor) -> "Sinks":
        """Return new sinks whose sequence i is a copy of sequence `index[i]`."""
        new, on_host = object.__new__(Sinks), index.cpu().numpy()
        new.__dict__ |= self.__dict__
        new.folded, new._can_undo = self.folded[on_host], self._can_undo[on_host]
        with torch.inference_mode(False):
            new.score, new.position = self.score[index].clone(), self.position[index].clone()
        return new

    def _fold(self, store: Store, pairs: npt.NDArray[np.bool_], size: int, scores_of: Scores) -> None:
        """Let the first block besides the sink leave the window: the sink keeps the best of its own and these keys."""
        sequence, group = np.nonzero(pairs)
        s, g = (torch.from_numpy(x).to(store.k.device) for x in (sequence, group))
        block = torch.from_numpy(self.folded[sequence, group]).to(s.device)
        at, position = self._places(store, s, g, block, size)
        keys = store.k[at]
        found = scores_of(keys)  # right only for blocks that were never in a sink
        old = (block > size // BLOCK)[:, None]
        score = torch.cat([torch.where(old, self.score[s, g, :size], found[:, :size]), found[:, size:]], 1)
        position[:, :size] = torch.where(old, self.position[s, g, :size], position[:, :size])
        score = score.masked_fill(position < PINNED, torch.inf)
        order = _best_first(score, size)
        self.score[s, g, : size + BLOCK] = score.gather(1, order)
        self.position[s, g, : size + BLOCK] = position.gather(1, order)
        _reorder(store, at, order)
        self.folded[sequence, group] += 1
        self._can_undo[sequence, group] = True

    def _undo(self, store: Store, pairs: npt.NDArray[np.bool_], size: int) -> None:
        """Bring back the last block that left: of the keys that were sorted then, its own are the newest."""
        sequence, group = np.nonzero(pairs)
        assert self._can_undo[sequence, group].all(), "only the last block that left can come back"
        s, g = (torch.from_numpy(x).to(store.k.device) for x in (sequence, group))
        block = torch.from_numpy(self.folded[sequence, group] - 1).to(s.device)
        at, _ = self._places(store, s, g, block, size)
        order = self.position[s, g, : size + BLOCK].argsort(1)
        for x in (self.score, self.position):
            x[s, g, : size + BLOCK] = x[s, g, : size + BLOCK].gather(1, order)
        _reorder(store, at, order)
        self.folded[sequence, group] -= 1
        self._can_undo[sequence, group] = False

    def _places(self, store: Store, s: Tensor, g: Tensor, block: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """Return the slots of the sink and `block`, and the positions that first lay there: [pairs, size + 64] each."""
        i = torch.arange(size + BLOCK, device=block.device)
        position = torch.where(i < size, i, BLOCK * block[:, None] + i - size)
        sink = torch.full_like(block, size)[:, None]
        return slots(position, sink, store.base[s, g, None], store.capacity[s, g, None]), position


def _best_first(score: Tensor, size: int) -> Tensor:
    """Return a permutation of each row: the `size` best in their order, then the others: [pairs, size + 64]."""
    best = winners(score, size)
    lost = torch.ones_like(score, dtype=torch.int8).scatter_(1, best, 0)
    return lost.argsort(stable=True, dim=1)


def _reorder(store: Store, at: Tensor, order: Tensor) -> None:
    source = at.gather(1, order)
    store.k[at], store.v[at] = store.k[source], store.v[source]
