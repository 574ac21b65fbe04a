"""Fitted costs against measured times, on plans and lengths that the fit never saw.

Decode: 12 plans (uniform, random, searched) at every length and batch, caches filled with random keys. Prefill: 6 of
them, 3 from 8,192 tokens on, those whose predictions lie farthest apart. Everything is measured in turn, `--rounds`
times over. Prints a table, the median absolute error, the run-to-run spread and the rank correlation; writes
benchmarks/results/cost_model.json, .md and .png. Stopped at any moment, the same command goes on from
benchmarks/results/cost_model.jsonl.

    moa measure MODEL -o costs.json
    python benchmarks/cost_model.py MODEL PROFILE costs.json
"""

import argparse
import statistics
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from moa.evaluation.journal import Journal, key
from moa.measuring import runner_of
from moa.plans.model import ModelInfo
from moa.plans.plan import Plan, Rule
from moa.plans.replace import replace, replace_json
from moa.profiler.profile import Profile
from moa.report import save
from moa.search.budget import Budget
from moa.search.choose import choose
from moa.search.cost import Costs, Kind, Work
from moa.search.lengths import Lengths

RESULTS = Path(__file__).parent / "results"
DENSITIES = (0.75, 0.5, 0.25, 0.125)
MANY, FEW, LONG = 6, 3, 8192
"""Plans prefilled below LONG tokens, and from there on."""


def random_plan(model: ModelInfo, longest: int, seed: int) -> Plan:
    """A random rule per group: constant, growing or full."""
    rng = np.random.default_rng(seed)

    def rule() -> Rule:
        kind = rng.integers(3)
        if kind == 0:
            return Rule(alpha=64 + 64 * int(rng.integers(1, longest // 64)), beta=0)
        beta = int(rng.integers(8, 257)) / 256 if kind == 1 else 1.0
        return Rule(alpha=0, beta=beta)

    return Plan.from_rules(model, {layer: [rule() for _ in range(model.kv_heads)] for layer in model.ruled_layers})


def plans(profile: Profile) -> dict[str, Plan]:
    """Four of each kind."""
    found, longest = {}, max(profile.lengths)
    for i, (density, other) in enumerate(zip(DENSITIES, (*DENSITIES[2:], *DENSITIES[:2]), strict=True)):
        searched, _ = choose(profile, [Budget("density", density, longest)], lengths=Lengths(profile.lengths))
        found[f"searched {density}"] = searched
        found[f"uniform {other}"] = Plan.uniform(profile.model, other, at=longest)
        found[f"random {i}"] = random_plan(profile.model, longest, 100 + i)
    return found


def far_apart(costs: Costs, tried: dict[str, Plan], work: Work, count: int) -> list[str]:
    """Names of `count` plans: of least and most predicted time, then again and again the one farthest from all so far.

    Plans laid out for the longest text see everything of a short one, and an order among equals cannot be measured.
    """
    ms = {name: costs.predict(plan, work) for name, plan in tried.items()}
    chosen = [min(ms, key=lambda name: ms[name]), max(ms, key=lambda name: ms[name])]
    while len(chosen) < count:
        chosen.append(max(ms, key=lambda name: min(abs(ms[name] - ms[other]) for other in chosen)))
    return chosen


def summary(rows: list[dict[str, Any]]) -> dict[str, float | bool]:
    """Error, spread and rank correlation of some rows, and whether they keep the limits."""
    error = statistics.median(abs(row["predicted"] / row["ms"] - 1) for row in rows)
    spread = statistics.median(row["spread"] for row in rows)
    rank = float(spearmanr([row["predicted"] for row in rows], [row["ms"] for row in rows]).statistic)
    kept = error <= max(0.07, 2 * spread) and rank >= 0.95
    return {"error": error, "spread": spread, "rank": rank, "kept": kept, "rows": len(rows)}


def markdown(rows: list[dict[str, Any]], sums: dict[str, dict[str, Any]]) -> str:
    lines = [
        "| | tokens | batch | plan | predicted, ms | measured, ms | error | spread |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        error = row["predicted"] / row["ms"] - 1
        lines.append(
            f"| {row['kind']} | {row['length']:,} | {row['batch']} | {row['plan']} | {row['predicted']:.1f} | "
            f"{row['ms']:.1f} | {error:+.1%} | {row['spread']:.1%} |"
        )
    lines.append("")
    for kind, found in sums.items():
        lines.append(
            f"{kind}: {'kept' if found['kept'] else 'NOT kept'}: median absolute error {found['error']:.1%} (limit: "
            f"the larger of 7 % and twice the spread of {found['spread']:.1%}), rank correlation {found['rank']:.3f} "
            f"(limit 0.95), {found['rows']} points  "
        )
    return "\n".join(lines)


def scatter(rows: list[dict[str, Any]], path: Path) -> None:
    from matplotlib.figure import Figure

    kinds = list(dict.fromkeys(row["kind"] for row in rows))
    figure = Figure(figsize=(4 * len(kinds), 4), layout="constrained")
    for panel, kind in zip(figure.subplots(1, len(kinds), squeeze=False)[0], kinds, strict=True):
        for family in ("searched", "uniform", "random"):
            here = [row for row in rows if row["kind"] == kind and row["plan"].startswith(family)]
            panel.loglog([r["predicted"] for r in here], [r["ms"] for r in here], "o", markersize=4, label=family)
        ends = [f(r[k] for r in rows if r["kind"] == kind for k in ("predicted", "ms")) for f in (min, max)]
        panel.loglog(ends, ends, color="grey", linewidth=0.7)
        panel.set(title=kind, xlabel="predicted, ms", ylabel="measured, ms")
        panel.legend(fontsize=8)
    save(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("profile")
    parser.add_argument("costs")
    parser.add_argument("--decode-lengths", type=int, nargs="*", default=[2048, 4096, 8192])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--prefill-lengths", type=int, nargs="*", default=[2048, 4096, 8192])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=RESULTS / "cost_model", help="without its ending")
    options = parser.parse_args()
    costs, profile = Costs.load(options.costs), Profile.load(options.profile)
    costs.check(profile.model)
    run = runner_of(costs, options.model)
    tried = plans(profile)

    def cases(kind: Kind, length: int, batch: int) -> list[tuple[str, Work]]:
        work = Work(kind, length, batch)
        if kind == "decode":
            return [(name, work) for name in tried]
        return [(name, work) for name in far_apart(costs, tried, work, MANY if length < LONG else FEW)]

    todo = [case for n in options.decode_lengths for batch in options.batches for case in cases("decode", n, batch)]
    todo += [case for n in options.prefill_lengths for case in cases("prefill", n, 1)]
    journal = Journal(options.output.with_suffix(".jsonl"))
    place = {name: costs.environment[name] for name in ("device", "threads", "backend", "dtype")}
    taken: dict[tuple[str, Work], list[float]] = {case: [] for case in todo}
    for turn in range(options.rounds):
        for name, work in todo:
            about = key(plan=tried[name].to_dict(), work=str(work), turn=turn, **place)
            ms = journal.get(about)
            if ms is None:
                ms = run(tried[name], work)
                journal.put(about, ms, plan=name, work=str(work))
            taken[name, work].append(statistics.median(ms))
            print(f"round {turn + 1}: {work}, {name}: {statistics.median(ms):.1f} ms", flush=True)
    rows = []
    for (name, work), ms in taken.items():
        middle = statistics.median(ms)
        rows.append({
            "kind": work.kind, "length": work.length, "batch": work.batch, "plan": name, "ms": middle,
            "spread": (max(ms) - min(ms)) / middle, "predicted": costs.predict(tried[name], work),
        })  # fmt: skip
    sums = {
        kind: summary([row for row in rows if row["kind"] == kind]) for kind in dict.fromkeys(r["kind"] for r in rows)
    }
    found = {"environment": costs.environment, "fit_error": costs.error, "terms": costs.terms, "rows": rows, **sums}
    replace_json(options.output.with_suffix(".json"), found)
    text = markdown(rows, sums)
    replace(options.output.with_suffix(".md"), (text + "\n").encode())
    scatter(rows, options.output.with_suffix(".png"))
    print(text)


if __name__ == "__main__":
    main()
