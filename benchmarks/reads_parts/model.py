"""Run a model whose rows read what a selector chooses; capture its attention where rows read everything."""

from collections.abc import Sequence
from typing import Any

import torch
from reads_parts.selection import Selector, choose
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache

NAME = "reads_selection"


class Reader:
    """The attention function; its rows read everything while `selector` is None."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.selector: Selector | None = None
        self.read = 1.0
        self.shares: list[float] = []
        self.record: list[tuple[Tensor, Tensor, Tensor]] | None = None
        AttentionInterface.register(NAME, self.attend)
        AttentionMaskInterface.register(NAME, lambda *_, **__: None)
        model.set_attn_implementation(NAME)

    def attend(
        self, module: Any, query: Tensor, key: Tensor, value: Tensor, _: Any, scaling: float, **__: Any
    ) -> tuple[Tensor, None]:
        """Attend as transformers calls it: query [1, heads, rows, D], key and value [1, kv_heads, n, D]."""
        groups, (rows, size), n = key.shape[1], query.shape[2:], key.shape[2]
        q = query[0].unflatten(0, (groups, -1))
        if self.record is not None:
            self.record.append((q.transpose(1, 2) * scaling, key[0], value[0]))
        mask = torch.arange(n) <= torch.arange(n - rows, n)[:, None]
        if self.selector is not None and module.layer_idx >= self.selector.whole:
            lengths = torch.arange(n - rows, n) + 1
            chosen, share = choose(self.selector, q.transpose(1, 2) * scaling, key[0], lengths, self.read)
            mask = chosen[:, None]
            self.shares.append(float(share.mean()))
        elif self.selector is not None:
            self.shares.append(1.0)
        if rows == n:
            k, v = (x[0, :, None].expand(-1, q.shape[1], -1, -1).flatten(0, 1)[None] for x in (key, value))
            out = scaled_dot_product_attention(query, k, v, is_causal=True, scale=scaling)
        else:
            logits = (q.flatten(1, 2) @ key[0].mT * scaling).unflatten(1, (-1, rows)).masked_fill(~mask, -torch.inf)
            out = (logits.softmax(-1).flatten(1, 2) @ value[0]).view(1, -1, rows, size)
        return out.transpose(1, 2), None

    def text(self, ids: Sequence[int]) -> DynamicCache:
        """Return the cache of a text, read whole."""
        self.selector = None
        cache = DynamicCache(config=self.model.config)
        self.model(torch.tensor([ids]), past_key_values=cache, use_cache=True, logits_to_keep=1)
        return cache

    def rows(self, cache: DynamicCache, ids: Sequence[int], selector: Selector | None, read: float = 1.0) -> Tensor:
        """Return log-probabilities [rows, vocabulary] behind each of `ids`, which the cache forgets again."""
        self.selector, self.read, self.shares = selector, read, []
        found = self.model(torch.tensor([ids]), past_key_values=cache, use_cache=True).logits[0]
        cache.crop(-len(ids))
        return found.log_softmax(-1)
