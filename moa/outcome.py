"""Sum up what `moa.compress` found: three numbers, and in words what the budget costs and where it gains."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from moa.diagnosing import Kept, Prospect
from moa.evaluation.interval import paired
from moa.plans.plan import Plan
from moa.resuming import Solved
from moa.search.cost import Costs, Work

LITTLE = 1.02
"""Perplexity against dense up to which a budget costs little."""


def outcome(
    plan: Plan, prospect: Prospect, evaluation: Mapping[str, Any], solved: Solved, costs: Costs | None
) -> dict[str, Any]:
    """Return all figures, in JSON types, as `docs/compress.md` describes them."""
    made = plan.predicted
    assert made is not None  # of a search
    longest, dtype = made.lengths[-1], plan.kv_dtype
    kept = [
        asdict(Kept.of(plan, n))
        | {"kv_bytes": plan.kv_bytes(n, dtype=dtype), "dense_kv_bytes": plan.model.dense_kv_bytes(n, dtype=dtype)}
        for n in made.lengths
    ]
    last = kept[-1]
    return {
        "model": evaluation["model"], "environment": evaluation["environment"], "plan": plan.fingerprint(),
        "memory": {"length": longest, "dtype": dtype, "kv_bytes": last["kv_bytes"],
                   "dense_kv_bytes": last["dense_kv_bytes"], "share": last["memory"]},
        "quality": quality_of(evaluation["rows"]),
        "speed": {"length": longest, "read": last["read"], "prefill": last["prefill"],
                  "times": _times(plan, solved, costs)},
        "kept": kept,
        "gains": {"from": next((run[0] for gains, run in prospect.runs if gains), None), "longest": prospect.longest,
                  "told": prospect.told()},
        "rows": evaluation["rows"],
    }  # fmt: skip


def quality_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the needles of all lengths and tasks, dense's on the same questions, and the worst perplexity.

    Where the plan reads less than it keeps, text was decoded too, and the worst of both counts.
    """
    mine, dense = ([row for row in rows if row["row"] == name] for name in ("plan", "dense"))
    found, base = (
        [answer == "1" for row in of for task in ("single", "four") for answer in row[task]["by_question"]]
        for of in (mine, dense)
    )
    return {
        "questions": len(found), "right": sum(found), "dense_right": sum(base),
        "minus_dense": list(paired(found, base)),
        "perplexity_against_dense": max(
            row[task]["perplexity_against_dense"] for row in mine for task in ("text", "decoded") if task in row
        ),
    }  # fmt: skip


def _times(plan: Plan, solved: Solved, costs: Costs | None) -> list[dict[str, Any]]:
    """Return the plan's milliseconds beside those predicted of the dense model."""
    if costs is None:
        return []
    dense = Plan.dense(plan.model)
    return [
        {**each.model_dump(), "dense": costs.predict(dense, Work(each.kind, each.length, each.batch))}
        for each in solved.times
    ]


def numbers(figures: Mapping[str, Any]) -> list[str]:
    """Return three lines: memory, quality, and speed or what is read."""
    memory, quality, speed = figures["memory"], figures["quality"], figures["speed"]
    mine, dense = (memory[name] / 2**20 for name in ("kv_bytes", "dense_kv_bytes"))
    needles = f"finds {quality['right']} of {quality['questions']} needles, the dense model {quality['dense_right']}"
    if not quality["dense_right"]:
        needles = f"the dense model finds none of {quality['questions']} needles, so they say nothing"
    times = [
        f"{each['kind']} of {each['batch']} x {each['length']:,} tokens {each['predicted']:.1f} ms predicted"
        + ("" if each["measured"] is None else f", {each['measured']:.1f} measured")
        + f", dense {each['dense']:.1f} ms predicted"
        for each in speed["times"]
    ]
    reads = (
        f"a decode step reads {speed['read']:.2f} of the keys at {speed['length']:,} tokens, a prefill computes "
        f"{speed['prefill']:.2f} of attention"
    )
    runs = [
        f"a {'decode step after' if run['kind'] == 'decode' else 'prefill of'} {run['length']:,} tokens took "
        f"{run['plan']:.1f} ms, dense {run['dense']:.1f} ms"
        for run in figures.get("runs") or ()
        if run["plan"] and run["dense"]
    ]
    return [
        f"memory: {mine:,.1f} MiB of keys and values at {memory['length']:,} tokens in {memory['dtype']}, "
        f"{memory['share']:.2f} of the dense model's {dense:,.1f} MiB",
        f"quality: {needles}; perplexity is at most {quality['perplexity_against_dense']:.3f} times dense",
        f"speed: {'; '.join([*(times or [reads]), *runs])}",
    ]


def verdict(figures: Mapping[str, Any]) -> list[str]:
    """Return lines that say from which length on the plan gains, and how much the budget costs."""
    gains, quality = figures["gains"], figures["quality"]
    lines = [gains["told"]]
    if gains["longest"] is not None:
        lines[0] += f"; the model takes texts of up to {gains['longest']:,} tokens"
    if gains["from"] is None:
        lines[0] += "; the budget lets it keep nearly everything, so choose a smaller one"
    _, low, high = quality["minus_dense"]
    if quality["perplexity_against_dense"] > LITTLE:
        lines.append("the budget costs quality: try a larger one, or more minutes for longer and more samples")
    elif not quality["dense_right"]:
        lines.append("the budget costs little perplexity; retrieval is not known")
    elif high < 0:
        lines.append("the budget costs little perplexity, but needles: try a larger one, or more minutes")
    else:
        lines.append(
            f"the budget costs little: fewer needles than dense are not shown ({low:+.2f} to {high:+.2f} of all), so a "
            "smaller one may do"
        )
    return lines
