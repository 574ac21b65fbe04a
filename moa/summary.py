"""From the results of single samples to one row of the table."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from moa.haystack import Haystack
from moa.interval import paired, wilson
from moa.plans.plan import Plan

if TYPE_CHECKING:
    from moa.comparison import Sample

DEPTHS = 5
"""Retrieval by depth is reported in fifths of the text."""

COLUMNS = ("tokens", "row", "density", "KV cache, MiB", "perplexity", "KL, nats", "one needle", "four needles")


def summarise(
    name: str, plan: Plan, samples: Sequence["Sample"], results: Sequence[Any], dense: Sequence[Any], dtype: Any
) -> dict[str, Any]:
    """One row at one length.

    Args:
        name: The row's.
        plan: The row's; `Plan.dense` for the dense model.
        samples: All samples of the length.
        results: The row's result of each.
        dense: The dense model's result of each.
        dtype: Of the cache.

    Returns:
        The entry of `rows` that `docs/evaluation.md` describes.
    """
    n = samples[0].length
    row: dict[str, Any] = {"length": n, "row": name, "density": plan.density(n), "kv_bytes": plan.kv_bytes(n, 1, dtype)}
    cached = [(len(s.content.ids), r) for s, r in zip(samples, results, strict=True) if isinstance(s.content, Haystack)]
    if cached:
        tokens, result = max(cached, key=lambda pair: pair[0])
        expected = plan.kv_bytes(tokens, 1, dtype)
        row["cache"] = {"tokens": tokens, "predicted": expected, "allocated": result["cache_bytes"]}
    text = [(r, d) for s, r, d in zip(samples, results, dense, strict=True) if s.task == "text"]
    if text:
        row["text"] = _text([r for r, _ in text], [d for _, d in text])
    for task in ("single", "four"):
        own = [(s, r, d) for s, r, d in zip(samples, results, dense, strict=True) if s.task == task]
        if own:
            row[task] = _retrieval(*zip(*own, strict=True))
    return row


def _text(results: Sequence[Any], dense: Sequence[Any]) -> dict[str, Any]:
    """Perplexity and KL over all windows, by quarter of the window besides; every quarter has the same weight."""
    nll, kl = (np.array([r[measure] for r in results]).mean(0) for measure in ("nll", "kl"))
    base = np.array([r["nll"] for r in dense]).mean()
    return {
        "windows": len(results),
        "perplexity": math.exp(nll.mean()),
        "perplexity_against_dense": math.exp(nll.mean() - base),
        "kl": float(kl.mean()),
        "perplexity_by_quarter": np.exp(nll).tolist(),
        "kl_by_quarter": kl.tolist(),
    }


def _retrieval(samples: Sequence["Sample"], results: Sequence[Any], dense: Sequence[Any]) -> dict[str, Any]:
    """Return right answers, also by question and depth, with 95 % intervals; `kept` is the part of dense's rate."""
    right = [ok for r in results for ok in r["right"]]
    base = [ok for r in dense for ok in r["right"]]
    depths = [q.depth for s in samples if isinstance(s.content, Haystack) for q in s.content.questions]
    by_depth = [[ok for ok, d in zip(right, depths, strict=True) if int(d * DEPTHS) == i] for i in range(DEPTHS)]
    low, high = wilson(sum(right), len(right))
    difference = paired(right, base)
    return {
        "right": sum(right),
        "questions": len(right),
        "rate": sum(right) / len(right),
        "interval": [low, high],
        "minus_dense": list(difference),
        "kept": sum(right) / sum(base) if any(base) else None,
        "by_question": "".join(str(int(ok)) for ok in right),
        "by_depth": [{"right": sum(group), "questions": len(group)} for group in by_depth],
    }


def cells(row: dict[str, Any]) -> list[str]:
    """Return one row's cells under COLUMNS: rates with their 95 % intervals, `-` for what was not measured."""
    text = row.get("text")
    rates = [
        f"{r['rate']:.2f} ({r['interval'][0]:.2f} to {r['interval'][1]:.2f})" if (r := row.get(task)) else "-"
        for task in ("single", "four")
    ]
    held = row["cache"]["allocated"] if "cache" in row else row["kv_bytes"]
    return [
        f"{row['length']:,}", row["row"], f"{row['density']:.3f}", f"{held / 2**20:.1f}",
        f"{text['perplexity']:.3f}" if text else "-", f"{text['kl']:.4f}" if text else "-", *rates,
    ]  # fmt: skip
