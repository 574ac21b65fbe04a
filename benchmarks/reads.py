"""Measure plans that read less than they keep: needles, and perplexity as decoding sees it, beside uniform reads.

Plans are found from a profile with reads (`moa profile --reads`), within budgets that hold at each length of their row.
Beside each stand uniform reads of at least as many bytes, of everything or, under a budget of memory, of one window for
all; beside a plan with such a budget also the same plan reading all that it keeps. A claim about needles is made only
where the dense model finds 0.9 of them. Writes reads.json and reads.md to `--results`. If it is stopped, the same
command continues from `reads.partial`. By default it asks few questions; the figures to report need the options that
`make bench` gives, and hours.

    make reads
    python benchmarks/reads.py .model/SmolLM2-135M-Instruct build/reads.safetensors
"""

import argparse
import sys
from pathlib import Path
from typing import Any, NamedTuple

from provenance import about, provenance, said, write
from tables import claim, claimed, compared

import moa
from moa.evaluation.comparison import compare
from moa.evaluation.journal import Journal
from moa.evaluation.samples import Part
from moa.hf.load import load_model
from moa.plans.errors import MoaError
from moa.plans.plan import Plan
from moa.plans.reading import READ_STEPS
from moa.profiler.profile import Profile, describe

TASKS = "single", "four"
KNOWN = 0.9
"""Rate of the dense model's right answers below which nothing is claimed of a plan's."""


class Budget(NamedTuple):
    """A row: what plans may read and keep, at which lengths, and the bounds of what they lose.

    Attributes:
        name: Its name in the table.
        read: Part of all bytes that a step reads.
        kept: Density; 1 for everything.
        lengths: Lengths at which the budgets hold and plans are measured.
        found: The least part of the needles found, of those of the dense model or, with less kept, of the plan that
            reads all it keeps.
        perplexity: The most that perplexity grows, as a ratio to the same.
    """

    name: str
    read: float
    kept: float
    lengths: tuple[int, ...]
    found: float
    perplexity: float


BUDGETS = (
    Budget("everything, 1/8 read", 1 / 8, 1.0, (2048, 4096, 8192), 0.97, 1.015),
    Budget("everything, 1/16 read", 1 / 16, 1.0, (4096, 8192), 0.95, 1.03),
    Budget("everything, 1/32 read", 1 / 32, 1.0, (8192,), 0.85, 1.08),
    Budget("1/4 kept, 1/16 read", 1 / 16, 1 / 4, (4096, 8192), 0.97, 1.02),
)


def plans(profile: Profile, lengths: list[int]) -> dict[str, Plan]:
    """Return the plan of each row that has one of these lengths."""
    found = {}
    for row in BUDGETS:
        if at := [n for n in row.lengths if n in lengths]:
            limits = {"read": [f"{row.read}@{n}" for n in at], "density": [f"{row.kept}@{n}" for n in at]}
            longest = max(*at, *profile.lengths)
            found[row.name] = moa.find_plan(profile, limits, max_length=longest).plan
    return found


def uniform(plan: Plan, row: Budget, length: int) -> Plan:
    """Return the plan of one rule that keeps everything, or as much as the plan, and reads no less than the plan."""
    keeps = Plan.dense(plan.model) if row.kept == 1 else Plan.uniform(plan.model, plan.density(length), at=length)
    rules = (keeps.defaults.reading(k) for k in range(1, READ_STEPS + 1))
    made = (Plan.from_rules(plan.model, {}, defaults=rule) for rule in rules)
    return next((twin for twin in made if twin.read_density(length) >= plan.read_density(length)), keeps)


def rows_at(found: dict[str, Plan], length: int) -> list[tuple[Budget, str, Plan]]:
    """Return budget, name and plan of what is measured at a length; what a plan is compared with follows it."""
    rows = []
    for row in (row for row in BUDGETS if length in row.lengths):
        rows.append((row, row.name, found[row.name]))
        rows.append((row, f"uniform like {row.name}", uniform(found[row.name], row, length)))
        if row.kept < 1:
            rows.append((row, f"{row.name}: all of it", found[row.name].whole))
    return rows


def claims(rows: list[dict[str, Any]], budgets: list[Budget]) -> list[dict[str, Any]]:
    """Return what must hold of the measured rows of one length."""
    by_name, made = {row["row"]: row for row in rows}, []
    for budget in budgets:
        mine, twin = by_name[budget.name], by_name[f"uniform like {budget.name}"]
        base = by_name["dense" if budget.kept == 1 else f"{budget.name}: all of it"]
        title = f"{budget.name}, {mine['length']:,} tokens"
        for task in TASKS:
            if by_name["dense"][task]["rate"] >= KNOWN:
                part = mine[task]["rate"] / base[task]["rate"] if base[task]["rate"] else None
                made.append(claim(f"{title}: {task}, of {base['row']}, at least", part, budget.found))
            ahead = mine[task]["rate"] - twin[task]["rate"]
            made.append(claim(f"{title}: {task}, ahead of uniform reads", ahead, 0))
        grown = mine["decoded"]["perplexity"] / base["decoded"]["perplexity"]
        made.append(claim(f"{title}: perplexity decoded, over {base['row']}", grown, budget.perplexity, at_most=True))
        grown = mine["decoded"]["perplexity"] / twin["decoded"]["perplexity"]
        made.append(claim(f"{title}: perplexity decoded, over uniform reads", grown, 1, at_most=True))
    return made


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("profile", type=Path, help="made with --reads")
    parser.add_argument("--lengths", type=int, nargs="+", default=[2048, 4096], choices=[2048, 4096, 8192])
    parser.add_argument(
        "--needles",
        type=int,
        nargs="+",
        default=[8],
        help="contexts with one needle and with four, or one for each length",
    )
    parser.add_argument("--windows", type=int, default=1, help="windows of held-out text")
    parser.add_argument("--seed", type=int, default=51, help="of the needles")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    rows, made = [], []
    try:
        lengths = sorted(set(options.lengths))
        needles = options.needles * len(lengths) if len(options.needles) == 1 else options.needles
        if len(needles) != len(lengths):
            raise MoaError(
                f"--needles takes one number, or one for each of {len(lengths)} lengths, found {len(needles)}"
            )
        profile = Profile.load(options.profile)
        found = plans(profile, lengths)
        options.results.mkdir(parents=True, exist_ok=True)
        model, tokenizer = load_model(options.model, dtype=options.dtype, device="cpu")
        journal = Journal(options.results / "reads.partial")
        for length, count in zip(lengths, needles, strict=True):
            asked, counts = rows_at(found, length), {"single": count, "four": count, "decoded": options.windows}
            measured = compare(
                model, tokenizer, [(name, plan) for _, name, plan in asked], [Part(length, counts)], uniform=False,
                seed=options.seed, journal=journal, progress=said(f"{length:,} tokens"),
            )  # fmt: skip
            rows += measured["rows"]
            made += claims(measured["rows"], [row for row, name, _ in asked if name == row.name])
    except MoaError as error:
        print("error:", error, file=sys.stderr)
        return 2
    result = {
        "run": provenance(model, seed=options.seed, runs=1), "rows": rows, "claims": made,
        "profile": describe(options.profile, profile), "plans": {name: plan.to_dict() for name, plan in found.items()},
    }  # fmt: skip
    page = [about(result["run"]), "", *compared(rows), "", *claimed(made)]
    write(options.results, "reads", result, "\n".join(page) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
