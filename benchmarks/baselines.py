"""Ways to choose who keeps what, at equal bytes of KV cache: retrieval of needles, KL and perplexity.

- exact: what `moa search PROFILE --lengths LENGTH` finds.
- first keys: the same search with sinks of first keys alone, as in every row below.
- uniform: one window for all groups (StreamingLLM, arXiv 2309.17453).
- two-group: full attention in the groups of the highest copy score, as many as fit, the smallest window in the others
  (the form of DuoAttention, arXiv 2410.10819; scores by `moa profile --retrieval-score`). Of equal scores the first.
- per-layer: the same search, one rule for all groups of a layer (the form of PyramidKV, arXiv 2406.02069).
- first-order-abs, with `--absolute`: the same search over a profile made with `--estimator first-order-abs`, the
  influence of MoA (arXiv 2406.14909).

The uniform window of a density says how many bytes there are: every other row keeps at most as many, so its density may
differ a little, since full groups need no spare block. A plan's floor, sink and smallest window, is 192 tokens; the
density 0.0625 leaves that much from 3,072 tokens on, and is measured at 4,096. Writes baselines.json and baselines.md
to `--results`. Stopped at any moment, the same command goes on from `baselines.partial`; several processes may take a
length each, then one takes all.

    python benchmarks/baselines.py .model/SmolLM2-135M-Instruct profile.safetensors --absolute absolute.safetensors
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from moa.cli.common import Bar, numbers
from moa.evaluation.comparison import Part, compare
from moa.evaluation.journal import Journal
from moa.evaluation.summary import COLUMNS, cells
from moa.load import load_model
from moa.plans.errors import MoaError
from moa.plans.plan import Plan
from moa.plans.replace import replace as replace_file
from moa.plans.replace import replace_json
from moa.plans.span import BLOCK, Floats
from moa.profiler.profile import Profile, describe
from moa.search.budget import Budget, limit
from moa.search.choose import choose
from moa.search.grid import grid
from moa.search.lengths import Lengths
from moa.search.objective import PLAIN, objective
from moa.search.solver import solve

DENSITIES: dict[int, tuple[float, ...]] = {2048: (0.5, 0.25, 0.125), 4096: (0.0625,)}
ABSOLUTE = "first-order-abs"


def plans(profile: Profile, absolute: Profile | None, length: int) -> list[tuple[str, Plan]]:
    """The rows beside dense."""
    found = []
    for density in DENSITIES[length]:
        uniform = Plan.uniform(profile.model, density, at=length)
        room = uniform.kv_bytes(length, dtype="bfloat16")
        budget = Budget("kv_gb", room / 1e9, length, dtype="bfloat16")
        rows = {
            "exact": choose(profile, [budget], lengths=Lengths((length,)))[0],
            "first keys": choose(profile.only(["sink_window"]), [budget], lengths=Lengths((length,)))[0],
            "uniform": uniform,
            "two-group": two_group(profile, room, length),
            "per-layer": per_layer(profile, budget, length),
        }
        if absolute is not None:
            rows[ABSOLUTE] = choose(absolute.only(["sink_window"]), [budget], lengths=Lengths((length,)))[0]
        assert all(plan.kv_bytes(length, dtype="bfloat16") <= room for plan in rows.values())
        found += [(f"{name} {density:g}", plan) for name, plan in rows.items()]
    return found


def two_group(profile: Profile, room: int, length: int) -> Plan:
    """Full attention in as many groups, by descending copy score, as `room` bytes hold at `length`."""
    if profile.retrieval is None:
        raise MoaError("the profile has no copy scores; make one with `moa profile MODEL --retrieval-score`")
    heads = profile.model.kv_heads
    order = [divmod(int(i), heads) for i in np.argsort(-profile.retrieval, axis=None, kind="stable")]
    groups = [(profile.model.ruled_layers[row], head) for row, head in order]
    made = (Plan.two_group(profile.model, groups[:count], BLOCK) for count in range(len(groups), -1, -1))
    return next(plan for plan in made if plan.kv_bytes(length, dtype="bfloat16") <= room)


def per_layer(profile: Profile, budget: Budget, length: int) -> Plan:
    """The search with one rule per layer: objective and costs are summed over its groups."""
    model, rules = profile.model, grid((length,), [("sink_window", sink) for sink in profile.sinks])

    def summed(table: Floats) -> Floats:
        return table.reshape(len(model.ruled_layers), model.kv_heads, -1).sum(1)

    least = limit(budget, rules, model, length)
    kept = [replace(least, cost=summed(least.cost))]
    choice = solve(summed(objective(profile, rules, PLAIN, Lengths((length,)))), kept).choice
    chosen = zip(model.ruled_layers, choice, strict=True)
    return Plan.from_rules(model, {layer: [rules.rule(int(i))] * model.kv_heads for layer, i in chosen})


def markdown(found: dict[str, Any]) -> str:
    """The page: environment and the table."""
    about = ", ".join(f"{name} {value}" for name, value in found["environment"].items())
    columns = COLUMNS[:-1]
    lines = [f"{found['model']['name']}: {about}", "", f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    for row in found["rows"]:
        line = cells(row)[:-1]
        line[columns.index("KV cache, MiB")] = f"{row['kv_bytes'] / 2**20:.2f}"  # at the very length
        lines.append(f"| {' | '.join(line)} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("profile", type=Path)
    parser.add_argument("--absolute", type=Path, help=f"a profile made with --estimator {ABSOLUTE}")
    parser.add_argument("--lengths", default=",".join(map(str, DENSITIES)))
    parser.add_argument("--needles", type=int, default=16, help="contexts with one needle, per length")
    parser.add_argument("--windows", type=int, default=2, help="windows of held-out text, per length")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    try:
        lengths = numbers("lengths", options.lengths)
        if not set(lengths) <= set(DENSITIES):
            raise MoaError(f"lengths must be of {', '.join(map(str, DENSITIES))}, found {options.lengths}")
        profile = Profile.load(options.profile)
        absolute = None if options.absolute is None else Profile.load(options.absolute)
        if absolute is not None and {absolute.estimator(source) for source in absolute.sources} != {ABSOLUTE}:
            raise MoaError(f"{options.absolute} must be a profile made with --estimator {ABSOLUTE}")
        rows = {n: plans(profile, absolute, n) for n in lengths}
        options.results.mkdir(parents=True, exist_ok=True)
        journal = Journal(options.results / "baselines.partial")
        model, tokenizer = load_model(options.model, dtype=options.dtype)
        found: dict[str, Any] = {"rows": []}
        for n in lengths:
            part = Part(n, {"single": options.needles, "text": options.windows})
            with Bar(f"{n:,} tokens") as bar:
                measured = compare(model, tokenizer, rows[n], [part], uniform=False, journal=journal, progress=bar)
            found = {**measured, "rows": found["rows"] + measured["rows"]}
    except MoaError as error:
        print("error:", error, file=sys.stderr)
        return 2
    if set(lengths) != set(DENSITIES):
        return 0
    found["profile"] = describe(options.profile, profile)
    if absolute is not None:
        found["absolute"] = describe(options.absolute, absolute)
    found["plans"] = {f"{name} at {n}": plan.to_dict() for n in lengths for name, plan in rows[n]}
    replace_json(options.results / "baselines.json", found)
    replace_file(options.results / "baselines.md", markdown(found).encode())
    print(markdown(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
