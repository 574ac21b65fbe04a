"""Read result files, and write tables, sentences and the line that says how a result file was made."""

import json
import textwrap
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from tables import head, line

Figures = dict[str, Any]

RESULTS = Path(__file__).parents[1] / "results"
SAID = "vectors", "seed", "python", "moa-attention", "torch", "transformers", "scipy", "triton"
"""Entries of a run that are shown under their own names."""
MIB = 2**20


@cache
def load(name: str) -> Figures:
    """Return the result file of that name, given without its ending."""
    found: Figures = json.loads((RESULTS / f"{name}.json").read_text())
    return found


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    return "\n".join([*head(columns), *(line(*row) for row in rows)])


def wrapped(text: str) -> str:
    """Return a paragraph in lines of 120 characters at most."""
    return textwrap.fill(" ".join(text.split()), 120, break_long_words=False, break_on_hyphens=False)


def listed(parts: Sequence[str]) -> str:
    """Return `a, b and c`."""
    return " and ".join(filter(None, [", ".join(parts[:-1]), parts[-1]]))


def percent(*shares: float) -> str:
    """Return one share as `93 %`, several as `93 to 99 %`."""
    low, high = (f"{100 * share:.0f}" for share in (min(shares), max(shares)))
    return f"{low} %" if low == high else f"{low} to {high} %"


def exact(share: float) -> str:
    """Return a share as `11.4 %`."""
    return f"{100 * share:.1f} %"


def span(values: Sequence[float], form: str) -> str:
    """Return `1.23 to 1.34`, or one of them where both look alike."""
    low, high = (format(value, form) for value in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"


def counted(found: Figures) -> tuple[str, list[Figures]]:
    """Return how many aims are met, and those that are not."""
    every, missed = found["claims"], [claim for claim in found["claims"] if not claim["holds"]]
    return f"{len(every) - len(missed)} of {len(every)} aims are met", missed


def aims_met(found: Figures) -> str:
    """Return how many aims are met, and where those stand that are not."""
    text, missed = counted(found)
    return f"{text}; [results](docs/results.md) lists the others." if missed else f"{text}."


def claims(found: Figures) -> str:
    """Return how many aims are met, and a table of those that are not, with bound and measured value."""
    text, missed = counted(found)
    if not missed:
        return f"{text}."
    rows = [
        [claim["claim"], f"{claim['bound']:.4g}", "-" if (value := claim["measured"]) is None else f"{value:.4g}"]
        for claim in missed
    ]
    return f"{text}; these are not:\n\n{table(['aim', 'bound', 'measured'], rows)}"


def missing(name: str, target: str = "bench") -> str:
    """Return what stands in place of a file's figures before it is measured, by that target of the Makefile."""
    return f"Not measured yet: `make {target}` writes benchmarks/results/{name}.json."


def made(name: str, found: Figures) -> str:
    """Return a line that says how the file was made: command, commit, date, device, threads, dtype, versions."""
    origin = f"[{name}.json](benchmarks/results/{name}.json)"
    run = found["run"]
    where = [str(run["date"]), str(run["device"])]
    where.append(f"{run['threads']} threads" if run["threads"] != 1 else "1 thread")
    where += [str(run["dtype"]).removeprefix("torch.")] if "dtype" in run else []
    where += [f"back-end `{run['backend']}`"] if "backend" in run else []
    where += [f"seeds {', '.join(map(str, run['seeds']))}"] if "seeds" in run else []
    where += [f"{key} {run[key]}" for key in SAID if key in run]
    by = f"`{run['command']}` at commit {run['commit']}"
    return wrapped(f"Data: {origin}, written by {by} ({', '.join(where)}).")
