"""Provide `moa.write_report` and `moa.write_pictures`: a page about what `moa.compress` found, and PNG files."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any

from moa.evaluation.summary import table
from moa.outcome import numbers, verdict
from moa.outputs import read_result, writable
from moa.plans.errors import MoaError
from moa.plans.plan import Plan
from moa.plans.replace import replace
from moa.report.commands import python, shell
from moa.report.page import Content, is_page, page, shown
from moa.report.pictures import pictures
from moa.report.plan import is_png
from moa.report.plots import library
from moa.report.series import Table

KEYS = (
    "model", "environment", "plan", "memory", "quality", "speed", "gains", "rows", "asked", "profile", "evaluation",
    "seconds",
)  # fmt: skip
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
    plan, figures = _read(place)
    writable(path, "report", is_page)
    script = library()
    with _damage(place):
        text = page(plan, _content(place, plan, figures), script)
    replace(path, text.encode())
    return path


def write_pictures(folder: str | PathLike[str]) -> list[Path]:
    """Write the pictures of a folder of `moa.compress` as PNG files beside its page.

    Args:
        folder: The folder; the pictures are made of its `plan.yaml` and `figures.json`.

    Returns:
        The files: `report-heat-map.png`, `-growth`, `-front`, `-needles` and `-perplexity`.

    Raises:
        MoaError: The folder is of something else or not finished, or matplotlib is not installed.
    """
    place = Path(folder)
    plan, figures = _read(place)
    with _damage(place):
        drawn = pictures(plan, figures["rows"], figures.get("front"), shown(plan, figures["rows"]))
        paths = {place / f"report-{name}.png": draw for name, draw in drawn.items()}
        for path in paths:
            writable(path, "PNG", is_png)
        for path, draw in paths.items():
            draw(path)
    return list(paths)


def _read(place: Path) -> tuple[Plan, dict[str, Any]]:
    figures = read_result(place / "figures.json", KEYS, "moa compress")
    plan = Plan.load(place / "plan.yaml")
    if plan.fingerprint() != figures["plan"]:
        raise MoaError(f"{place / 'plan.yaml'} has other rules than those that figures.json is about")
    return plan, figures


@contextmanager
def _damage(place: Path) -> Iterator[None]:
    """Say of figures of other kinds or shapes that the file is damaged."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        if isinstance(error, MoaError):
            raise
        raise MoaError(
            f"{place / 'figures.json'} is damaged: a figure is missing or of another kind; the same moa compress "
            "writes the file again"
        ) from None


def _content(folder: Path, plan: Plan, figures: Mapping[str, Any]) -> Content:
    name = figures["model"]["name"]
    budgets = ", ".join(f"{kind} {figure}" for kind, figure in figures["asked"]["budgets"].items())
    lines = [line.partition(": ")[2] for line in numbers(figures)]
    return Content(
        f"{name} under a plan, budget {budgets}", list(zip(_cards(figures), lines, strict=True)), verdict(figures),
        figures["rows"], table(figures["rows"]), figures.get("front"), _predicted(figures), _origin(plan, figures),
        [*shell(folder, figures), "", *python(folder, figures)],
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
    """Return predicted beside measured, dense's too: the cache of each length, times, and the profile's seconds."""
    rows = []
    dense = {
        row["length"]: row["cache"]["allocated"] for row in figures["rows"] if row["row"] == "dense" and "cache" in row
    }
    for row in figures["rows"]:
        if row["row"] == "plan" and "cache" in row:
            sizes = (*(row["cache"][part] for part in ("predicted", "allocated")), dense.get(row["length"]))
            cells = ("-" if size is None else f"{size / 2**20:.2f}" for size in sizes)
            rows.append([f"KV cache at {row['cache']['tokens']:,} tokens", "MiB", *cells])
    for time in figures["speed"]["times"]:
        what = f"{time['kind']} of {time['batch']} x {time['length']:,} tokens, within the budget"
        rows.append([what, "ms", f"{time['predicted']:.1f}", _cell(time["measured"]), "-"])
    for run in figures.get("runs") or ():
        what = f"{run['kind']} of {run['batch']} x {run['length']:,} tokens"
        rows.append([what, "ms", *(_cell(run[part]) for part in ("predicted", "plan", "dense"))])
    if "profile" in figures["seconds"]:
        took = f"{figures['seconds']['profile']:.0f}"
        rows.append(["profile", "s", f"{figures['profile']['seconds']:.0f}", took, "-"])
    return ["what", "unit", "predicted", "measured", "dense, measured"], rows


def _cell(figure: float | None) -> str:
    return "-" if figure is None else f"{figure:.1f}"


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
