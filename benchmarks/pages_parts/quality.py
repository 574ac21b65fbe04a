"""Write blocks about what plans cost in quality, beside other ways to choose what is kept."""

from collections.abc import Collection, Sequence

from pages_parts.common import Figures, aims_met, claims, listed, percent, table, wrapped

from moa.evaluation import summary
from moa.plans.plan import Plan

HALF, QUARTER, DENSE, UNIFORM = "plan 0.5", "plan 0.25", "dense", "uniform"
TASKS = {"single": "one needle", "four": "four needles"}
ENOUGH = 0.9
"""The least share of what dense finds that counts as nearly all of it."""
METHODS = {
    "exact": "exact search (ours)",
    "first keys": "exact search, sinks of first keys",
    "per-layer": "one rule per layer, exact (pyramid)",
    "two-group": "full heads by retrieval score (DuoAttention's form)",
    "first-order-abs": "exact search over the paper's influence (MoA)",
    "uniform": "uniform window (StreamingLLM)",
}


def main_rows(found: Figures) -> list[tuple[str, Figures]]:
    """Return the rows that every reader wants, with their titles."""
    names = {DENSE: DENSE, HALF: HALF, QUARTER: QUARTER}
    rows = [(names.get(row["row"], f"{UNIFORM} window"), row) for row in found["rows"]]
    return [(name, row) for name, row in rows if row["row"] in names or row["row"].startswith(UNIFORM)]


def kept(found: Figures, name: str) -> list[float]:
    """Return the shares of the dense model's needles that a row finds, over lengths and tasks."""
    every = [row[task]["kept"] for each, row in main_rows(found) if each == name for task in TASKS if task in row]
    return [share for share in every if share is not None]


def worst(found: Figures, name: str) -> float:
    """Return the largest perplexity against dense."""
    return max(row["text"]["perplexity_against_dense"] for each, row in main_rows(found) if each == name)


def sizes(found: Figures) -> str:
    """Return how many texts each figure comes from, by length."""
    parts = []
    for row in (row for name, row in main_rows(found) if name == DENSE):
        counts = [row[task]["questions"] // (4 if task == "four" else 1) for task in TASKS if task in row]
        parts.append(f"{' and '.join(map(str, counts))} at {row['length']:,} tokens")
    return ", ".join(parts)


def meant(density: str, plan: Plan) -> str:
    """Return at which length a density holds, and up to which one the plan was profiled.

    Args:
        density: What holds, in words.
        plan: A plan that a search found; others beside it are for the same lengths.
    """
    assert plan.predicted is not None
    longest, measured = plan.predicted.lengths[-1], plan.predicted.measured_to
    profiled = " and was profiled to" if measured == longest else f", profiled to {measured:,}"
    return f"{density} holds at {longest:,} tokens, the longest text that the plan is for{profiled}"


def effective(rows: Sequence[Figures], tasks: Collection[str] = tuple(TASKS)) -> dict[str, int]:
    """Return the longest measured length up to which each row finds nearly all of what dense finds (`ENOUGH`).

    Args:
        rows: Rows of all lengths, the shortest length first.
        tasks: Kinds of needles; every question about one of them counts once.
    """
    found: dict[str, int] = {}
    lost: set[str] = set()
    for row in rows:
        dense = next(other for other in rows if other["length"] == row["length"] and other["row"] == DENSE)
        asked = [task for task in tasks if task in row]
        if not asked:
            continue
        right, base = (sum(each[task]["right"] for task in asked) for each in (row, dense))
        if right < ENOUGH * base:
            lost.add(row["row"])
        elif row["row"] not in lost:
            found[row["row"]] = row["length"]
    return found


def quality(found: Figures) -> str:
    """Return README's table."""
    lengths = [row["length"] for row in found["rows"]]
    plan = Plan.from_dict(found["plans"][f"{QUARTER} at {lengths[0]}"])
    return "\n\n".join([
        wrapped(
            f"Each plan is one file for all lengths. {meant('Its density', plan)}; of shorter ones it keeps more. "
            "Needles are facts in formats that calibration does not use, hidden "
            f"in held-out text (numbers of texts with one and with four needles: {sizes(found)}); rates have 95 % "
            "intervals. Perplexity and KL divergence from the dense model are measured on other held-out text. The "
            "uniform window keeps as much as plan 0.25, the same in every head."
        ),
        table(*summary.table([{**row, "row": name} for name, row in main_rows(found)])),
        wrapped(
            f"Plan 0.5 finds {percent(*kept(found, HALF))} of the needles that the dense model finds, and plan 0.25 "
            f"finds {percent(*kept(found, QUARTER))}; the uniform window finds "
            f"{percent(*kept(found, f'{UNIFORM} window'))}. Perplexity is at most {worst(found, HALF):.3f} times dense "
            f"under plan 0.5 and {worst(found, QUARTER):.3f} times under plan 0.25. {aims_met(found)}"
        ),
    ])  # fmt: skip


def aims(found: Figures) -> str:
    """Return all rows with their differences from dense, effective context and aims."""
    tasks = {task: title for task, title in TASKS.items() if any(task in row for row in found["rows"])}
    columns = "tokens", "row", "density", "perplexity / dense", *(f"{title}, minus dense" for title in tasks.values())
    rows, form = [], "{:+.2f} ({:+.2f} to {:+.2f})"
    for row in (row for row in found["rows"] if row["row"] != DENSE):
        differences = [form.format(*row[task]["minus_dense"]) if task in row else "-" for task in tasks]
        against = f"{row['text']['perplexity_against_dense']:.3f}" if "text" in row else "-"
        rows.append([f"{row['length']:,}", row["row"], f"{row['density']:.2f}", against, *differences])
    asked = {(row["length"], task) for row in found["rows"] for task in tasks if task in row}
    unasked = [
        f"{row[task]['right']} of {row[task]['questions']} in texts of {row['length']:,} tokens with {TASKS[task]}"
        for row in found.get("pilots", ())
        for task in TASKS
        if task in row and (row["length"], task) not in asked
    ]
    parts = [table(columns, rows)]
    if unasked:
        parts.append(wrapped(f"Plans were not asked for needles where the dense model finds few: {listed(unasked)}."))
    if found["effective"]:
        parts += _effective(found)
    return "\n\n".join([*parts, claims(found)])


def _effective(found: Figures) -> list[str]:
    """Return what effective context is, and each row's: of all questions together, and of each kind of needles."""
    lengths = [row["length"] for name, row in main_rows(found) if name == DENSE]
    tasks = [task for task in TASKS if any(task in row for row in found["rows"])]
    each = [effective(found["rows"], which) for which in (tasks, *([task] for task in tasks))]
    rows = [
        [name, *(f"{reached[name]:,}" if name in reached else "-" for reached in each)]
        for name in dict.fromkeys(row["row"] for row in found["rows"])
    ]
    says = wrapped(
        f"A row's effective context is the longest measured length up to which it finds {percent(ENOUGH)} of what the "
        f"dense model finds. Lengths from {min(lengths):,} to {max(lengths):,} tokens were measured; `-` stands where "
        "a row finds less at the first that it was asked at. *All questions* counts every question once, so a text of "
        "four needles weighs as much as four texts of one; the aim is on this column, and the others count each kind "
        "alone."
    )
    columns = "row", "all questions, tokens", *(f"{TASKS[task]}, tokens" for task in tasks)
    return [says, table(columns, rows)]


def baselines(found: Figures) -> str:
    """Return ways to choose, at equal bytes: needles and KL by density."""
    by_row = {row["row"]: row for row in found["rows"] if row["row"] != DENSE}
    densities = list(dict.fromkeys(name.rsplit(" ", 1)[1] for name in by_row))
    questions = next(iter(by_row.values()))["single"]["questions"]
    rows = []
    for method in (method for method in METHODS if f"{method} {densities[0]}" in by_row):
        own = [by_row[f"{method} {density}"] for density in densities]
        needles, kl = [str(row["single"]["right"]) for row in own], [f"{row['text']['kl']:.3f}" for row in own]
        rows.append([METHODS[method], *needles, *kl])
    ours = [by_row[f"exact {density}"] for density in densities]
    kept = listed([f"{row['density']:.2f} under {density}" for row, density in zip(ours, densities, strict=True)])
    return "\n\n".join([
        wrapped(
            "Every row has at most our row's bytes of KV cache and the same runtime. All use the same profile, except "
            f"the paper's influence, which needs its own. Densities {listed(densities)} hold at the longest intended "
            f"length; texts have {ours[0]['length']:,} tokens, of which our plans keep {kept}. Needles are right "
            f"answers to {questions} questions, and KL is in nats."
        ),
        table(["", *(f"needles, {d}" for d in densities), *(f"KL, {d}" for d in densities)], rows),
    ])  # fmt: skip
