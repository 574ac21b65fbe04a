"""Measure plans that read less than they keep: needles, and perplexity as decoding sees it, beside uniform reads.

Plans are found from a profile with reads (`moa profile --reads`), within budgets that hold at each length of their row.
Beside each stand uniform reads of at least as many bytes, of everything or, under a budget of memory, of one window for
all; beside a plan with such a budget also the same plan reading all that it keeps. The dense model is asked first, in a
pilot: plans are not asked for needles that it surely finds less than 0.9 of, and claims about needles are made only
where it finds as many. Perplexity is measured as decoded, and beside it of a prefill.

Each length is a run of its own, which writes reads-2k.json (4k, 8k) and .md to `--results`. They are of the same plans:
the first run finds those of all rows, and others take them from its result, on whichever machine. If it is stopped,
the same command continues from reads-2k.partial. By default it asks few questions; the figures to report need the
options that `make bench` gives, and an hour or more.

    make reads
    python benchmarks/reads.py .model/SmolLM2-135M-Instruct build/reads.safetensors --length 2048
    python benchmarks/reads.py .model/SmolLM2-135M-Instruct benchmarks/results/reads-2k.json --length 4096
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

from pilots import NEEDLES, answered, measured, piloted
from provenance import about, provenance, write
from tables import claim, claimed, compared, difference

import moa
from moa.evaluation.journal import Journal
from moa.evaluation.samples import Part
from moa.hf.load import load_model
from moa.plans.errors import MoaError
from moa.plans.plan import Plan
from moa.plans.reading import READ_STEPS
from moa.profiler.profile import Profile, describe


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


def plans(profile: Profile) -> dict[str, Plan]:
    """Return the plan of each row, within its budgets at all of its lengths that the model takes."""
    most, found = profile.max_length or LONGEST, {}
    longest = max(min(LONGEST, most), *profile.lengths)
    for row in BUDGETS:
        if at := [n for n in row.lengths if n <= most]:
            limits = {"read": [f"{row.read}@{n}" for n in at]}
            if row.kept < 1:
                limits["density"] = [f"{row.kept}@{n}" for n in at]
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


def claims(rows: list[dict[str, Any]], budgets: list[Budget]) -> list[dict[str, Any]]:
    """Return what must hold of the measured rows of one length, of needles with the difference and its interval."""
    by_name, made = {row["row"]: row for row in rows}, []
    for budget in budgets:
        mine, twin = by_name[budget.name], by_name[f"uniform like {budget.name}"]
        base = by_name["dense" if budget.kept == 1 else f"{budget.name}: all of it"]
        title = f"{budget.name}, {mine['length']:,} tokens"
        for task in answered(mine, by_name["dense"]):
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
    parser.add_argument(
        "source", type=Path, help="profile made with --reads, or an earlier result (.json), whose plans are measured"
    )
    parser.add_argument("--length", type=int, default=LENGTHS[0], choices=LENGTHS)
    parser.add_argument("--needles", type=int, default=8, help="contexts with one needle and with four")
    parser.add_argument("--windows", type=int, default=1, help="windows of held-out text")
    parser.add_argument("--seed", type=int, default=51, help="of the needles")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    length, title = options.length, f"reads-{options.length // 1024}k"
    texts = dict.fromkeys(("text", "decoded"), options.windows)
    part = Part(length, dict.fromkeys(NEEDLES, options.needles) | texts)
    try:
        if options.source.suffix == ".json":
            before = json.loads(options.source.read_text())
            if not set(before.get("plans", ())) >= {row.name for row in BUDGETS if length in row.lengths}:
                raise MoaError(f"{options.source}: found no plans of this script for {length:,} tokens")
            profiled = before["profile"]
            found = {name: Plan.from_dict(document) for name, document in before["plans"].items()}
        else:
            profile = Profile.load(options.source)
            profiled, found = describe(options.source, profile), plans(profile)
        model, tokenizer = load_model(options.model, dtype=options.dtype, device="cpu")
        part.check(model)
        options.results.mkdir(parents=True, exist_ok=True)
        those = rows_at(found, length)
        shown, dense = measured(
            model, tokenizer, [(name, plan) for _, name, plan in those], part, uniform=False, seed=options.seed,
            journal=Journal(options.results / f"{title}.partial"),
        )  # fmt: skip
        rows, pilots = shown["rows"], [dense]
    except (MoaError, OSError) as error:
        print("error:", error, file=sys.stderr)
        return 2
    made = claims(rows, [row for row, name, _ in those if name == row.name])
    result = {
        "run": provenance(model, seed=options.seed, runs=1), "rows": rows, "pilots": pilots, "claims": made,
        "profile": profiled, "plans": {name: plan.to_dict() for name, plan in found.items()},
    }  # fmt: skip
    page = [about(result["run"]), "", *compared(rows), "", *piloted(pilots), "", *claimed(made)]
    write(options.results, title, result, "\n".join(page) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
