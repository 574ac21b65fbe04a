"""Summarise the results of single samples as one row of the table."""

from collections.abc import Mapping, Sequence
from typing import Any

from moa.evaluation.samples import Sample
from moa.evaluation.tasks import TASKS
from moa.evaluation.tasks.task import Task
from moa.plans.plan import Plan

KEPT = ("tokens", "row", "density", "KV cache, MiB")
"""Headings of what every row has."""
ONE_CALL = "in_one_call"
"""Key of what a task finds beside its score where a plan reads, if questions come in one call."""


def summarise(
    name: str, plan: Plan, samples: Sequence[Sample], results: Sequence[Any], dense: Sequence[Any], dtype: Any,
    tasks: Mapping[str, Task] = TASKS,
) -> dict[str, Any]:  # fmt: skip
    """Return one row at one length.

    Args:
        name: The row's name.
        plan: The row's plan; `Plan.dense` for the dense model.
        samples: All samples of the length.
        results: The row's result of each sample.
        dense: The dense model's result of each sample.
        dtype: Dtype of the cache.
        tasks: The tasks that the samples belong to.

    Returns:
        The entry of `rows` that `docs/evaluation.md` describes.
    """
    n = samples[0].length
    row: dict[str, Any] = {"length": n, "row": name, "density": plan.density(n), "kv_bytes": plan.kv_bytes(n, 1, dtype)}
    if plan.reads():
        row["read"] = plan.read_density(n)
    cached = [(tasks[s.task].cached(s.content), r) for s, r in zip(samples, results, strict=True) if "cache_bytes" in r]
    if cached:
        tokens, result = max(cached, key=lambda pair: pair[0])
        expected = plan.kv_bytes(tokens, 1, dtype)
        row["cache"] = {"tokens": tokens, "predicted": expected, "allocated": result["cache_bytes"]}
    for task in tasks.values():
        own = [(s.content, r, d) for s, r, d in zip(samples, results, dense, strict=True) if s.task == task.name]
        if own:
            row[task.name] = task.score(*zip(*own, strict=True))
    return row


def table(rows: Sequence[dict[str, Any]], tasks: Mapping[str, Task] = TASKS) -> tuple[list[str], list[list[str]]]:
    """Return the headings and each row's cells: of every task that some row has, `-` where the row itself lacks it."""
    measured = [task for task in tasks.values() if any(task.name in row for row in rows)]
    at_once = {task.name for task in measured if any(ONE_CALL in row.get(task.name, ()) for row in rows)}
    reads = any("read" in row for row in rows)
    found = []
    for row in rows:
        kv_bytes = row["cache"]["allocated"] if "cache" in row else row["kv_bytes"]
        cells = [f"{row['length']:,}", row["row"], f"{row['density']:.3f}", f"{kv_bytes / 2**20:.1f}"]
        if reads:
            cells.insert(3, f"{row.get('read', row['density']):.3f}")
        for task in measured:
            cells += task.cells(row[task.name]) if task.name in row else ["-"] * len(task.columns)
            if task.name in at_once:
                one = row.get(task.name, {}).get(ONE_CALL)
                cells.append(f"{one['rate']:.2f}" if one else "-")
        found.append(cells)
    headings = [*KEPT[:3], "read", *KEPT[3:]] if reads else [*KEPT]
    for task in measured:
        headings += [*task.columns, *([f"{task.columns[0]}, asked in one call"] if task.name in at_once else [])]
    return headings, found
