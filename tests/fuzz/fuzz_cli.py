"""Generated command lines against the rule: right, or one clear line on stderr with exit code 2.

Never a traceback, never a changed answer. A case is a plain line of one command, which succeeds, and one to three
changes drawn from its seed: to the line, to a file that it reads, to the checkpoint's own settings. Changes that must
not change the answer are checked against the plain line's. Everything runs in this process, on a tiny random model.

    python tests/fuzz/fuzz_cli.py --seeds 0:250 -o build/fuzz-cli/0.json    run 250 cases; exit code 1 if one fails
    python tests/fuzz/fuzz_cli.py --seed 17                                 one case, shrunk to the changes that matter
    python tests/fuzz/fuzz_cli.py --sum build/fuzz-cli/*.json -o RESULTS.json    several results of one commit as one
"""

import argparse
import json
import os
import resource
import shlex
import sys
import tempfile
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

from fuzz_parts.cases import Base, Case, draw
from fuzz_parts.rule import Outcome, judge
from fuzz_parts.workplace import make
from provenance import provenance

from moa.plans.errors import MoaError

MEMORY = 8 * 2**30
"""Bytes that a case may not pass: what a document claims must not decide what is allocated."""


def said(case: Case, problems: list[str], found: Outcome) -> str:
    """A case in words."""
    changes = "; ".join(change.what for change in case.changes)
    return (
        f"seed {case.seed}: moa {shlex.join(case.line)}\n  [{changes}]\n  {'; '.join(problems)}\n  {found.err[-300:]}"
    )


def shrunk(case: Case, workplace: Path, plain: dict[Base, Any]) -> Case:
    """The case with only the changes that it takes to fail."""
    for change in case.changes:
        less = replace(case, changes=tuple(c for c in case.changes if c is not change))
        if less.changes and judge(less, workplace, plain)[1]:
            case = less
    return case


def run(seeds: range, workplace: Path) -> dict[str, Any]:
    """Judge every seed; failures are printed as they come."""
    plain: dict[Base, Any] = {}
    counts: Counter[tuple[str, str]] = Counter()
    failures: list[dict[str, Any]] = []
    began, compared = time.time(), 0
    for seed in seeds:
        case = draw(seed)
        outcome, problems, found = judge(case, workplace, plain)
        counts[case.base.command, outcome] += 1
        compared += outcome == "right" and {change.effect for change in case.changes} == {"same"}
        if problems:
            case = shrunk(case, workplace, plain)
            print(said(case, problems, found), flush=True)
            failures.append({"seed": seed, "line": shlex.join(case.line), "changes": [c.what for c in case.changes],
                             "problems": problems, "error": found.err[-300:]})  # fmt: skip
    commands = sorted({command for command, _ in counts})
    return {
        "run": provenance(), "seeds": [seeds.start, seeds.stop], "seconds": round(time.time() - began, 1),
        "commands": {c: {o: counts[c, o] for o in ("right", "refused")} for c in commands}, "compared": compared,
        "failures": failures,
    }  # fmt: skip


def summed(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """Several runs as one: the same commit and versions, seeds that follow one another."""
    parts = sorted(parts, key=lambda part: part["seeds"])
    first, *others = parts
    for before, part in zip(parts, others, strict=False):
        if before["seeds"][1] != part["seeds"][0]:
            raise MoaError(f"seeds must follow one another, found {before['seeds']} and then {part['seeds']}")
    for part in others:
        for name, value in first["run"].items():
            if name not in ("command", "date") and part["run"].get(name) != value:
                raise MoaError(f"results must be of one {name}, found {value} and {part['run'].get(name)}")
    total: dict[str, Counter[str]] = {}
    for part in parts:
        for command, counts in part["commands"].items():
            total.setdefault(command, Counter()).update(counts)
    return {
        "run": provenance() | {"commit": first["run"]["commit"]},  # of the code that ran the cases
        "seeds": [first["seeds"][0], parts[-1]["seeds"][1]],
        "seconds": round(sum(part["seconds"] for part in parts), 1),
        "commands": {command: dict(total[command]) for command in sorted(total)},
        "compared": sum(part["compared"] for part in parts),
        "cases": sum(sum(counts.values()) for counts in total.values()),
        "failures": [failure for part in parts for failure in part["failures"]],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0:250", help="FROM:TO")
    parser.add_argument("--seed", type=int, help="one case")
    parser.add_argument("--sum", nargs="*", type=Path, help="results to add up")
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    options.output = options.output and options.output.resolve()  # cases change the folder
    if options.sum:
        try:
            found = summed([json.loads(path.read_text()) for path in options.sum])
        except MoaError as error:
            print("error:", error, file=sys.stderr)
            return 2
    else:
        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
        first, last = (
            (options.seed, options.seed + 1) if options.seed is not None else map(int, options.seeds.split(":"))
        )
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            workplace = make(Path(folder))
            found = run(range(first, last), workplace)
            os.chdir("/")
    print(json.dumps({key: value for key, value in found.items() if key != "failures"}))
    if options.output:
        options.output.write_text(json.dumps(found, indent=1) + "\n")
    return 1 if found["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())
