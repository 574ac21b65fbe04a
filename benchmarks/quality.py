"""What plans cost in quality: retrieval of needles and perplexity, beside dense and uniform windows.

At each length the plans are what `moa search PROFILE --lengths LENGTH` finds at densities 0.5 and 0.25 (at 4,096 tokens
only 0.25). Writes quality.json and quality.md to `--results`; every claim is in them with the figure measured for it.
Stopped at any moment, the same command goes on from `quality.partial`; several processes may take a length each, then
one takes all.

    python benchmarks/quality.py .model/SmolLM2-135M-Instruct profile.safetensors
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from tables import compared, head

from moa.cli.common import Bar, numbers
from moa.comparison import Part, compare
from moa.journal import Journal, replace_json
from moa.load import load_model
from moa.plans.errors import MoaError
from moa.plans.plan import Plan
from moa.plans.replace import replace
from moa.profiler.profile import Profile, describe
from moa.search.budget import parse
from moa.search.choose import choose
from moa.search.lengths import Lengths

HALF, QUARTER, UNIFORM = "plan 0.5", "plan 0.25", "uniform 0.25"
PARTS = {
    1024: Part(1024, single=100, four=100, windows=8),
    2048: Part(2048, single=40, four=40, windows=4),
    4096: Part(4096, single=30, four=0, windows=2),
}


def plans(profile: Profile, length: int) -> list[tuple[str, Plan]]:
    """The rows beside dense."""
    budgets = (HALF, "0.5"), (QUARTER, "0.25")
    found = [
        (row, choose(profile, [parse("density", budget)], lengths=Lengths((length,)))[0]) for row, budget in budgets
    ]
    if length == 4096:  # takes long: only what is claimed of it
        return found[1:]
    return [*found, (UNIFORM, Plan.uniform(profile.model, 0.25, at=length))]


def claims(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What must hold, and what was measured."""
    at = {(row["length"], row["row"]): row for row in rows}
    found = []

    def claim(text: str, measured: float | None, bound: float, at_most: bool = False) -> None:
        holds = measured is not None and (measured <= bound if at_most else measured >= bound)
        found.append({"claim": text, "measured": measured, "bound": bound, "holds": holds})

    for n in sorted({length for length, _ in at}):
        if n == 4096:
            claim("4096 tokens, single: 0.25 keeps of dense at least", at[n, QUARTER]["single"]["kept"], 0.9)
            continue
        half, quarter, uniform = (at[n, name] for name in (HALF, QUARTER, UNIFORM))
        for task in ("single", "four"):
            claim(f"{n} tokens, {task}: 0.5 keeps of dense at least", half[task]["kept"], 0.98)
            claim(f"{n} tokens, {task}: 0.25 keeps of dense at least", quarter[task]["kept"], 0.95)
            times = quarter[task]["right"] / max(uniform[task]["right"], 1)
            claim(f"{n} tokens, {task}: 0.25 against the uniform window, at least times", times, 2)
        against = {row["row"]: row["text"]["perplexity_against_dense"] for row in (half, quarter, uniform)}
        claim(f"{n} tokens: perplexity of 0.5 against dense at most", against[HALF], 1.015, at_most=True)
        claim(f"{n} tokens: perplexity of 0.25 against dense at most", against[QUARTER], 1.06, at_most=True)
        times = against[QUARTER] / against[UNIFORM]
        claim(f"{n} tokens: perplexity of 0.25 against the uniform window at most", times, 1, at_most=True)
    return found


def markdown(found: dict[str, Any]) -> str:
    """The page: environment, the table, retrieval by depth, the claims."""
    about = ", ".join(f"{name} {value}" for name, value in found["environment"].items())
    lines = [f"{found['model']['name']}: {about}", "", *compared(found["rows"])]
    lines += ["", "Right answers to one needle by its depth, in fifths of the text:", ""]
    lines += head(["tokens", "row", "0 to 0.2", "to 0.4", "to 0.6", "to 0.8", "to 1"])
    for row in found["rows"]:
        depths = [f"{d['right']} of {d['questions']}" for d in row["single"]["by_depth"]]
        lines.append("| " + " | ".join([f"{row['length']:,}", row["row"], *depths]) + " |")
    lines += ["", *head(["claim", "bound", "measured", "holds"])]
    for c in found["claims"]:
        measured = "-" if c["measured"] is None else f"{c['measured']:.3f}"
        lines.append(f"| {c['claim']} | {c['bound']} | {measured} | {'yes' if c['holds'] else 'no'} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("profile", type=Path)
    parser.add_argument("--lengths", default="1024,2048,4096")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    try:
        lengths = numbers("lengths", options.lengths)
        if not set(lengths) <= set(PARTS):
            raise MoaError(f"lengths must be of {', '.join(map(str, PARTS))}, found {options.lengths}")
        profile = Profile.load(options.profile)
        rows = {n: plans(profile, n) for n in lengths}
        options.results.mkdir(parents=True, exist_ok=True)
        journal = Journal(options.results / "quality.partial")
        model, tokenizer = load_model(options.model, dtype=options.dtype)
        found: dict[str, Any] = {"rows": []}
        for n in lengths:
            with Bar(f"{n:,} tokens") as bar:
                measured = compare(model, tokenizer, rows[n], [PARTS[n]], uniform=False, journal=journal, progress=bar)
            found = {**measured, "rows": found["rows"] + measured["rows"]}
    except MoaError as error:
        print("error:", error, file=sys.stderr)
        return 2
    if set(lengths) != set(PARTS):
        return 0
    found["profile"] = describe(options.profile, profile)
    found["plans"] = {f"{name} at {n}": plan.to_dict() for n in lengths for name, plan in rows[n]}
    found["claims"] = claims(found["rows"])
    replace_json(options.results / "quality.json", found)
    replace(options.results / "quality.md", markdown(found).encode())
    print(markdown(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
