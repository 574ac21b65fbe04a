"""Compare ways to choose who keeps what, at equal bytes of KV cache, by needles, KL and perplexity.

- exact: what `moa search PROFILE --max-density D --max-length LONGEST` finds.
- first keys: the same search with sinks of first keys alone, as in every row below.
- uniform: one window for all groups (StreamingLLM, arXiv 2309.17453).
- two-group: full attention in as many groups as fit, those of the highest copy score (by `moa profile
  --retrieval-score`; of equal scores the first), and the smallest window in the others (the form of DuoAttention,
  arXiv 2410.10819).
- per-layer: the same search, one rule for all groups of a layer (the form of PyramidKV, arXiv 2406.02069).
- first-order-abs, with `--absolute`: the same search over a profile made with `--estimator first-order-abs`, the
  influence of MoA (arXiv 2406.14909).

At the measured length the first row says how many bytes there are: every other row keeps at most as many. A row's
density is that of the first row's budget, which holds at the longest intended length; at shorter ones plans keep more
of the text. Needles have formats by which no choice of this project was made (`moa.evaluation.haystack.HELD_OUT`).
Writes baselines.json and baselines.md to `--results`. If it is stopped, the same command continues from
`baselines.partial`.
The model reads about half a million tokens, which takes 25 minutes on one core that computes in bfloat16.

    python benchmarks/baselines.py .model/SmolLM2-135M-Instruct profile.safetensors --absolute absolute.safetensors
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from held_out import TASKS
from provenance import about, provenance, said, write
from tables import head, line

from moa.evaluation.comparison import compare
from moa.evaluation.journal import Journal
from moa.evaluation.samples import Part
from moa.evaluation.summary import table
from moa.hf.load import load_model
from moa.plans.errors import MoaError
from moa.plans.plan import Plan
from moa.plans.span import BLOCK, Floats
from moa.profiler.profile import Profile, describe
from moa.search.budget import Budget
from moa.search.choose import choose, pose
from moa.search.lengths import Lengths
from moa.search.solver import solve

ABSOLUTE = "first-order-abs"
WINDOWS = ["sink_window"]
"""Sinks of first keys."""


def plans(
    profile: Profile, absolute: Profile | None, length: int, longest: int, densities: Sequence[float]
) -> list[tuple[str, Plan]]:  # fmt: skip
    """Return the plans of the rows beside dense."""

    def searched(known: Profile, budgets: Sequence[Budget]) -> Plan:
        return choose(known, budgets, lengths=Lengths.of(known, longest=longest))[0]

    found = []
    for density in densities:
        budget = Budget("density", density)
        exact = searched(profile, [budget])
        room = exact.kv_bytes(length, dtype="bfloat16")
        budgets = [budget, Budget("kv_gb", room / 1e9, length, dtype="bfloat16")]
        rows = {
            "exact": exact,
            "first keys": searched(profile.only(WINDOWS), budgets),
            "uniform": uniform(profile, room, length),
            "two-group": two_group(profile, room, length),
            "per-layer": per_layer(profile.only(WINDOWS), budgets, longest),
        }
        if absolute is not None:
            rows[ABSOLUTE] = searched(absolute.only(WINDOWS), budgets)
        assert all(plan.kv_bytes(length, dtype="bfloat16") <= room for plan in rows.values())
        found += [(f"{name} {density:g}", plan) for name, plan in rows.items()]
    return found


def load_absolute(path: Path) -> Profile:
    """Return a profile of MoA's influence.

    Raises:
        MoaError: It is one of another estimator.
    """
    found = Profile.load(path)
    if {found.estimator(source) for source in found.sources} != {ABSOLUTE}:
        raise MoaError(f"{path} must be a profile made with --estimator {ABSOLUTE}")
    return found


def uniform(profile: Profile, room: int, length: int) -> Plan:
    """Return the uniform plan with the widest window that fits in `room` bytes at `length`."""
    made = (Plan.uniform(profile.model, n / length, at=length) for n in range(length, 0, -BLOCK))
    return next(plan for plan in made if plan.kv_bytes(length, dtype="bfloat16") <= room)


def two_group(profile: Profile, room: int, length: int) -> Plan:
    """Return the plan of full attention in as many groups, by copy score, as fit in `room` bytes at `length`."""
    if profile.retrieval is None:
        raise MoaError("the profile has no copy scores; make one with `moa profile MODEL --retrieval-score`")
    heads = profile.model.kv_heads
    order = [divmod(int(i), heads) for i in np.argsort(-profile.retrieval, axis=None, kind="stable")]
    groups = [(profile.model.ruled_layers[row], head) for row, head in order]
    made = (Plan.two_group(profile.model, groups[:count], BLOCK) for count in range(len(groups), -1, -1))
    return next(plan for plan in made if plan.kv_bytes(length, dtype="bfloat16") <= room)


def per_layer(profile: Profile, budgets: Sequence[Budget], longest: int) -> Plan:
    """Return the plan that a search with one rule per layer finds: objective and costs are summed over its groups."""
    model = profile.model
    problem = pose(profile, budgets, lengths=Lengths.of(profile, longest=longest))

    def summed(table: Floats) -> Floats:
        return table.reshape(len(model.ruled_layers), model.kv_heads, -1).sum(1)

    kept = [replace(limit, cost=summed(limit.cost)) for limit in problem.limits]
    choice = solve(summed(problem.text + problem.recall), kept).choice
    chosen = zip(model.ruled_layers, choice, strict=True)
    return Plan.from_rules(model, {layer: [problem.rules.rules[int(i)]] * model.kv_heads for layer, i in chosen})


def markdown(found: dict[str, Any]) -> str:
    """Return the page: the run and the table."""
    headings, shown = table(found["rows"])
    lines = [f"{found['model']['name']}; {about(found['run'])}", "", *head(headings)]
    for row, cells in zip(found["rows"], shown, strict=True):
        cells[headings.index("KV cache, MiB")] = f"{row['kv_bytes'] / 2**20:.2f}"  # at the very length
        lines.append(line(*cells))
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("profile", type=Path)
    parser.add_argument("--absolute", type=Path, help=f"a profile made with --estimator {ABSOLUTE}")
    parser.add_argument("--length", type=int, default=2048, help="tokens")
    parser.add_argument("--longest", type=int, default=8192, help="longest intended length, where densities hold")
    parser.add_argument("--densities", type=float, nargs="+", default=[0.25, 0.125])
    parser.add_argument("--needles", type=int, default=16, help="contexts with one needle")
    parser.add_argument("--windows", type=int, default=2, help="windows of held-out text")
    parser.add_argument("--seed", type=int, default=11, help="of the needles")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    try:
        profile = Profile.load(options.profile)
        absolute = None if options.absolute is None else load_absolute(options.absolute)
        rows = plans(profile, absolute, options.length, options.longest, options.densities)
        options.results.mkdir(parents=True, exist_ok=True)
        model, tokenizer = load_model(options.model, dtype=options.dtype)
        measured = compare(
            model, tokenizer, rows, [Part(options.length, {"single": options.needles, "text": options.windows}, TASKS)],
            uniform=False, seed=options.seed, journal=Journal(options.results / "baselines.partial"),
            progress=said(f"{options.length:,} tokens"),
        )  # fmt: skip
    except MoaError as error:
        print("error:", error, file=sys.stderr)
        return 2
    found = {
        "run": provenance(model, seed=options.seed, runs=1), "model": measured["model"], "rows": measured["rows"],
        "profile": describe(options.profile, profile),
        "absolute": None if absolute is None else describe(options.absolute, absolute),
        "plans": {name: plan.to_dict() for name, plan in rows},
    }  # fmt: skip
    write(options.results, "baselines", found, markdown(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
