"""Measure plans that read less than they keep: needles, and perplexity as decoding sees it, beside uniform reads.

Plans are found from a profile with reads (`moa profile --reads`), within budgets that hold at each length of their row.
Beside each stand uniform reads of at least as many bytes, of everything or, under a budget of memory, of one window for
all; beside a plan with such a budget also the same plan reading all that it keeps. A claim about needles is made only
where the dense model finds 0.9 of them. Perplexity is measured as decoded, and beside it of a prefill. Writes NAME.json
and NAME.md to `--results`. If it is stopped, the same command continues from NAME.partial. A plan is the same whichever
of its lengths are measured, so runs of single lengths belong together. By default it asks few questions; the figures to
report need the options that `make bench` gives, and hours.

    make reads
    python benchmarks/reads.py .model/SmolLM2-135M-Instruct build/reads.safetensors
"""

import argparse
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

from provenance import about, provenance, said, write
from tables import claim, claimed, compared, difference

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
LENGTHS = tuple(sorted({n for row in BUDGETS for n in row.lengths}))
LONGEST = LENGTHS[-1]
"""The longest text that plans are for, tokens, where the model takes as much."""


def plans(profile: Profile, lengths: Collection[int]) -> dict[str, Plan]:
    """Return the plan of each row that is measured at one of these lengths, within its budgets at all of its own."""
    most, found = profile.max_length or LONGEST, {}
    for row in BUDGETS:
        if set(row.lengths) & set(lengths):
            at = [n for n in row.lengths if n <= most]
            limits = {"read": [f"{row.read}@{n}" for n in at]}
            if row.kept < 1:
                limits["density"] = [f"{row.kept}@{n}" for n in at]
            longest = max(min(LONGEST, most), *profile.lengths)
            found[row.name] = moa.find_plan(profile, limits, keep_all=row.kept == 1, max_length=longest).plan
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


def parts(lengths: list[int], needles: list[int], windows: list[int]) -> dict[int, Part]:
    """Return what is measured at each length, the shortest first.

    Args:
        lengths: The lengths, tokens.
        needles: Contexts with one needle and with four: one number, or one for each length.
        windows: Windows of held-out text, likewise.

    Raises:
        MoaError: There are more numbers than one, but not as many as lengths.
    """
    counts = zip(each(lengths, "needles", needles), each(lengths, "windows", windows), strict=True)
    found = zip(lengths, counts, strict=True)
    return {
        n: Part(n, {"single": asked, "four": asked, "text": texts, "decoded": texts})
        for n, (asked, texts) in sorted(found)
    }


def each(lengths: list[int], option: str, numbers: list[int]) -> list[int]:
    """Return a number for each length of an option that takes one for all of them, or one for each."""
    if len(numbers) not in (1, len(lengths)):
        raise MoaError(f"--{option} takes one number, or one for each of {len(lengths)} lengths, found {len(numbers)}")
    return numbers * len(lengths) if len(numbers) == 1 else numbers


def claims(rows: list[dict[str, Any]], budgets: list[Budget]) -> list[dict[str, Any]]:
    """Return what must hold of the measured rows of one length, of needles with the difference and its interval."""
    by_name, made = {row["row"]: row for row in rows}, []
    for budget in budgets:
        mine, twin = by_name[budget.name], by_name[f"uniform like {budget.name}"]
        base = by_name["dense" if budget.kept == 1 else f"{budget.name}: all of it"]
        title = f"{budget.name}, {mine['length']:,} tokens"
        for task in TASKS:
            if by_name["dense"][task]["rate"] < KNOWN:
                continue
            part = mine[task]["rate"] / base[task]["rate"] if base[task]["rate"] else None
            lost, ahead = (list(difference(mine, other, task)) for other in (base, twin))
            kept = claim(f"{title}: {task}, of {base['row']}, at least", part, budget.found)
            made.append(kept | {"difference": lost})
            made.append(claim(f"{title}: {task}, ahead of uniform reads", ahead[0], 0) | {"difference": ahead})
        grown = mine["decoded"]["perplexity"] / base["decoded"]["perplexity"]
        made.append(claim(f"{title}: perplexity decoded, over {base['row']}", grown, budget.perplexity, at_most=True))
        grown = mine["decoded"]["perplexity"] / twin["decoded"]["perplexity"]
        made.append(claim(f"{title}: perplexity decoded, over uniform reads", grown, 1, at_most=True))
    return made


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("profile", type=Path, help="made with --reads")
    parser.add_argument("--lengths", type=int, nargs="+", default=[2048, 4096], choices=LENGTHS)
    for option, default, what in (
        ("--needles", 8, "contexts with one needle and with four"),
        ("--windows", 1, "windows of held-out text"),
    ):
        parser.add_argument(
            option, type=int, nargs="+", default=[default], help=f"{what}: one number, or one for each length"
        )
    parser.add_argument("--name", default="reads", help="name of the results")
    parser.add_argument("--seed", type=int, default=51, help="of the needles")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    rows, made = [], []
    try:
        asked = parts(options.lengths, options.needles, options.windows)
        profile = Profile.load(options.profile)
        model, tokenizer = load_model(options.model, dtype=options.dtype, device="cpu")
        for part in asked.values():  # what cannot be measured is refused before anything is
            part.check(model)
            part.samples(tokenizer, options.seed)
        found = plans(profile, asked)
        options.results.mkdir(parents=True, exist_ok=True)
        journal = Journal(options.results / f"{options.name}.partial")
        for length, part in asked.items():
            those = rows_at(found, length)
            measured = compare(
                model, tokenizer, [(name, plan) for _, name, plan in those], [part], uniform=False,
                seed=options.seed, journal=journal, progress=said(f"{length:,} tokens"),
            )  # fmt: skip
            rows += measured["rows"]
            made += claims(measured["rows"], [row for row, name, _ in those if name == row.name])
    except MoaError as error:
        print("error:", error, file=sys.stderr)
        return 2
    result = {
        "run": provenance(model, seed=options.seed, runs=1), "rows": rows, "claims": made,
        "profile": describe(options.profile, profile), "plans": {name: plan.to_dict() for name, plan in found.items()},
    }  # fmt: skip
    page = [about(result["run"]), "", *compared(rows), "", *claimed(made)]
    write(options.results, options.name, result, "\n".join(page) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
