"""Write result files, with what they say of the run that wrote them."""

import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from os.path import relpath
from pathlib import Path
from time import monotonic
from typing import Any

import torch

from moa.hf.environment import environment
from moa.plans.replace import replace, replace_json

ROOT = Path(__file__).parents[1]


def provenance(
    model: Any = None, backend: str | None = None, *, seed: int | Sequence[int] | None = None, runs: int | None = None
) -> dict[str, Any]:  # fmt: skip
    """Return command, commit (`+` where files differ from it), date, machine and versions of this run.

    Args:
        model: The loaded model that was measured, whose dtype and back-end are in the result.
        backend: Back-end of its plans, None for the device's own.
        seed: Of all that was drawn, under `seed`; several are under `seeds`. None where nothing was.
        runs: How often each figure was measured; None where figures differ in it, or nothing was measured.
    """

    def git(*command: str) -> str:
        return subprocess.run(["git", *command], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    changed = "+" if git("status", "--porcelain", "--untracked-files=no") else ""
    return {
        "command": " ".join(["python", relpath(sys.argv[0], ROOT), *sys.argv[1:]]),
        "commit": git("rev-parse", "--short=12", "HEAD") + changed,
        "date": date.today().isoformat(),
        "vectors": torch.backends.cpu.get_cpu_capability(),
        **environment(model, backend),
        **({} if seed is None else {"seed": seed} if isinstance(seed, int) else {"seeds": list(seed)}),
        **({} if runs is None else {"runs": runs}),
    }


def place(run: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of `provenance` that a time depends on: a journal must not mix times of different places."""
    return {name: value for name, value in run.items() if name not in ("command", "date", "runs")}


def about(run: Mapping[str, Any]) -> str:
    """Return `provenance` as the line that a page begins with."""
    return f"`{run['command']}`: " + ", ".join(f"{name} {value}" for name, value in run.items() if name != "command")


def write(folder: Path, name: str, found: Any, page: str) -> None:
    """Write NAME.json and NAME.md to a folder, and print the page."""
    folder.mkdir(parents=True, exist_ok=True)
    replace_json(folder / f"{name}.json", found)
    replace(folder / f"{name}.md", page.encode())
    print(page)


def said(title: str) -> Callable[[int, int, str], None]:
    """Return a progress callable that prints a line per step, in files as on terminals, with the minutes left."""
    began = monotonic()

    def say(done: int, total: int, what: str) -> None:
        left = (monotonic() - began) * (total - done) / max(done, 1) / 60
        print(f"{title}: {what}: {done / total:.0%}, {left:.0f} minutes left", file=sys.stderr, flush=True)

    return say
