"""Measure the copy score of retrieval heads: how often a head attends to the very token that the model repeats next.

The score is that of Wu et al., arXiv 2404.15574, section 2: while the model answers from a needle, a head copies a
token when the key that it attends to most lies in the needle and holds that token; its score is the share of the
needle's tokens that it copies.
Here answers are given, not generated, so that one forward pass over a calibration sample holds all its answers, and the
share is of the answers' tokens that occur in their needle, the statement asked about.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import pad

from moa.plans.span import BLOCK, Ints
from moa.profiler.calibration import Sample


class Copies:
    """The answer tokens that each query head copies in one forward pass over a sample.

    Attributes:
        tokens: Number of answer tokens that can be copied: those that occur in their needle.
        copied: Tokens copied: layer index to int64 [kv_heads, query heads of each], on the CPU.
    """

    def __init__(self, sample: Sample) -> None:
        answers = [
            (i - 1, sample.ids[i], start, stop)  # the row before a token is the one that predicts it
            for i, (start, stop) in zip(sample.response, sample.needles, strict=False)  # no needles: nothing is asked
            if sample.ids[i] in sample.ids[start:stop]
        ]
        self.tokens = len(answers)
        self.copied: dict[int, Tensor] = {}
        self._ids = torch.tensor(sample.ids)
        self._answers = torch.tensor(answers, dtype=torch.int64).reshape(-1, 4)

    @torch.no_grad()
    def __call__(self, layer: int, q: Tensor, k: Tensor) -> None:
        """Count the tokens copied in one layer, for `BLOCK` answer rows at a time.

        Args:
            layer: Layer index.
            q: Queries after position encoding [query_heads, N, D].
            k: Keys after position encoding [kv_heads, N, D].
        """
        if layer in self.copied:  # checkpointing runs every layer again in the backward pass
            return
        ids, keys = self._ids.to(q.device), k.float()
        copied = torch.zeros(len(q), dtype=torch.int64, device=q.device)
        for part in self._answers.to(q.device).split(BLOCK):
            rows, token, start, stop = part.unbind(1)
            heads = q[:, rows].float().unflatten(0, (len(k), -1))
            scores = torch.einsum("hgrd,hnd->hgrn", heads, keys)
            later = torch.arange(len(ids), device=q.device) > rows[:, None]
            top = scores.masked_fill_(later, -torch.inf).argmax(-1).flatten(0, 1)  # softmax keeps the order
            copied += ((top >= start) & (top < stop) & (ids[top] == token)).sum(1)
        self.copied[layer] = copied.unflatten(0, (len(k), -1)).cpu()

    def table(self, sources: Mapping[int, int]) -> Ints:
        """Return the tokens copied: int64 [layers, query_heads], layers ascending, the heads of a KV head adjacent.

        Args:
            sources: The layer whose keys each layer reads. Query heads of all layers that read the same keys are in one
                row; shorter rows have further heads that copied nothing.
        """
        rows: dict[int, list[Tensor]] = {}
        for layer, copied in sorted(self.copied.items()):
            rows.setdefault(sources[layer], []).append(copied)
        joined = [torch.cat(copied, 1) for _, copied in sorted(rows.items())]
        most = max(len(x.T) for x in joined)
        counts: Ints = torch.stack([pad(x, (0, most - len(x.T))).flatten() for x in joined]).numpy()
        return counts


def scores(samples: Sequence[tuple[Ints, int]], kv_heads: int) -> tuple[npt.NDArray[np.float32], int]:
    """Return the copy score of every KV group: that of its best query head, for which the group must hold its keys.

    Args:
        samples: For each sample, the tokens copied [layers, query_heads] and the tokens that could be.
        kv_heads: KV heads per layer.

    Returns:
        float32 [layers, kv_heads], and the tokens that could be copied in all samples.
    """
    tokens = sum(count for _, count in samples)
    copied = np.sum([table for table, _ in samples], axis=0)
    best = copied.reshape(len(copied), kv_heads, -1).max(2)
    return (best / tokens).astype(np.float32), tokens
