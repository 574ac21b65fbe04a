"""Measure plans on tasks that people know: RULER's, the pass key, key-value pairs, and the paper's lines.

RULER's two tasks of question answering need data of others and are left out. The rows are the dense model, the shipped
plans of densities 0.5 and 0.25, one that keeps at most 0.25 and reads 1/16 of all bytes in a step, and the uniform
window that keeps as much as plan 0.25. The dense model is asked first, in a pilot of three samples with a seed of its
own: a task of which it solves less than 0.3 there is listed and not run, nor asked at longer lengths. Writes NAME.json
and NAME.md to `--results`. If it is stopped, the same command continues from `NAME.partial`.

    python benchmarks/tasks.py .model/SmolLM2-135M-Instruct
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from pages_parts.quality import HALF, QUARTER, UNIFORM
from pages_parts.tasks import tasks
from provenance import about, provenance, said, write

from moa.evaluation.comparison import compare
from moa.evaluation.journal import Journal
from moa.evaluation.rows import uniform_like
from moa.evaluation.samples import Part
from moa.evaluation.tasks import ruler
from moa.hf.load import load_model
from moa.plans.errors import MoaError
from moa.plans.plan import Plan

KNOWN = "passkey", "kv_retrieval", "line_retrieval"
TASKS = (*(task.name for task in ruler.TASKS if not task.name.startswith("qa_")), *KNOWN)
LEAST = 0.3
"""Rate of the dense model in the pilot below which a task is not run."""
PILOT, PILOT_SEED = 3, 71
SAMPLES = {2048: 10, 4096: 10, 8192: 5}
READING = f"{QUARTER}, 1/16 read"


def asked(part: Part, dense: dict[str, Any]) -> Part:
    """Return the part without the tasks that the dense model hardly solves, by its pilot."""
    return replace(part, counts={task: count for task, count in part.counts.items() if dense[task]["rate"] >= LEAST})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--half", default="smollm2-135m-instruct-0.5", help="plan 0.5: its name or file")
    parser.add_argument("--quarter", default="smollm2-135m-instruct-0.25", help="plan 0.25")
    parser.add_argument("--reading", default="smollm2-135m-instruct-0.25-read-0.0625", help="that with reads of 1/16")
    parser.add_argument("--lengths", type=int, nargs="+", default=list(SAMPLES), choices=SAMPLES)
    parser.add_argument("--samples", type=int, help="samples of each task, in place of the full numbers")
    parser.add_argument("--tasks", nargs="+", default=TASKS, choices=TASKS)
    parser.add_argument("--seed", type=int, default=72)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--name", default="tasks", help="name of the results")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    pilots: list[dict[str, Any]] = []
    try:
        given = {HALF: options.half, QUARTER: options.quarter, READING: options.reading}
        found = {name: Plan.load(source) for name, source in given.items()}
        options.results.mkdir(parents=True, exist_ok=True)
        journal = Journal(options.results / f"{options.name}.partial")
        model, tokenizer = load_model(options.model, dtype=options.dtype, device="cpu")
        solved = options.tasks
        for n in sorted(set(options.lengths)):
            count = options.samples or SAMPLES[n]
            part = Part(n, dict.fromkeys(solved, count))
            pilot = replace(part, counts=dict.fromkeys(part.counts, min(PILOT, count)))
            how: Any = {"uniform": False, "journal": journal}
            pilots += compare(
                model, tokenizer, [], [pilot], seed=PILOT_SEED, progress=said(f"{n:,} tokens, pilot"), **how
            )["rows"]  # fmt: skip
            part = asked(part, pilots[-1])
            if not (solved := list(part.counts)):
                break
            beside = [*found.items(), (UNIFORM, uniform_like(found[QUARTER], n))]
            rows += compare(
                model, tokenizer, beside, [part], seed=options.seed, progress=said(f"{n:,} tokens"), **how
            )["rows"]  # fmt: skip
    except MoaError as error:
        print("error:", error, file=sys.stderr)
        return 2
    result = {
        "run": provenance(model, seed=[PILOT_SEED, options.seed], runs=1), "rows": rows, "pilots": pilots,
        "plans": {name: plan.to_dict() for name, plan in found.items()},
    }  # fmt: skip
    write(options.results, options.name, result, f"{about(result['run'])}\n\n{tasks(result)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
