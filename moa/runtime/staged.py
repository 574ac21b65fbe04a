"""Provide the handle that a `KVCache` returns in place of keys and values; `moa.runtime.layer` explains why."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

from moa.kernels.backend import Backend
from moa.kernels.softmax import Softmax
from moa.plans.errors import Unsupported

ATTRIBUTE = "_moa"
"""The attribute of an attention module under a plan that holds its `moa.runtime.attention.LayerState`."""


class Staged:
    """The new keys and values of one layer, on their way from the cache to the attention function.

    Where layers share keys, all of them attend to one handle.

    Attributes:
        k: The new keys [batch, kv_heads, new, D].
        v: The new values, of the same shape.
        columns: The number of columns that the layer will hold, past and new; in compiled graphs the new ones alone.
        peers: All layers of the cache that have rules. The handle carries them, since layers that referred to each
            other would form a cycle, and an unused cache would be freed only at Python's next garbage collection.
    """

    peers: Sequence[Any] = ()

    def __init__(self, k: Tensor, v: Tensor, past: int, read: Callable[..., Tensor], readers: int) -> None:
        self.k, self.v, self._read, self._left, self._readers = k, v, read, readers, readers
        self.columns = past + int(k.shape[2])

    def attend(self, query: Tensor, mask: Tensor | None, *, softmax: Softmax, backend: Backend) -> Tensor:
        """Return attention to the past and the staged keys; their last reader stores them.

        Args:
            query: Queries of the staged tokens [batch, query_heads, width, D]; where layers share keys and nothing is
                padded, all after the first may have those of the last token alone.
            mask: bool [batch, past + new columns], false where padded; None when no new token is padding.
            softmax: How scores become weights.
            backend: The back-end that computes (`moa.kernels.backend`).

        Returns:
            [batch, width, query_heads, D], 0 where padded.

        Raises:
            Unsupported: More layers read the keys than the model's config says, or a layer cuts its queries otherwise.
        """
        if not self._left:
            raise Unsupported(f"keys that {self._readers} layers share, by the config, are read by another one")
        first, width, new = self._left == self._readers, query.shape[2], self.k.shape[2]
        if width != new and (first or width != 1 or mask is not None):
            raise Unsupported(
                f"{width} queries to keys of {new} new tokens: later readers may attend from the last alone"
            )
        self._left -= 1
        return self._read(
            query, self.k, self.v, mask, softmax=softmax, backend=backend, peers=self.peers, first=first,
            last=not self._left,
        )  # fmt: skip

    def to(self, device: torch.device) -> "Staged":
        """Return the handle itself: transformers 5.17 asks keys that layers share to be on the reader's device.

        Raises:
            Unsupported: They are on another one.
        """
        if device != self.k.device:
            raise Unsupported(f"layers on {self.k.device} and {device} share keys: put them on one device")
        return self

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):
            raise AttributeError(name)
        _refuse()

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> NoReturn:
        _refuse()


def _refuse() -> NoReturn:
    """Refuse to be read as a tensor: name the module under a plan that tried it, or say that the model has no plan."""
    frame = inspect.currentframe()
    while frame is not None:
        for reader in (frame.f_locals.get("self"), frame.f_locals.get("module")):
            if isinstance(reader, torch.nn.Module) and ATTRIBUTE in reader.__dict__:
                raise Unsupported(
                    f"{type(reader).__name__} does more with cached keys and values than attend by transformers' "
                    "interface, which plans do not honour: use the model without a plan"
                )
        frame = frame.f_back
    raise Unsupported("a moa.KVCache works only with a model under its plan: call moa.apply(model, plan) first")
