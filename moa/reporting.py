"""Provide `moa.write_report`, which writes a page about what `moa.compress` found."""

import json
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from moa.evaluation.summary import table
from moa.outcome import numbers, verdict
from moa.outputs import read_result, writable
from moa.plans.errors import MoaError
from moa.plans.plan import Plan
from moa.plans.replace import replace
from moa.report.page import Content, Table, is_page, page
from moa.report.plots import library

KEYS = ("model", "environment", "plan", "memory", "quality", "speed", "gains", "rows", "asked", "profile", "seconds")
"""What a page needs of `figures.json`."""


def write_report(folder: str | PathLike[str]) -> Path:
    """Write `report.html` in a folder of `moa.compress`: one file that needs no network.

    Args:
        folder: The folder; the page is made of its `plan.yaml` and `figures.json`.

    Returns:
        The page.

    Raises:
        MoaError: The folder is of something else or not finished.
    """
    place = Path(folder)
    path = place / "report.html"
    figures = read_result(place / "figures.json", KEYS, "moa compress")
    plan = Plan.load(place / "plan.yaml")
    if plan.fingerprint() != figures["plan"]:
        raise MoaError(f"{place / 'plan.yaml'} has other rules than those that figures.json is about")
    writable(path, "report", is_page)
    script = library()
    try:
        text = page(plan, _content(place, plan, figures), script)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):  # figures of other kinds or shapes
        raise MoaError(
            f"{place / 'figures.json'} is damaged: a figure is missing or of another kind; the same moa compress "
            "writes the file again"
        ) from None
    replace(path, text.encode())
    return path


def _content(folder: Path, plan: Plan, figures: Mapping[str, Any]) -> Content:
    name = figures["model"]["name"]
    budgets = ", ".join(f"{kind} {figure}" for kind, figure in figures["asked"]["budgets"].items())
    lines = [line.partition(": ")[2] for line in numbers(figures)]
    return Content(
        f"{name} under a plan, budget {budgets}", list(zip(_cards(figures), lines, strict=True)), verdict(figures),
        figures["rows"], table(figures["rows"]), _predicted(figures), _origin(plan, figures),
        _commands(folder, figures),
    )  # fmt: skip


def _cards(figures: Mapping[str, Any]) -> list[str]:
    """Return the three numbers: of memory, of quality, and of speed or what is read."""
    quality, times = figures["quality"], figures["speed"]["times"]
    kept = f"{quality['right'] / quality['dense_right']:.0%} of needles" if quality["dense_right"] else (
        f"{quality['perplexity_against_dense']:.3f} x perplexity"
    )  # fmt: skip
    faster = f"{times[0]['dense'] / times[0]['predicted']:.2f} x as fast" if times else (
        f"{figures['speed']['read']:.0%} of reads"
    )  # fmt: skip
    return [f"{figures['memory']['share']:.0%} of memory", kept, faster]


def _predicted(figures: Mapping[str, Any]) -> Table:
    """Return predicted beside measured: the cache of each length, times, and the profile's seconds."""
    rows = []
    for row in figures["rows"]:
        if row["row"] == "plan" and "cache" in row:
            mine, its = (row["cache"][part] / 2**20 for part in ("predicted", "allocated"))
            rows.append([f"KV cache at {row['cache']['tokens']:,} tokens", "MiB", f"{mine:.2f}", f"{its:.2f}"])
    for time in figures["speed"]["times"]:
        what = f"{time['kind']} of {time['batch']} x {time['length']:,} tokens"
        measured = "-" if time["measured"] is None else f"{time['measured']:.1f}"
        rows.append([what, "ms", f"{time['predicted']:.1f}", measured])
    if "profile" in figures["seconds"]:
        took = f"{figures['seconds']['profile']:.0f}"
        rows.append(["profile", "s", f"{figures['profile']['seconds']:.0f}", took])
    return ["what", "unit", "predicted", "measured"], rows


def _origin(plan: Plan, figures: Mapping[str, Any]) -> Table:
    about = plan.provenance.model_dump(mode="json", exclude_none=True) if plan.provenance else {}
    seconds = ", ".join(f"{stage} {taken:.0f} s" for stage, taken in figures["seconds"].items())
    asked, environment = figures["asked"], figures["environment"]
    lengths = ", ".join(f"{n:,}" for n in figures["profile"]["lengths"])
    samples = f"{figures['profile']['samples']} per source at {lengths} tokens"
    rows = {
        "model": f"{figures['model']['name']}, {figures['model']['architecture']}", "weights": asked["weights"],
        "plan's fingerprint": figures["plan"], **about, "samples of the profile": samples, "time": seconds,
        **environment,
    }  # fmt: skip
    return ["what", ""], [[key, str(value)] for key, value in rows.items()]


def _commands(folder: Path, figures: Mapping[str, Any]) -> list[str]:
    names = {"density": "budget", "kv_gb": "max-kv-gb", "decode_ms": "max-decode-ms"}
    budgets = "".join(
        f" --{names.get(kind, kind)} {figure}"
        for kind, figures_ in figures["asked"]["budgets"].items()
        for figure in (figures_ if isinstance(figures_, list) else [figures_])
    )
    return [
        f"moa compress MODEL -o {folder}{budgets} --minutes {figures['asked']['minutes']:g}",
        f"moa show {folder / 'plan.yaml'}",
        f"moa bench MODEL --plan {folder / 'plan.yaml'}",
        "",
        "import moa",
        'model, tokenizer = moa.load_model("MODEL")',
        f"with moa.apply(model, {json.dumps(str(folder / 'plan.yaml'))}):",
        "    model.generate(**inputs)",
    ]
