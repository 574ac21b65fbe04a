"""What the plans cost in quality: retrieval of needles and perplexity, beside dense and uniform windows.

Writes quality.json and quality.md to `--results`; every claim is in them with the figure measured for it. Stopped at
any moment, the same command goes on from `quality.partial`.

    python benchmarks/quality.py .model/SmolLM2-135M-Instruct --half demo/plan-0.5.yaml --quarter demo/plan-0.25.yaml
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from moa.cli.common import Bar
from moa.cli.eval import COLUMNS, cells
from moa.comparison import Part, compare
from moa.journal import Journal, replace_json
from moa.load import load_model
from moa.plans.errors import MoaError
from moa.plans.plan import Plan

HALF, QUARTER, UNIFORM = "plan 0.5", "plan 0.25", "uniform like plan 0.25"
BOTH = [Part(1024, single=100, four=25, windows=8), Part(2048, single=40, four=10, windows=4)]
LONG = [Part(4096, single=30, four=0, windows=2)]


def claims(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What must hold, and what was measured."""
    at = {(row["length"], row["row"]): row for row in rows}
    found = []

    def claim(text: str, measured: float | None, bound: float, at_most: bool = False) -> None:
        holds = measured is not None and (measured <= bound if at_most else measured >= bound)
        found.append({"claim": text, "measured": measured, "bound": bound, "holds": holds})

    for n in (1024, 2048):
        half, quarter, uniform = (at[n, name] for name in (HALF, QUARTER, UNIFORM))
        for task in ("single", "four"):
            claim(f"{n} tokens, {task}: 0.5 keeps of dense at least", half[task]["kept"], 0.98)
            claim(f"{n} tokens, {task}: 0.25 keeps of dense at least", quarter[task]["kept"], 0.95)
            times = quarter[task]["right"] / max(uniform[task]["right"], 1)
            claim(f"{n} tokens, {task}: 0.25 against its uniform twin, at least times", times, 2)
        ratio = {row["row"]: row["text"]["perplexity_against_dense"] for row in (half, quarter, uniform)}
        claim(f"{n} tokens: perplexity of 0.5 against dense at most", ratio[HALF], 1.015, at_most=True)
        claim(f"{n} tokens: perplexity of 0.25 against dense at most", ratio[QUARTER], 1.06, at_most=True)
        claim(
            f"{n} tokens: perplexity of 0.25 against its uniform twin at most", ratio[QUARTER] / ratio[UNIFORM], 1, True
        )
    claim("4096 tokens, single: 0.25 keeps of dense at least", at[4096, QUARTER]["single"]["kept"], 0.9)
    return found


def markdown(found: dict[str, Any]) -> str:
    """The page: environment, the table, retrieval by depth, the claims."""
    about = ", ".join(f"{name} {value}" for name, value in found["environment"].items())
    lines = [f"{found['model']['name']}: {about}", "", *_table([*COLUMNS, "kept of dense, one / four"])]
    for row in found["rows"]:
        kept = [f"{row[t]['kept']:.2f}" if t in row and row[t]["kept"] is not None else "-" for t in ("single", "four")]
        lines.append("| " + " | ".join([*cells(row), " / ".join(kept)]) + " |")
    lines += ["", "Right answers to one needle by its depth, in fifths of the text:", ""]
    lines += _table(["tokens", "row", "0 to 0.2", "to 0.4", "to 0.6", "to 0.8", "to 1"])
    for row in found["rows"]:
        depths = [f"{d['right']} of {d['questions']}" for d in row["single"]["by_depth"]]
        lines.append("| " + " | ".join([f"{row['length']:,}", row["row"], *depths]) + " |")
    lines += ["", *_table(["claim", "bound", "measured", "holds"])]
    for c in found["claims"]:
        measured = "-" if c["measured"] is None else f"{c['measured']:.3f}"
        lines.append(f"| {c['claim']} | {c['bound']} | {measured} | {'yes' if c['holds'] else 'no'} |")
    return "\n".join(lines) + "\n"


def _table(columns: list[str]) -> list[str]:
    return [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--half", default="demo/plan-0.5.yaml", help="plan of density 0.5")
    parser.add_argument("--quarter", default="demo/plan-0.25.yaml", help="plan of density 0.25")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    try:
        half, quarter = (HALF, Plan.load(options.half)), (QUARTER, Plan.load(options.quarter))
        options.results.mkdir(parents=True, exist_ok=True)
        journal = Journal(options.results / "quality.partial")
        model, tokenizer = load_model(options.model, dtype=options.dtype)
        with Bar("1,024 and 2,048") as bar:
            found = compare(model, tokenizer, [half, quarter], BOTH, journal=journal, progress=bar)
        with Bar("4,096") as bar:
            found["rows"] += compare(model, tokenizer, [quarter], LONG, journal=journal, progress=bar)["rows"]
    except MoaError as error:
        print("error:", error, file=sys.stderr)
        return 2
    found["plans"] = {name: plan.to_dict() for name, plan in (half, quarter)}
    found["claims"] = claims(found["rows"])
    replace_json(options.results / "quality.json", found)
    (options.results / "quality.md").write_text(markdown(found))
    print(markdown(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
