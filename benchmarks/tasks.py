"""Measure plans on tasks that people know: RULER's, the pass key, key-value pairs, and the paper's lines.

RULER's two tasks of question answering need data of others and are left out. The rows are the dense model, plans at
densities 0.5 and 0.25, what a default search finds at 0.25 when a step may read 1/16 of all bytes as well, and the
uniform window that keeps as much as plan 0.25. `--half` and `--quarter` take the two main plans from their files, so
that all tables are of the same plans; else they are searched. The dense model is asked first, in a pilot of three
samples with a seed of its own: a task of which it solves less than 0.3 there is listed and not run, nor asked at longer
lengths. Writes tasks.json and tasks.md to `--results`. If it is stopped, the same command continues from
`tasks.partial`.

    make reads
    python benchmarks/tasks.py .model/SmolLM2-135M-Instruct build/reads.safetensors
"""

import argparse
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pages_parts.quality import HALF, QUARTER, UNIFORM
from pages_parts.tasks import tasks
from provenance import about, provenance, said, write

import moa
from moa.evaluation.comparison import compare
from moa.evaluation.journal import Journal
from moa.evaluation.rows import uniform_like
from moa.evaluation.samples import Part
from moa.evaluation.tasks import ruler
from moa.hf.load import load_model
from moa.plans.errors import MoaError
from moa.plans.plan import Plan
from moa.profiler.profile import Profile, describe

KNOWN = "passkey", "kv_retrieval", "line_retrieval"
TASKS = (*(task.name for task in ruler.TASKS if not task.name.startswith("qa_")), *KNOWN)
LEAST = 0.3
"""Rate of the dense model in the pilot below which a task is not run."""
PILOT, PILOT_SEED = 3, 71
SAMPLES = {2048: 10, 4096: 10, 8192: 5}
BUDGETS = {
    HALF: {"density": 0.5},
    QUARTER: {"density": 0.25},
    f"{QUARTER}, 1/16 read": {"density": 0.25, "read": 1 / 16},
}


def plans(profile: Profile, longest: int, given: Mapping[str, Path | None]) -> dict[str, Plan]:
    """Return the plans `given` as files, and what a search finds within the others' budgets at the longest length."""
    return {
        name: Plan.load(file) if (file := given.get(name)) else moa.find_plan(profile, budget, max_length=longest).plan
        for name, budget in BUDGETS.items()
    }


def asked(part: Part, dense: dict[str, Any]) -> Part:
    """Return the part without the tasks that the dense model hardly solves, by its pilot."""
    return replace(part, counts={task: count for task, count in part.counts.items() if dense[task]["rate"] >= LEAST})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("profile", type=Path, help="made with --reads")
    parser.add_argument("--half", type=Path, help="file of plan 0.5, else it is searched")
    parser.add_argument("--quarter", type=Path, help="file of plan 0.25, else it is searched")
    parser.add_argument("--lengths", type=int, nargs="+", default=list(SAMPLES), choices=SAMPLES)
    parser.add_argument("--samples", type=int, help="samples of each task, in place of the full numbers")
    parser.add_argument("--tasks", nargs="+", default=TASKS, choices=TASKS)
    parser.add_argument("--longest", type=int, default=8192, help="longest intended length")
    parser.add_argument("--seed", type=int, default=72)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    pilots: list[dict[str, Any]] = []
    try:
        profile = Profile.load(options.profile)
        found = plans(profile, options.longest, {HALF: options.half, QUARTER: options.quarter})
        options.results.mkdir(parents=True, exist_ok=True)
        journal = Journal(options.results / "tasks.partial")
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
        "profile": describe(options.profile, profile), "plans": {name: plan.to_dict() for name, plan in found.items()},
    }  # fmt: skip
    write(options.results, "tasks", result, f"{about(result['run'])}\n\n{tasks(result)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
