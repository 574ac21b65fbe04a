"""List the selectors that are tried, by name, a question at a time."""

from dataclasses import replace
from itertools import product

from reads_parts.selection import Selector, Summary

FLOOR = {"sink": 8, "recent": 16}
MEAN = Selector(Summary(8, "mean", bits=4, scale="centred"), **FLOOR)
SPREAD = Selector(Summary(8, "spread", 0.5, 8), **FLOOR)
QUEST = Selector(Summary(16, "bounds"), group="max", **FLOOR)
UNIQUE = Selector(Summary(8, "norm", 0.5), group="max", **FLOOR)

Stage = dict[str, Selector]


def _floors() -> Stage:
    """Return selectors that differ in the keys that are always fetched."""
    sizes = product((("mean", MEAN), ("spread", SPREAD)), (0, 8, 16, 32, 64), (8, 16, 32, 64))
    return {f"{name}, sink {s}, recent {r}": replace(of, sink=s, recent=r) for (name, of), s, r in sizes}


def _kinds() -> Stage:
    """Return pages and scores, with free summaries in full precision, to see which one ranks best."""
    kinds = [("truth", 0.0), ("bounds", 0.0), ("mean", 0.0), ("spread", 0.25), ("spread", 0.5), ("spread", 1.0)]
    kinds += [("norm", 0.5), ("norm", 1.0), ("cumulant", 0.25), ("cumulant", 0.5)]
    return {
        f"page {page}, {kind}" + (f" {c:g}" if c else ""): Selector(Summary(page, kind, c), free=True, **FLOOR)
        for page, (kind, c) in product((4, 8, 16), kinds)
    }


def _bits() -> Stage:
    """Return pages, scores and bits, at what they cost."""
    tried = [
        ("mean", 16, "page"),
        ("mean", 8, "page"),
        *(("mean", 4, s) for s in ("page", "centred", "rotated", "channel")),
    ]
    tried += [("mean", 2, "centred"), ("mean", 2, "rotated"), ("norm", 8, "page"), ("norm", 4, "centred")]
    tried += [("spread", 8, "page"), ("spread", 4, "centred"), ("cumulant", 4, "centred")]
    found = {"Quest": QUEST, "UNIQUE": UNIQUE}
    for page, (kind, bits, scale) in product((4, 8, 16), tried):
        summary = Summary(page, kind, 0.5, bits, scale)
        found[f"page {page}, {kind}, {bits} bits, {scale}"] = Selector(summary, **FLOOR)
    return found


def _channels() -> Stage:
    """Return selectors of fewer channels, and of few bits of every key."""
    found = {}
    for page, channels in product((4, 8), ("slow 48", "slow 32", "widest 32", "pca 32", "pca 16")):
        summary = Summary(page, "mean", 0.0, 4, "centred", channels)
        found[f"page {page}, mean, 4 bits, {channels}"] = Selector(summary, **FLOOR)
    for bits, channels in ((1, "all"), (2, "slow 32"), (4, "pca 16"), (2, "pca 32")):
        summary = Summary(1, "mean", 0.0, bits, "channel", channels)
        found[f"page 4, each key, {bits} bits, {channels}"] = Selector(summary, page=4, **FLOOR)
    return found


def two(coarse: int, kind: str, fine: int, opened: float) -> Selector:
    """Return a selector of two levels at 4 bits."""
    below = Summary(fine, "mean", 0.0, 4, "centred")
    return Selector(below, coarse=Summary(coarse, kind, 0.5, 4, "centred"), open=opened, **FLOOR)


def _levels() -> Stage:
    """Return selectors of two levels, and of pages with several summaries."""
    found = {}
    for coarse, kind, fine, opened in product((16, 32), ("mean", "spread"), (4,), (2, 4, 8)):
        found[f"{coarse}, {kind}; {fine}, opens {opened}"] = two(coarse, kind, fine, opened)
    for coarse, kind in (("32", "mean"), ("32", "spread")):
        found[f"{coarse}, {kind}; 8, opens 4"] = two(int(coarse), kind, 8, 4)
    for page, fine in ((16, 4), (16, 8), (8, 4)):
        found[f"page {page} by its best {fine}"] = replace(of_page(fine), page=page)
    return found


def of_page(page: int, **changes: object) -> Selector:
    """Return a selector of one level of means at 4 bits."""
    return replace(MEAN, fine=replace(MEAN.fine, page=page), **changes)


def _rules() -> Stage:
    """Return selectors that differ in how groups and steps share a choice."""
    found = {f"{g}": replace(MEAN, group=g) for g in ("softmax sum", "softmax max", "sum", "max")}
    for page, every in product((4, 8), (2, 4, 8)):
        found[f"page {page}, every {every} rows"] = of_page(page, every=every)
    return found


def _mixed() -> Stage:
    """Return the selectors that earlier answers suggest."""
    found = {}
    for page, c in product((4, 8), (0.25, 0.5, 1.0)):
        found[f"page {page}, norm {c:g}, 4 bits, page"] = Selector(Summary(page, "norm", c, 4), **FLOOR)
    for page, slow, c in ((4, 32, 0.5), (4, 48, 0.5), (8, 32, 0.5), (8, 32, 1.0), (8, 48, 1.0)):
        summary = Summary(page, "spread", c, 4, "page", f"slow {slow}")
        found[f"page {page}, spread {c:g}, 4 bits, slow {slow}"] = Selector(summary, **FLOOR)
    for page, c in ((8, 1.0), (16, 1.0)):
        found[f"page {page}, spread {c:g}, 4 bits"] = Selector(Summary(page, "spread", c, 4), **FLOOR)
    norms = {page: Summary(page, "norm", 0.5, 4) for page in (4, 8, 16, 32)}
    for coarse, fine, opened in ((16, 4, 4), (32, 4, 4), (32, 8, 4)):
        found[f"{coarse}, norm; {fine}, norm, opens {opened}"] = Selector(
            norms[fine], coarse=norms[coarse], open=opened, **FLOOR
        )
    spread, each = Summary(4, "spread", 0.5, 4), Summary(1, "mean", 0.0, 2, "channel", "slow 32")
    pair = Summary(2, "mean", 0.0, 4, "page", "slow 32")
    for coarse in (16, 32):
        found[f"{coarse}, norm; 4, spread, opens 4"] = Selector(spread, coarse=norms[coarse], open=4, **FLOOR)
        found[f"{coarse}, norm; each key, opens 4"] = Selector(each, 4, norms[coarse], 4, **FLOOR)
    found["page 8, each key, 2 bits, slow 32"] = Selector(each, 8, **FLOOR)
    found["page 4, each two keys, 4 bits, slow 32"] = Selector(pair, 4, **FLOOR)
    found["page 8, each four keys, norm, 4 bits"] = Selector(norms[4], 8, **FLOOR)
    return found


def half(page: int, coarse: int = 0, opened: float = 4, fetch: int = 0, **changes: object) -> Selector:
    """Return `norm`'s selector of the slow half of the channels; summaries of less than `fetch` keys are means."""
    kind, c = ("norm", 0.5) if not fetch or page == fetch else ("mean", 0.0)
    above = Summary(coarse, "norm", 0.5, 4, "page", "slow 32") if coarse else None
    selector = Selector(Summary(page, kind, c, 4, "page", "slow 32"), fetch, above, opened, **FLOOR)
    return replace(selector, **changes)


def _halves() -> Stage:
    """Return selectors of the slow half of the channels in all levels."""
    found = {f"page {page}, norm, slow 32": half(page) for page in (4, 8)}
    found["page 4, each key, slow 32"] = half(1, fetch=4)
    for coarse, opened in ((16, 4), (16, 8), (8, 4)):
        found[f"{coarse}; 4, opens {opened}"] = half(4, coarse, opened)
        found[f"{coarse}; 4 by its best two keys, opens {opened}"] = half(2, coarse, opened, 4)
    found["16; 4 by its best key, opens 4"] = half(1, 16, 4, 4)
    found["8; 4 by its best key, opens 4"] = half(1, 8, 4, 4)
    found["16; 4 by its best key, opens 8"] = half(1, 16, 8, 4)
    found["16; 2, opens 8"] = half(2, 16, 8)
    found["16; 4 by its best two keys, opens 16"] = half(2, 16, 16, 4)
    found["16; 4 by its best two keys, opens 8, softmax max"] = half(2, 16, 8, 4, group="softmax max")
    found["16; 4 by its best two keys, opens 8, sum"] = half(2, 16, 8, 4, group="sum")
    return found


STAGES = {
    "halves": _halves,
    "mixed": _mixed,
    "floors": _floors, "kinds": _kinds, "bits": _bits, "channels": _channels, "levels": _levels, "rules": _rules
}  # fmt: skip


def norm(page: int, coarse: int = 0, **changes: object) -> Selector:
    """Return a selector of mean and length of the deviation at 4 bits, on one level or two."""
    below = Summary(coarse, "norm", 0.5, 4) if coarse else None
    return replace(Selector(Summary(page, "norm", 0.5, 4), coarse=below, **FLOOR), **changes)


REFERENCES: Stage = {
    "Quest: page 16, bounds, 16 bits": QUEST,
    "UNIQUE: page 8, norm, 16 bits": UNIQUE,
    "page 8, mean, 4 bits": MEAN,
    "page 8, norm, 4 bits": norm(8),
    "page 4, norm, 4 bits": norm(4),
    "page 4 by its best two keys, 4 bits, slow 32": half(2, fetch=4),
    "16 then 4, opens 4, norm, 4 bits": norm(4, 16),
    "the same, sink 64, recent 32": norm(4, 16, sink=64, recent=32),
    "the same, softmax max": norm(4, 16, group="softmax max"),
    "page 4, truth": Selector(Summary(4, "truth"), **FLOOR),
}
"""Selectors that are asked about the first texts only."""
FINALISTS: Stage = {
    "16 then 2, opens 8, norm, 4 bits, slow 32": half(2, 16, 8),
    "16 then 4, opens 8, norm, 4 bits, slow 32": half(4, 16, 8),
    "16 then 4 by its best two keys, opens 8, 4 bits, slow 32": half(2, 16, 8, 4),
    "page 4, norm, 4 bits, slow 32": half(4),
}
LENGTHS = {stage: (2048, 4096) if stage in ("halves", "mixed", "floors") else (2048,) for stage in STAGES}
"""Lengths of the texts on which a stage's attention is measured."""
