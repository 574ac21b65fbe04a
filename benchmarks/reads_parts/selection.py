"""Select pages by the query, in plain PyTorch: what a summary holds and costs, how a page is scored and chosen.

Sizes are in tokens; bytes are those of a store in bfloat16. G is (layer, KV head), R are rows, H the query heads of a
group, D the head size.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from scipy.linalg import hadamard
from torch import Tensor

KEY = 2
"""Bytes of a channel of a key, a value, or a scale."""
KNOWN = 256
"""Keys after the sink from which what a whole group shares (centre, scales, channels) is taken."""


@dataclass(frozen=True)
class Summary:
    """The summary that is stored of `page` keys.

    Attributes:
        page: Keys that it covers.
        kind: `mean`; `bounds` (least and greatest of each channel); `spread` (mean and standard deviation of each
            channel); `norm` (mean, and the length of the vector of deviations); `cumulant` (as `spread`, scored by
            the variance);
            `truth` (the page's attention itself, which no summary can know).
        c: Weight of the deviation.
        bits: Bits of each number; below 16 there is also a scale.
        scale: `page` (each vector has one), `centred` (of the difference to the group's centre), `rotated` (`centred`
            behind a Hadamard rotation), `channel` (no scale is stored: each channel has one for the whole group).
        channels: `all`; `slow N`: the slowest N channels by rotary pairs; `widest N`: those of greatest variance;
            `pca N`: the first principal components.
    """

    page: int = 8
    kind: str = "spread"
    c: float = 0.5
    bits: int = 16
    scale: str = "page"
    channels: str = "all"

    def nbytes(self, head_size: int) -> float:
        """Return the bytes of one summary."""
        if self.kind == "truth":
            return 0.0
        count = head_size if self.channels == "all" else int(self.channels.split()[1])
        scale = KEY if self.bits < 16 and self.scale != "channel" else 0
        vectors = 1 if self.kind in ("mean", "norm") else 2
        return vectors * (count * self.bits / 8 + scale) + KEY * (self.kind == "norm")


@dataclass(frozen=True)
class Selector:
    """How a row chooses among full pages.

    Attributes:
        fine: The summary; pages of several summaries have the score of their best.
        page: Keys that are fetched together; the summary's own by default.
        coarse: Summary of a first level, None for one level.
        open: Pages whose fine summary is read for each page to be fetched, with two levels.
        group: `max` or `sum` of the query heads' scores; `softmax max` or `softmax sum`: of their softmax over pages.
        every: Rows that share a choice.
        sink: First keys always fetched; rounded up to whole pages.
        recent: Newest keys of full pages always fetched, beside the unfinished page.
        whole: First layers that read everything.
        free: Whether summaries are counted as nothing, as in some of the literature.
    """

    fine: Summary = Summary()
    page: int = 0
    coarse: Summary | None = None
    open: float = 4
    group: str = "softmax sum"
    every: int = 1
    sink: int = 64
    recent: int = 32
    whole: int = 0
    free: bool = False


class Budget(NamedTuple):
    """A row's reading, all int64 [R] but `share`."""

    first: Tensor
    last: Tensor
    """Candidates are pages first to last - 1."""
    pages: Tensor
    """Pages chosen among them."""
    opened: Tensor
    """Pages whose fine summary is read."""
    share: Tensor
    """Bytes read, summaries included, over those of all keys and values."""


def budget(selector: Selector, lengths: Tensor, read: float, head_size: int) -> Budget:
    """Return the bytes that rows of these lengths [R] may fetch: the share `read` of their keys' and values' bytes."""
    page = selector.page or selector.fine.page
    token = 2 * head_size * KEY
    full = lengths // page
    first = torch.full_like(full, -(-selector.sink // page)).minimum(full)
    last = (full - -(-selector.recent // page)).maximum(first)
    floor = (lengths - page * (last - first)) * token
    fine = 0.0 if selector.free else selector.fine.nbytes(head_size) * page / selector.fine.page / selector.every
    left = read * lengths * token - floor
    if selector.coarse is None:
        summaries = (last - first) * fine
        pages = ((left - summaries) / (page * token)).floor()
        opened = last - first
    else:
        ratio = selector.coarse.page // page
        summaries = (last - first) * selector.coarse.nbytes(head_size) / ratio / selector.every
        pages = ((left - summaries) / (page * token + selector.open * fine)).floor()
        opened = (ratio * (selector.open * pages / ratio).ceil()).long().minimum(last - first)
        summaries = summaries + opened * fine
    pages = pages.long().clamp(min=0).minimum(last - first)
    spent = floor + torch.where(pages > 0, pages * page * token + summaries, 0.0)
    return Budget(first, last, pages, opened, spent / (lengths * token))


def choose(selector: Selector, q: Tensor, keys: Tensor, lengths: Tensor, read: float) -> tuple[Tensor, Tensor]:
    """Return which keys each row fetches, bool [G, R, n], and the share of bytes it reads [R].

    Args:
        q: Queries [G, R, H, D], scaled.
        keys: [G, n, D].
        lengths: int64 [R]: keys that each row may see.
        read: Share of the bytes.
    """
    page = selector.page or selector.fine.page
    given = budget(selector, lengths, read, q.shape[-1])
    place = torch.arange(keys.shape[1] // page)
    candidate = (place >= given.first[:, None]) & (place < given.last[:, None])
    share, at = given.share, torch.arange(keys.shape[1])
    floor = at < lengths[:, None]
    floor[:, : len(place) * page] &= ~candidate.repeat_interleave(page, -1)
    if selector.every > 1:
        asked = torch.arange(len(lengths)) // selector.every * selector.every
        q, candidate, given = q[:, asked], candidate[asked], Budget(*(x[asked] for x in given))
    allowed = candidate.expand(len(q), -1, -1)
    if selector.coarse is not None:
        ratio = selector.coarse.page // page
        heads = score(q, keys, selector.coarse, selector.sink)
        inside = candidate[:, : heads.shape[-1] * ratio].unflatten(-1, (-1, ratio)).any(-1)
        ranked = best(merge(heads, inside, selector.group), inside, -(-given.opened // ratio))
        opened = torch.ones_like(allowed)  # pages behind the last coarse one are all scored
        opened[..., : heads.shape[-1] * ratio] = ranked.repeat_interleave(ratio, -1)
        allowed = allowed & opened
    heads = score(q, keys, selector.fine, selector.sink)
    ratio = page // selector.fine.page
    heads = heads[..., : len(place) * ratio].unflatten(-1, (-1, ratio)).amax(-1)
    chosen = best(merge(heads, allowed, selector.group), allowed, given.pages).repeat_interleave(page, -1)
    fetched = floor.expand(len(q), -1, -1).clone()
    fetched[..., : chosen.shape[-1]] |= chosen
    return fetched, share


def merge(heads: Tensor, candidate: Tensor, rule: str) -> Tensor:
    """Return one score per page [G, R, pages] from those of the heads [G, R, H, pages]."""
    if rule.startswith("softmax"):
        heads = heads.masked_fill(~candidate.unsqueeze(-2), -torch.inf).softmax(-1)
    return heads.amax(-2) if rule.endswith("max") else heads.sum(-2)


def best(scores: Tensor, candidate: Tensor, counts: Tensor) -> Tensor:
    """Return the `counts` [R] candidates of greatest score, as bool [G, R, pages]."""
    most = min(int(counts.max()), scores.shape[-1])
    top = scores.masked_fill(~candidate, -torch.inf).topk(most, -1).indices
    taken = torch.zeros_like(scores, dtype=torch.bool)
    taken.scatter_(-1, top, (torch.arange(most) < counts[:, None]).expand(top.shape))
    return taken & candidate


def score(q: Tensor, keys: Tensor, summary: Summary, sink: int) -> Tensor:
    """Return each head's score of every full page: [G, R, H, pages]."""
    if summary.kind == "truth":
        logits = torch.einsum("grhd,gnd->grhn", q, keys[:, : keys.shape[1] // summary.page * summary.page])
        return logits.unflatten(-1, (-1, summary.page)).logsumexp(-1)
    known = keys[:, sink : sink + KNOWN]
    basis = _basis(known, summary)
    if basis is not None:
        q, keys, known = (torch.einsum("g...d,gdc->g...c", x, basis) for x in (q, keys, known))
    pages, first = _paged(keys, summary.page), _paged(known, summary.page)
    mean = _stored(pages.mean(-2), first.mean(-2), summary)
    if summary.kind == "mean":
        return _product(q, mean)
    if summary.kind == "bounds":
        least, most = (_stored(f(pages), f(first), summary) for f in (_least, _most))
        return _product(q.clamp(min=0), most) + _product(q.clamp(max=0), least)
    if summary.kind == "norm":
        deviation = pages.var(-2, correction=0).sum(-1).sqrt()
        return _product(q, mean) + summary.c * q.norm(dim=-1, keepdim=True) * deviation[:, None, None]
    deviation = _stored(pages.std(-2, correction=0), first.std(-2, correction=0), summary, signed=False)
    if summary.kind == "cumulant":
        return _product(q, mean) + summary.c * _product(q * q, deviation * deviation)
    return _product(q, mean) + summary.c * _product(q.abs(), deviation)


def _product(q: Tensor, x: Tensor) -> Tensor:
    return torch.einsum("grhd,gpd->grhp", q, x)


def _least(x: Tensor) -> Tensor:
    return x.amin(-2)


def _most(x: Tensor) -> Tensor:
    return x.amax(-2)


def _paged(x: Tensor, page: int) -> Tensor:
    return x[:, : x.shape[1] // page * page].unflatten(1, (-1, page))


def _basis(known: Tensor, summary: Summary) -> Tensor | None:
    """Return what queries and keys are multiplied by, [G, D, channels]; None keeps all channels as they are."""
    size = known.shape[-1]
    if summary.scale == "rotated":
        return torch.tensor(hadamard(size) / size**0.5, dtype=known.dtype).expand(len(known), -1, -1)
    if summary.channels == "all":
        return None
    how, count = summary.channels.split()
    if how == "slow":
        half = torch.arange(size // 2 - int(count) // 2, size // 2)
        return torch.eye(size)[:, torch.cat([half, half + size // 2])].expand(len(known), -1, -1)
    means = _paged(known, summary.page).mean(-2)
    if how == "widest":
        return torch.eye(size)[means.var(1).topk(int(count)).indices].transpose(1, 2)
    _, _, directions = torch.linalg.svd(means - means.mean(1, keepdim=True), full_matrices=False)
    return directions[:, : int(count)].transpose(1, 2)


def _stored(x: Tensor, first: Tensor, summary: Summary, *, signed: bool = True) -> Tensor:
    """Return vectors [G, pages, channels] as they come back from their bits; `first` are those of the first pages."""
    if summary.bits == 16:
        return x.bfloat16().to(x.dtype)
    centre = first.mean(1, keepdim=True) if signed and summary.scale != "page" else 0.0
    x = x - centre
    steps = 2 ** (summary.bits - signed) - 1
    if summary.scale == "channel":
        widest = (first - centre).abs().amax(1, keepdim=True)
    else:
        widest = x.abs().amax(-1, keepdim=True)
    if summary.bits == 1:
        return centre + x.sign() * x.abs().mean(1 if summary.scale == "channel" else -1, keepdim=True)
    if signed and summary.bits == 2:
        step = widest / 2
        return centre + step * ((x / step).floor().clamp(-2, 1) + 0.5)
    step = (widest / steps).clamp(min=1e-12)
    return centre + step * (x / step).round().clamp(-steps if signed else 0, steps)
