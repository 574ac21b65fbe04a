"""Show a front of plans as a table and a picture."""

from collections.abc import Mapping
from io import StringIO
from pathlib import Path

from rich.console import Console

from moa.plans.replace import replace
from moa.report.figures import Figures
from moa.report.plan import canvas, save
from moa.search.cost import Costs, Work
from moa.search.front import Point

WIDTH = 160
"""Columns of the table in a file."""


def figures(point: Point, n: int, costs: Costs | None) -> dict[str, float]:
    """Return what a plan costs for one sequence of `n` tokens; times where they were measured."""
    found = {
        "density": point.plan.density(n),
        "KV cache, MiB": point.plan.kv_bytes(n, dtype=point.plan.kv_dtype) / 2**20,
    }
    for kind in ("decode", "prefill"):
        if costs is not None and kind in costs.terms:
            found[f"{kind}, ms"] = costs.predict(point.plan, Work(kind, n))
    return found


def table(points: Mapping[str, Point], n: int, costs: Costs | None) -> Figures:
    """Return a table with one row per plan, dense first."""
    rows = {name: figures(point, n, costs) for name, point in points.items()}
    columns = list(next(iter(rows.values())))
    dtype = next(iter(points.values())).plan.kv_dtype
    title = f"Front, costs at {n:,} tokens, 1 sequence, KV cache in {dtype}"
    shown = []
    for name, row in sorted(rows.items(), key=lambda each: points[each[0]].solution.value):
        point = points[name]
        cells = (f"{row[column]:.4g}" for column in columns)
        shown.append([name, str(point.budget), f"{point.solution.value:.4g}", f"{point.solution.gap:.0e}", *cells])
    return Figures(["plan", "budget", "harm", "gap", *columns], shown, title, names=2)


def write(shown: Figures, path: Path) -> None:
    """Write a table as text, whole or not at all."""
    drawn = StringIO()
    Console(file=drawn, width=WIDTH).print(shown)
    replace(path, drawn.getvalue().encode())


def picture(points: Mapping[str, Point], n: int, costs: Costs | None, path: Path) -> None:
    """Write a PNG: harm against density, memory and, where measured, times.

    Raises:
        MoaError: matplotlib is not installed.
        OSError: The file cannot be written.
    """
    rows = [figures(point, n, costs) for point in points.values()]
    harm = [point.solution.value for point in points.values()]
    figure = canvas((3.5 * len(rows[0]), 3.2))
    panels = figure.subplots(1, len(rows[0]), sharey=True, squeeze=False)[0]
    for panel, name in zip(panels, rows[0], strict=True):
        panel.plot([row[name] for row in rows], harm, marker="o", markersize=3, linewidth=1)
        panel.set_xlabel(f"{name}, {n:,} tokens", fontsize=8)
        panel.set_xlim(left=0)
        panel.grid(linewidth=0.3)
    panels[0].set_ylabel("predicted harm (objective)", fontsize=8)
    save(figure, path)
