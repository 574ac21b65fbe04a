"""Compare fitted costs with measured times, on plans and lengths that the fit never saw.

Eight plans of both kinds of sinks (what a default search finds at four densities, uniform windows, random rules) decode
at every length and batch, from caches of random keys, and prefill at every length. The fit's own plans are measured in
the same rounds, at the lengths that `moa measure` takes by default, so that drift of the machine affects all alike and
only the model's error is left. A cell is repeated until the standard error of each of its medians is 2 % or less, at
most `--rounds` times; a cell without that precision is listed as unresolved, and the aim for its order is not met.
With `--reads` and a profile that has them, three plans that read less than they keep decode too, on a held-out text,
and the fit measures its own. Writes benchmarks/results/cost_model.json, .md and .png. If it is stopped, the same
command of the same commit continues.

    python benchmarks/cost_model.py MODEL PROFILE
"""

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from provenance import about, place, provenance, said, write
from scipy.stats import spearmanr
from tables import claim, claimed, head, line

from moa.evaluation.journal import Journal, key
from moa.hf.load import load_model
from moa.measuring import runner
from moa.plans.errors import MoaError
from moa.plans.model import ModelInfo
from moa.plans.patterns import PATTERNS
from moa.plans.plan import FULL, Plan, Rule
from moa.profiler.profile import Profile, describe
from moa.report.plan import save
from moa.search.budget import Budget
from moa.search.choose import choose
from moa.search.cost import PLACE, Costs, Kind, Work
from moa.search.fit import fit, in_turn, probes, reading_probes
from moa.search.spread import SURE, iqr, standard_error

RESULTS = Path(__file__).parent / "results"
DENSITIES = (0.75, 0.5, 0.25, 0.125)
SHARES = (0.125, 0.0625)
"""What steps of plans of `reading` read."""
SEED, RANDOM = 100, 2
"""Seed of the first random plan, and their number."""
FIT = 1024, 4096
"""Lengths of the fit."""
ERROR, BIAS, RANK = 0.07, 0.05, 0.9
"""Aims: median absolute error and median error of a kind of work, rank correlation in a cell."""
SPAN, APART = 0.2, 0.03
"""The order in a cell counts where its predictions span SPAN, among plans whose predictions are APART."""

Cells = dict[Work, dict[str, Plan]]


def random_plan(model: ModelInfo, longest: int, seed: int) -> Plan:
    """Return a plan with a random rule per group, of either kind of sink: constant, growing or full."""
    rng = np.random.default_rng(seed)

    def rule() -> Rule:
        kind, shape = list(PATTERNS.values())[rng.integers(2)], rng.integers(3)
        if shape == 0:
            return kind(alpha=64 + 64 * int(rng.integers(1, longest // 64)), beta=0)
        return kind(alpha=0, beta=int(rng.integers(8, 257)) / 256) if shape == 1 else Rule(alpha=0, beta=1)

    return Plan.from_rules(model, {layer: [rule() for _ in range(model.kv_heads)] for layer in model.ruled_layers})


def plans(profile: Profile) -> dict[str, Plan]:
    """Return the plans under test: four of default searches, two uniform and two random ones."""
    model, longest = profile.model, max(profile.lengths)
    found = {f"searched {density}": choose(profile, [Budget("density", density)])[0] for density in DENSITIES}
    found |= {f"uniform {d} at {longest}": Plan.uniform(model, d, at=longest) for d in (0.5, 0.125)}
    return found | {f"random {i}": random_plan(model, longest, SEED + i) for i in range(RANDOM)}


def reading(profile: Profile) -> dict[str, Plan]:
    """Return the plans under test that read less than they keep: two of searches, and a uniform one."""
    found = {f"reading {share}": choose(profile, [Budget("read", share)])[0] for share in SHARES}
    rule = FULL.model_copy(update={"read": SHARES[0]})
    return found | {f"reading {SHARES[0]} everywhere": Plan.from_rules(profile.model, {}, defaults=rule)}


def apart(predicted: Sequence[float]) -> list[int]:
    """Return the indices of figures each of which is at least APART above the one before; the least comes first."""
    chosen: list[int] = []
    for i in np.argsort(predicted, kind="stable").tolist():
        if not chosen or predicted[i] >= predicted[chosen[-1]] * (1 + APART):
            chosen.append(i)
    return chosen


def cell(work: Work, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return a cell's error and bias, the rank correlation of plans predicted apart, and whether it is resolved.

    Args:
        work: What was measured.
        rows: One for each plan.
    """
    predicted, ms = ([row[name] for row in rows] for name in ("predicted", "ms"))
    chosen = apart(predicted)
    errors = [p / m - 1 for p, m in zip(predicted, ms, strict=True)]
    rank = spearmanr([predicted[i] for i in chosen], [ms[i] for i in chosen]).statistic if len(chosen) > 2 else None
    return {
        "kind": work.kind, "length": work.length, "batch": work.batch, "plans": len(rows), "apart": len(chosen),
        "span": max(predicted) / min(predicted) - 1, "error": median(map(abs, errors)), "bias": median(errors),
        "rank": None if rank is None else float(rank), "rounds": rows[0]["rounds"],
        "standard_error": max(row["standard_error"] for row in rows),
        "resolved": all(row["standard_error"] <= SURE for row in rows),
    }  # fmt: skip


def judged(rows: Sequence[dict[str, Any]], cells: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return all claims: error and bias of each kind of work and in each cell; the order where predictions span enough.

    An error in an unresolved cell is what was measured, and says that it is not certain; an order there is none.
    """
    claims = []

    def near(where: str, error: float, bias: float, says: str = "") -> None:
        claims.append(claim(f"{where}: median error, at most{says}", error, ERROR, at_most=True))
        claims.append(claim(f"{where}: bias either way, at most{says}", abs(bias), BIAS, at_most=True))

    for kind in dict.fromkeys(row["kind"] for row in rows):
        errors = [row["predicted"] / row["ms"] - 1 for row in rows if row["kind"] == kind]
        near(kind, median(map(abs, errors)), median(errors))
    for found in cells:
        where = f"{found['kind']} at {found['length']:,} tokens, batch {found['batch']}"
        says = "" if found["resolved"] else " (unresolved)"
        near(where, found["error"], found["bias"], says)
        if found["span"] >= SPAN:
            rank = found["rank"] if found["resolved"] else None
            claims.append(claim(f"{where}: rank correlation, at least{says}", rank, RANK))
    return claims


def page(found: dict[str, Any]) -> str:
    """Return the result as Markdown."""

    def share(value: float | None, form: str = ".1%") -> str:
        return "-" if value is None else format(value, form)

    where = "work", "tokens", "batch"
    lines = [about(found["run"]), "", *claimed(found["claims"]), ""]
    named = [f"{c['kind']} at {c['length']:,} tokens, batch {c['batch']} ({share(c['standard_error'])})"
             for c in found["cells"] if not c["resolved"]]  # fmt: skip
    lines += [f"Unresolved, with the largest standard error of a median: {'; '.join(named) or 'none'}.", ""]
    lines += head([*where, "plans", "apart", "span", "error", "bias", "rank", "rounds", "largest standard error"])
    for c in found["cells"]:
        lines.append(line(
            c["kind"], f"{c['length']:,}", str(c["batch"]), str(c["plans"]), str(c["apart"]), share(c["span"], ".0%"),
            share(c["error"]), share(c["bias"], "+.1%"), share(c["rank"], ".2f"), str(c["rounds"]),
            share(c["standard_error"]),
        ))  # fmt: skip
    lines += ["", *head([*where, "plan", "predicted, ms", "measured, ms", "error", "IQR", "standard error"])]
    for row in found["rows"]:
        lines.append(line(
            row["kind"], f"{row['length']:,}", str(row["batch"]), row["plan"], f"{row['predicted']:.1f}",
            f"{row['ms']:.1f}", share(row["predicted"] / row["ms"] - 1, "+.1%"), share(row["iqr"]),
            share(row["standard_error"]),
        ))  # fmt: skip
    terms = [f"{kind}: {', '.join(f'{name} {ms:.3g}' for name, ms in each.items())} ms; median error of the fit "
             f"{share(found['fit_error'][kind])}" for kind, each in found["terms"].items()]  # fmt: skip
    return "\n".join([*lines, "", *(f"{each}  " for each in terms), ""])


def scatter(rows: Sequence[dict[str, Any]], path: Path) -> None:
    from matplotlib.figure import Figure

    kinds = list(dict.fromkeys(row["kind"] for row in rows))
    figure = Figure(figsize=(4 * len(kinds), 4), layout="constrained")
    for panel, kind in zip(figure.subplots(1, len(kinds), squeeze=False)[0], kinds, strict=True):
        for family in dict.fromkeys(row["plan"].split()[0] for row in rows):
            here = [row for row in rows if row["kind"] == kind and row["plan"].startswith(family)]
            panel.loglog([r["predicted"] for r in here], [r["ms"] for r in here], "o", markersize=4, label=family)
        ends = [f(r[k] for r in rows if r["kind"] == kind for k in ("predicted", "ms")) for f in (min, max)]
        panel.loglog(ends, ends, color="grey", linewidth=0.7)
        panel.set(title=kind, xlabel="predicted, ms", ylabel="measured, ms")
        panel.legend(fontsize=8)
    save(figure, path)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("profile")
    parser.add_argument("--decode-lengths", type=int, nargs="*", default=[2048, 8192])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--prefill-lengths", type=int, nargs="*", default=[2048, 8192])
    parser.add_argument("--rounds", type=int, default=40, help="of decode steps, at most")
    parser.add_argument("--prefill-rounds", type=int, default=20, help="of prefills, at most")
    parser.add_argument("--reads", action="store_true", help="plans that read less than they keep, too")
    parser.add_argument("--output", type=Path, default=RESULTS / "cost_model", help="without its ending")
    options = parser.parse_args()
    try:
        profile = Profile.load(options.profile)
        network, tokenizer = load_model(options.model, dtype="float32", device="cpu")
        Plan.dense(profile.model).check(network)
        tested, own = plans(profile), probes(profile.model, max(FIT))
        read = {"tested": reading(profile), "own": reading_probes(own)} if options.reads else {"tested": {}, "own": {}}
    except MoaError as error:
        print("error:", error, file=sys.stderr)
        return 2

    def works(lengths: dict[Kind, Sequence[int]]) -> list[Work]:
        steps = [Work("decode", n, batch) for n in lengths["decode"] for batch in options.batches]
        return steps + [Work("prefill", n) for n in lengths["prefill"]]

    asked = works({"decode": options.decode_lengths, "prefill": options.prefill_lengths})
    kinds = dict.fromkeys(work.kind for work in asked)
    fitted = [work for work in works(dict.fromkeys(("decode", "prefill"), FIT)) if work.kind in kinds]
    cells: Cells = {}
    for whose, known, works_of in (("own", own, fitted), ("tested", tested, asked)):
        for work in works_of:
            mine = known | (read[whose] if work.kind == "decode" else {})
            named = mine if whose == "tested" else {f"fit: {name}": plan for name, plan in mine.items()}
            cells.setdefault(work, {}).update(named)
    tested, own = tested | read["tested"], own | read["own"]
    run = provenance(network, seed=[SEED + i for i in range(RANDOM)])
    journal, visits, plain = (
        Journal(options.output.with_suffix(".jsonl")), Counter[str](), runner((network, tokenizer), None)
    )  # fmt: skip
    where = place(run)

    def visit(plan: Plan, work: Work) -> list[float]:
        """Visit cells as `runner` does; what was measured before a stop is not measured again."""
        same = key(plan=plan.fingerprint(), work=str(work), **where)
        visits[same] += 1
        this = key(same=same, visit=visits[same])
        ms: list[float] | None = journal.get(this)
        if ms is None:
            ms = plain(plan, work)
            journal.put(this, ms, work=str(work))
        return ms

    most = {"decode": options.rounds, "prefill": options.prefill_rounds}
    taken = in_turn(cells, visit, lambda work: most[work.kind], said("cost_model"))
    times = {(name.removeprefix("fit: "), work): ms for (name, work), ms in taken.items() if name.startswith("fit: ")}
    costs: Costs = fit(own, times, {name: run[name] for name in PLACE})
    rows = [{
        "kind": work.kind, "length": work.length, "batch": work.batch, "plan": name, "ms": median(ms), "iqr": iqr(ms),
        "standard_error": standard_error(ms), "rounds": len(ms), "predicted": costs.predict(tested[name], work),
    } for (name, work), ms in taken.items() if name in tested]  # fmt: skip
    summed = [
        cell(work, [row for row in rows if Work(row["kind"], row["length"], row["batch"]) == work]) for work in asked
    ]
    found = {
        "run": run, "profile": describe(options.profile, profile),
        "plans": {name: plan.to_dict() for name, plan in tested.items()},
        "claims": judged(rows, summed), "cells": summed, "rows": rows, "terms": costs.terms,
        "fit_error": costs.error, "fit": [row.model_dump(mode="json") for row in costs.measured],
    }  # fmt: skip
    write(options.output.parent, options.output.name, found, page(found))
    scatter(rows, options.output.with_suffix(".png"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
