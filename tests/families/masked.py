"""An oracle apart from the runtime: the model's own attention with the mask of each head written out from the plan."""

import copy
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from moa.plans.plan import Plan
from moa.plans.reading import choices, fetched, opened
from moa.runtime.attention import NAME


class Pages:
    """Pages of 16 and of 4 keys of one group [n, D] and what rows choose of them, from the definition's words."""

    def __init__(self, keys: np.ndarray) -> None:
        size = keys.shape[1]
        self.slow = [*range(size // 4, size // 2), *range(3 * size // 4, size)]
        self.size, x = size, keys[:, self.slow].astype(np.float32)
        self.coarse, self.fine = (
            self._summarised(x[: len(x) // p * p].reshape(-1, p, len(self.slow))) for p in (16, 4)
        )

    @staticmethod
    def _summarised(pages: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The means in 4 bits [pages, channels] and the spreads [pages] of pages [pages, keys, channels]."""

        def fours(x: np.ndarray) -> np.ndarray:
            parts = [((x[:, i] + x[:, i + 1]) + x[:, i + 2]) + x[:, i + 3] for i in range(0, x.shape[1], 4)]
            return parts[0] if len(parts) == 1 else fours(np.stack(parts, 1))

        def bfloat16(x: np.ndarray) -> np.ndarray:
            return torch.from_numpy(x).bfloat16().float().numpy()

        count = np.float32(pages.shape[1])
        mean = fours(pages) / count
        square = fours((pages - mean[:, None]) ** 2)
        while square.shape[1] % 2 == 0:
            half = square.shape[1] // 2
            square = square[:, :half] + square[:, half:]
        total = square[:, 0]
        for i in range(1, square.shape[1]):
            total = total + square[:, i]
        scale = bfloat16(np.maximum(np.abs(mean).max(1) / np.float32(7), np.float32(2.0**-60)))
        number = np.rint(mean / scale[:, None]).clip(-7, 7)
        return number.astype(float) * scale[:, None], bfloat16(np.sqrt(total / count)).astype(float)

    def chosen(self, q: np.ndarray, seen: np.ndarray, rule) -> np.ndarray:
        """Which keys the newest row that sees `seen` [n] reads, by its queries [heads, D] times the scale."""
        at = np.flatnonzero(seen)  # the sink's keys, then those of the window
        n, kept = int(at[-1]) + 1, len(at)
        given = rule.sink if rule.moves_keys() else 16
        among, count = int(choices(kept, given)), int(fetched(int(256 * rule.read), n, kept, given, self.size))
        if count == 4 * among:
            return seen
        coarse = at[given : given + 16 * among : 16] // 16
        read = seen.copy()
        read[at[given : given + 16 * among]] = False
        if count:
            open_ = coarse[_best(self._scores(q, self.coarse, coarse), int(opened(count, among)))]
            fine = (4 * open_[:, None] + np.arange(4)).ravel()
            for page in fine[_best(self._scores(q, self.fine, fine), count)]:
                read[4 * page : 4 * page + 4] = True
        return read

    def _scores(self, q: np.ndarray, summaries: tuple[np.ndarray, np.ndarray], pages: np.ndarray) -> np.ndarray:
        slow, (mean, spread) = q[:, self.slow], summaries
        return slow @ mean[pages].T + 0.5 * np.linalg.norm(slow, axis=1, keepdims=True) * spread[pages]


def _best(scores: np.ndarray, count: int) -> list[int]:
    """The pages of greatest sum of their heads' softmax [heads, pages], in order; of equal ones the first."""
    weight = np.exp(np.maximum(scores - scores.max(1, keepdims=True), -80))
    total = (weight / weight.sum(1, keepdims=True)).sum(0)
    return sorted(sorted(range(len(total)), key=lambda i: (-total[i], i))[:count])


def _oracle_attention(plan, reads, module, query, key, value, mask, scaling=None, **kwargs):
    """Full attention with the mask of each head written out from `Plan.spans`; one unpadded text, no cache."""
    layer, n = module.layer_idx, query.shape[2]
    heads = query.shape[1] // key.shape[1]
    if layer in plan.model.ruled_layers:
        spans = np.stack([plan.spans(i + 1)[layer] for i in range(n)])  # [n, kv_heads]
        sink = np.array([plan.rule(layer, head).sink for head in range(key.shape[1])])
        i, j = np.arange(n)[:, None, None], np.arange(n)[None, :, None]
        whole = spans[:, None] == i + 1
        in_sink = np.broadcast_to(j < sink, (n, n, len(sink))).copy()
        for group in np.flatnonzero([rule.moves_keys() for rule in plan.groups[layer]]):
            edges = np.arange(n) + 1 - (spans[:, group] - sink[group])  # first key of the window
            in_sink[:, :, group] = _held(key[0, group].float(), int(sink[group]))[np.clip(edges, 0, n)]
        seen = (j <= i) & (whole | in_sink | (j > i - (spans[:, None] - sink)))
        for group, rule in enumerate(plan.groups[layer]):
            if rule.read < 1:
                pages = Pages(key[0, group].numpy())
                own = query[0, group * heads : (group + 1) * heads].numpy() * scaling
                for row in np.flatnonzero(reads):
                    seen[row, :, group] = pages.chosen(own[:, row], seen[row, :, group], rule)
        mask = torch.from_numpy(seen).permute(2, 0, 1).repeat_interleave(heads, 0)[None]
    key, value = (x.repeat_interleave(heads, 1) for x in (key, value))
    causal = mask is None
    out = scaled_dot_product_attention(query, key, value, mask, is_causal=causal, scale=scaling)
    return out.transpose(1, 2), None


def _held(k: Tensor, sink: int) -> np.ndarray:
    """What a keydiff sink holds of one group's keys [n, D] when the window starts at an edge: bool [n + 1, n]."""
    n, size = k.shape
    slow = [i for i in range(size) if i % (size // 2) >= size // 4]
    unit = k[:, slow] / k[:, slow].norm(dim=-1, keepdim=True)
    score = np.full(n, -np.inf)
    for block in range(n // 64):
        here = slice(64 * block, 64 * block + 64)
        mean = unit[here].mean(0)
        score[here] = -(unit[here] @ mean / mean.norm()).numpy()
    score[:4] = np.inf
    held = np.zeros((n + 1, n), bool)
    for edge in range(64, n + 1, 64):
        held[edge, sorted(range(edge), key=lambda j: (-score[j], j))[:sink]] = True
    return held


def run_oracle(model, plan: Plan, ids: Tensor, reads: np.ndarray | None = None) -> Tensor:
    """Logits [len(ids), vocabulary] of one text under `plan`; of a model under a plan, a copy without it is asked.

    The tokens that `reads` names, bool [len(ids)], read what their rules say; the others all that is kept.
    """
    if model.config._attn_implementation == NAME:
        model = copy.deepcopy(model)
        for module in model.modules():
            module._forward_pre_hooks.clear()
    AttentionInterface.register(
        "oracle", partial(_oracle_attention, plan, np.zeros(len(ids), bool) if reads is None else reads)
    )
    AttentionMaskInterface.register("oracle", sdpa_mask)
    before = model.config._attn_implementation
    model.set_attn_implementation("oracle")
    try:
        with torch.no_grad():
            return model(ids[None], use_cache=False).logits[0]
    finally:
        model.set_attn_implementation(before)
