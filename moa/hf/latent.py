"""Attend to latents in place of the keys and values that a module expands from them (MLA, arXiv 2405.04434).

Such a module caches two vectors of a token, for all heads: a latent c, and a part r of the key that is rotated. Head h
expands them to the key [U c, r] and the value W c, by its own matrices U and W. A query [a, b] need not wait for that:

    [a, b] . [U c, r] = [U' a, b] . [c, r]        sum_j p_j W c_j = W sum_j p_j c_j

So all query heads are one group, which attends to one vector [c, r] per token that is key and value at once; this is
what the cache keeps, and a rule of it is one for all heads. A text without a past is cheaper expanded, as its keys are
read by many queries: its scores take fewer products, and it gives the same.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from moa.kernels.backend import Backend
from moa.kernels.call import Packed, Visibility
from moa.kernels.softmax import Softmax
from moa.kernels.store import Store
from moa.plans.errors import Unsupported

EXPAND = "expand_kv"
"""The method by which transformers' modules expand keys and values, between the cache and the attention function."""


def check(module: Any) -> None:
    """Refuse an attention module that does not cache latents, or expands them otherwise.

    Raises:
        Unsupported: It does so; the error says what.
    """
    name = type(module).__name__
    if not hasattr(module, EXPAND):
        raise Unsupported(f"{name} caches something else than the latents that its config has (kv_lora_rank)")
    if module.kv_b_proj.bias is not None:
        raise Unsupported(f"{name} expands latents with a bias (kv_b_proj.bias); plans know matrices alone")


def keep(module: nn.Module) -> None:
    """Let a module hand latents to its attention function as they are."""
    setattr(module, EXPAND, _kept)


def expand(module: nn.Module) -> None:
    """Let a module expand latents by itself again."""
    module.__dict__.pop(EXPAND, None)


def _kept(latents: Any, rotated: Any) -> tuple[Any, Any]:
    return latents, rotated


def joined(latents: Tensor, rotated: Tensor) -> Tensor:
    """Return latents [..., C] and rotated parts [..., R] as one vector [..., C + R], which is key and value at once.

    Autocast leaves the rotated part in float32.
    """
    return torch.cat([latents, rotated.to(latents.dtype)], -1)


class Expansion(NamedTuple):
    """The matrices by which a module's heads expand latents of C numbers.

    Attributes:
        keys: [query_heads, K, C], the parts of keys that are not rotated.
        values: [query_heads, V, C].
    """

    keys: Tensor
    values: Tensor

    @classmethod
    def of(cls, module: Any, like: Tensor) -> "Expansion":
        """Return those of a module, in the dtype of the tensor `like` and on its device."""
        linear = module.kv_b_proj
        matrix = linear.weight
        if type(linear) is not nn.Linear or type(matrix) is not nn.Parameter or matrix.is_meta:
            # Adapted, quantised or offloaded: what becomes of each number of a latent alone.
            dtype = next((p.dtype for p in linear.parameters() if p.is_floating_point() and not p.is_meta), like.dtype)
            matrix = linear(torch.eye(module.kv_lora_rank, dtype=dtype, device=like.device)).T
        sizes = [module.qk_nope_head_dim, module.v_head_dim]
        keys, values = matrix.detach().to(like.dtype).view(module.num_heads, sum(sizes), -1).split(sizes, 1)
        return cls(keys, values)

    def query(self, q: Tensor) -> Tensor:
        """Return queries [..., query_heads, rows, K + R] as they meet latents, [..., query_heads, rows, C + R]."""
        size = self.keys.shape[1]
        return torch.cat([q[..., :size] @ self.keys, q[..., size:]], -1)

    def value(self, mixed: Tensor) -> Tensor:
        """Return the values [..., query_heads, rows, V] of mixed vectors [..., query_heads, rows, C + R]."""
        return mixed[..., : self.values.shape[2]] @ self.values.mT

    def expanded(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Return the keys [query_heads, rows, K + R] and values [query_heads, rows, V] of vectors [1, rows, C + R]."""
        latents, rotated = vectors.split([self.keys.shape[2], vectors.shape[-1] - self.keys.shape[2]], -1)
        rotated = rotated.expand(len(self.keys), -1, -1)
        return torch.cat([latents @ self.keys.mT, rotated], -1), latents @ self.values.mT


def attending(backend: Backend, module: nn.Module) -> Backend:
    """Return the back-end as it attends to a module's latents: it takes the module's queries, and returns its values.

    Keys and values that it takes are one tensor of joined latents [tokens, 1, C + R], and so are those of its stores.
    """

    def attend(
        q: Tensor, k: Tensor, v: Tensor, *, batch: Packed, seen: Visibility, store: Store | None = None,
        softmax: Softmax,
    ) -> Tensor:  # fmt: skip
        expansion, q = Expansion.of(module, q), q.transpose(0, 1)
        size = expansion.values.shape[1]
        if size <= q.shape[-1] and (store is None or not batch.past.any()):
            keys, values = expansion.expanded(k.transpose(0, 1))
            values = nn.functional.pad(values, (0, q.shape[-1] - size))  # back-ends have one size of both
            every = Visibility(*(x.expand(len(q), *x.shape[1:]) for x in seen))
            q, keys, values = (x.transpose(0, 1) for x in (q, keys, values))
            return backend.attend(q, keys, values, batch=batch, seen=every, softmax=softmax)[..., :size]
        q = expansion.query(q).transpose(0, 1)
        mixed = backend.attend(q, k, v, batch=batch, seen=seen, store=store, softmax=softmax)
        return expansion.value(mixed.transpose(0, 1)).transpose(0, 1)

    def decode(
        q: Tensor, k: Tensor, v: Tensor, *, batch: Packed, seen: Visibility, store: Store, softmax: Softmax
    ) -> Tensor:
        expansion = Expansion.of(module, q)
        q = expansion.query(q.transpose(0, 1)).transpose(0, 1)
        mixed = backend.decode(q, k, v, batch=batch, seen=seen, store=store, softmax=softmax)
        return expansion.value(mixed.transpose(0, 1)).transpose(0, 1)

    return backend._replace(attend=attend, decode=decode)
