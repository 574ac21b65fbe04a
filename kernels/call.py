"""Document the attention operations that every back-end has, and define the structs that a call of them takes.

Shapes and meanings are documented here alone; `moa.kernels.reference` says in plain PyTorch what each operation does.
A row at position p sees key j exactly when j <= p and (j < sink or j // 64 >= first[p // 64]).
"""

from typing import NamedTuple, Protocol

import numpy as np
from torch import Tensor

from moa.kernels.softmax import Softmax
from moa.kernels.store import Store
from moa.plans.span import Ints


class Packed(NamedTuple):
    """New tokens of a batch, packed without padding.

    Attributes:
        cu_seqlens: int32 [sequences + 1], offsets of each sequence's new tokens.
        past: int64 [sequences], tokens that each sequence had before: the position of its first new token.
        max_seqlen: New tokens of the sequence that has most of them, or an upper bound of that number.
        nonempty: Whether every sequence is known to have a new token; `decode` needs one in each.
        lengths: `past` and the number of new tokens, two [sequences], where the host knows them; otherwise None.
    """

    cu_seqlens: Tensor
    past: Tensor
    max_seqlen: int
    nonempty: bool = False
    lengths: tuple[Ints, Ints] | None = None

    def on_host(self) -> tuple[Ints, Ints]:
        """Return `past` and the number of new tokens, two [sequences]; it waits for the device without `lengths`."""
        if self.lengths is not None:
            return self.lengths
        return self.past.cpu().numpy(), self.cu_seqlens.diff().cpu().numpy().astype(np.int64)


class Visibility(NamedTuple):
    """What the rows of one layer see, by `moa.plans.span`.

    Attributes:
        first: int32 [kv_heads, blocks], first block besides the sink per query block.
        sink: int32 [kv_heads], tokens, multiples of 64.
    """

    first: Tensor
    sink: Tensor


class Reading(NamedTuple):
    """How much of what they see the rows of one layer read, by `moa.plans.reading`.

    Attributes:
        share: int32 [kv_heads], of the bytes of all keys and values up to a row, in 1/256; 256 reads all that is kept.
        given: int32 [kv_heads], the first keys that a row sees and always reads, a multiple of 16: one page, or the
            whole sink where its keys have moved.
    """

    share: Tensor
    given: Tensor


class Attend(Protocol):
    """Attention of the new tokens over the store's past and themselves; writes nothing."""

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, *, batch: Packed, seen: Visibility, store: Store | None = None,
        softmax: Softmax,
    ) -> Tensor:  # fmt: skip
        """Attend.

        Args:
            q: Queries of the new tokens [tokens, query_heads, D]; query head h uses KV head h // group size.
            k: Their keys [tokens, kv_heads, D].
            v: Their values, like k.
            batch: How they are packed; sequences without new tokens are among them.
            seen: What their rows see.
            store: The past of every sequence; None where there is none.
            softmax: How scores become weights.

        Returns:
            [tokens, query_heads, D] in q's dtype.
        """


class Append(Protocol):
    """Writes new tokens into their slabs: the sink's, and the newest that the ring has room for."""

    def __call__(self, store: Store, k: Tensor, v: Tensor, *, batch: Packed, seen: Visibility) -> None:
        """Write; arguments as for `Attend`."""


class Decode(Protocol):
    """The decode form, for 1 to 64 new tokens of every sequence: `Attend` and `Append` in one call."""

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, *, batch: Packed, seen: Visibility, store: Store, softmax: Softmax
    ) -> Tensor:
        """Attend and write; arguments and result as for `Attend`."""


class Read(Protocol):
    """`Decode` for rows that read only some pages of what they see, for at most 16 new tokens of each sequence.

    It needs the store's summaries, and writes those of the pages that the new tokens fill.
    """

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, *, batch: Packed, seen: Visibility, reading: Reading, store: Store,
        softmax: Softmax,
    ) -> Tensor:  # fmt: skip
        """Attend and write; sequences without new tokens are among them.

        `moa.kernels.paged.selection` says what a row reads. Where every row reads all that it sees, the result is that
        of `Decode`, bit for bit.

        Args:
            q, k, v, batch, seen, store, softmax: See `Attend`.
            reading: What the rows read.

        Returns:
            [tokens, query_heads, D] in q's dtype.
        """
