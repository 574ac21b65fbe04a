"""Measure shipped plans (`plans/library`) beside the dense model: needles, and perplexity of held-out text.

Samples are those of `elastic.py`, by a seed of its own. Where a plan reads less than it keeps, all rows also get
perplexity as decoded, on as many windows. Writes library.json and library.md to `--results`, from which the evidence
beside each plan is made. If it is stopped, the same command continues from `library.partial`.

    python benchmarks/library.py .model/SmolLM2-135M-Instruct
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from elastic import PARTS, sized
from provenance import about, provenance, said, write
from tables import compared

from moa.evaluation.comparison import compare
from moa.evaluation.journal import Journal
from moa.evaluation.samples import Part
from moa.hf.load import load_model
from moa.plans.errors import MoaError
from moa.plans.file import shipped
from moa.plans.plan import Plan


def part(length: int, contexts: int | None, reads: bool) -> Part:
    """Return what is asked at a length: `contexts` of each kind, not the full number; text is decoded if `reads`."""
    whole = sized(length, contexts)
    return replace(whole, counts=whole.counts | {"decoded": whole.counts["text"]}) if reads else whole


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--plans", nargs="+", metavar="NAME", default=sorted(shipped()), help="default: all")
    parser.add_argument("--lengths", type=int, nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--contexts", type=int, help="contexts of each kind, in place of the full numbers")
    parser.add_argument("--seed", type=int, default=61)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    try:
        plans = {name: Plan.load(name) for name in options.plans}
        model, tokenizer = load_model(options.model, dtype=options.dtype, device="cpu")
        reads = any(plan.reads() for plan in plans.values())
        options.results.mkdir(parents=True, exist_ok=True)
        parts = [part(n, options.contexts, reads) for n in sorted(set(options.lengths))]
        rows = compare(
            model, tokenizer, list(plans.items()), parts, uniform=False, seed=options.seed,
            journal=Journal(options.results / "library.partial"), progress=said("shipped plans"),
        )["rows"]  # fmt: skip
    except MoaError as error:
        print("error:", error, file=sys.stderr)
        return 2
    found = {
        "run": provenance(model, seed=options.seed, runs=1), "rows": rows,
        "plans": {name: plan.to_dict() for name, plan in plans.items()},
    }  # fmt: skip
    write(options.results, "library", found, "\n".join([about(found["run"]), "", *compared(rows)]) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
