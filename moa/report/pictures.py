"""Draw the pictures of a report as PNG files, with matplotlib."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from moa.plans.plan import Plan
from moa.report import series
from moa.report.plan import canvas, picture, save
from moa.report.series import Rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DASHES = {"solid": "-", "dash": "--", "dot": ":"}
SMALL = 8
"""Size of letters, points."""


def pictures(
    plan: Plan, rows: Rows, found: Mapping[str, Any] | None, lengths: tuple[int, ...]
) -> dict[str, Callable[[Path], None]]:
    """Return what draws each picture into a file, by name; those of which there are no figures are left out.

    Args:
        plan: The plan.
        rows: Rows of its evaluation.
        found: The plan among those of other budgets, as in `figures.json`.
        lengths: Lengths of the maps, tokens.
    """
    needles = [row for row in rows if any(task in row for task in series.NEEDLES)]
    texts = [row for row in rows if "text" in row]
    drawn: dict[str, Callable[[Path], None]] = {
        "heat-map": partial(picture, {"plan": plan}, lengths), "growth": partial(_growth, plan, lengths[-1])
    }  # fmt: skip
    drawn |= {"front": partial(_front, found)} if found is not None else {}
    drawn |= {"needles": partial(_needles, needles)} if needles else {}
    return drawn | ({"perplexity": partial(_perplexities, texts)} if texts else {})


def _growth(plan: Plan, longest: int, path: Path) -> None:
    figure = canvas((6.0, 4.0))
    panel = figure.subplots()
    for curve in series.growth(plan, longest):
        _line(panel, curve)
    panel.set(xscale="log", yscale="log")
    _named(panel, "tokens of text", "keys seen")
    panel.legend(fontsize=SMALL)
    save(figure, path)


def _front(found: Mapping[str, Any], path: Path) -> None:
    told, figure = series.front(found), canvas((6.0, 4.0))
    panel = figure.subplots()
    panel.plot(told.cost, told.harm, marker="o", markersize=4, color=series.COLOURS["plan"], label="other budgets")
    at, colour = told.chosen, series.COLOURS["uniform like plan"]
    panel.plot(told.cost[at], told.harm[at], "D", markersize=9, color=colour, label="this plan")
    panel.set_xlim(left=0)
    panel.set_ylim(bottom=0)
    panel.grid(linewidth=0.3)
    _named(panel, told.axis, "predicted harm")
    panel.legend(fontsize=SMALL)
    save(figure, path)


def _needles(rows: Rows, path: Path) -> None:
    maps = series.needles(rows)
    figure = canvas((1.5 + 3.0 * len(maps), 3.2))
    for panel, each in zip(figure.subplots(1, len(maps), squeeze=False)[0], maps, strict=True):
        panel.set_facecolor("lightgrey")  # where nothing was asked
        panel.imshow(np.array(each.rates, np.float64), vmin=0, vmax=1, cmap="Blues", aspect="auto")
        panel.set_xticks(range(len(each.lengths)), each.lengths)
        panel.set_yticks(range(len(each.depths)), each.depths)
        for i, j in np.ndindex(len(each.depths), len(each.lengths)):
            colour = "white" if (each.rates[i][j] or 0) > 0.6 else "black"
            panel.text(j, i, each.texts[i][j], ha="center", va="center", fontsize=SMALL, color=colour)
        panel.set_title(each.name, fontsize=SMALL, parse_math=False)
        _named(panel, "tokens", "depth")
    save(figure, path)


def _perplexities(rows: Rows, path: Path) -> None:
    curves = series.perplexities(rows)
    figure = canvas((1.0 + 4.0 * len(curves), 3.5))
    for panel, (n, lines) in zip(figure.subplots(1, len(curves), squeeze=False)[0], curves.items(), strict=True):
        for curve in lines:
            _line(panel, curve)
        panel.set_title(f"{n:,} tokens", fontsize=SMALL)
        _named(panel, "position in the text", "perplexity")
        panel.legend(fontsize=SMALL)
    save(figure, path)


def _line(panel: "Axes", curve: series.Curve) -> None:
    panel.plot(curve.x, curve.y, DASHES[curve.dash], color=curve.colour, label=curve.name, linewidth=1.2)
    panel.grid(linewidth=0.3)


def _named(panel: "Axes", x: str, y: str) -> None:
    panel.set_xlabel(x, fontsize=SMALL)
    panel.set_ylabel(y, fontsize=SMALL)
    panel.tick_params(labelsize=SMALL)
