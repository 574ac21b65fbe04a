"""Measure plans served by vLLM beside the dense model in vLLM: pages that a request holds, requests that fit.

It runs in the environment of `make vllm-env`. Each row is measured in a process of its own; with `--only`, some
rows alone. Rows that `--results` has already are not measured again. Writes serving.json and serving.md.

    .venv-vllm/bin/python benchmarks/serving.py .model/SmolLM2-135M-Instruct
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from provenance import about, provenance, write
from tables import head, line

PLANS = {"dense": None, "plan 0.5": "smollm2-135m-instruct-0.5", "plan 0.25": "smollm2-135m-instruct-0.25"}
CHUNKS = (256, 2048)


def rows() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every row: its stage, and the arguments of the stage's function."""
    yield from (("pages", {"plan": plan}) for plan in PLANS)
    yield from (("concurrency", {"plan": plan, "chunk": chunk}) for plan in PLANS for chunk in CHUNKS)


def measure(model: str, stage: str, row: dict[str, Any]) -> float:
    """Return what one row finds."""
    from serving_parts import engine

    plan = PLANS[row["plan"]]
    return engine.held(model, plan) if stage == "pages" else engine.concurrency(model, plan, row["chunk"])


def key(stage: str, row: dict[str, Any]) -> str:
    return f"{stage}: {', '.join(f'{name} {value}' for name, value in row.items())}"


def page(found: dict[str, Any]) -> str:
    """Return the table of what was measured so far."""
    lines = [about(found["run"]), "", *head(["measured", "value"])]
    lines += [line(name, f"{value:,.3f}".rstrip("0").rstrip(".")) for name, value in found["rows"].items()]
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a local folder")
    parser.add_argument("--only", nargs="+", default=[], help="texts, of which a row's name must have one")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--row", help=argparse.SUPPRESS)
    given = parser.parse_args()
    file = given.results / "serving.json"
    found = json.loads(file.read_text()) if file.exists() else {"run": provenance(), "rows": {}}
    for stage, row in rows():
        name = key(stage, row)
        if given.row == name:
            print("ROW", json.dumps(measure(given.model, stage, row)))
            return
        if given.row or name in found["rows"] or (given.only and not any(text in name for text in given.only)):
            continue
        print(name, file=sys.stderr, flush=True)
        command = [sys.executable, *sys.argv, "--row", name]
        said = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
        answer = next(text for text in said.splitlines() if text.startswith("ROW "))
        found["rows"][name] = json.loads(answer.removeprefix("ROW "))
        write(given.results, "serving", found, page(found))


if __name__ == "__main__":
    main()
