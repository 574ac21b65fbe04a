"""Say what pictures show: the figures of maps and curves, whichever library draws them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from moa.plans.plan import Plan
from moa.plans.span import BLOCK

COLOURS = {"dense": "#444444", "plan": "#1f6fb4", "uniform like plan": "#d9822b"}
"""Of the rows of an evaluation; told apart with any kind of colour vision, and in grey."""
MORE = ("#1f6fb4", "#d9822b", "#3a8f5a", "#8c5fbf", "#b5463c", "#7a7a2e", "#2f9ea3", "#c26aa0")
"""Of rows by other names, in turn."""
NEEDLES = ("single", "four", "turns")
"""The tasks of an evaluation that ask for needles."""
PERPLEXITY = ("perplexity_by_position", "perplexity_by_quarter")
"""The figures of a text along its length, the finest first; results of older versions have the last alone."""
Rows = Sequence[Mapping[str, Any]]
Share = Literal["kept", "read"]
Cells = list[list[Any]]
Table = tuple[Sequence[str], Sequence[Sequence[str]]]
"""Headings, and the cells of each row."""
COSTS = {
    "density": "density", "read": "share of all keys' and values' bytes that a step reads", "kv_gb": "KV cache, GB",
    "decode_ms": "decode step, ms predicted", "prefill_ms": "prefill, ms predicted",
}  # fmt: skip
"""What is along the front's axis, by kind of budget."""


@dataclass(frozen=True)
class Curve:
    """A line of a picture.

    Attributes:
        name: Its name.
        x: Its places.
        y: Its values.
        colour: Its colour.
        dash: `solid`, `dash` or `dot`.
    """

    name: str
    x: list[int]
    y: list[float]
    colour: str
    dash: str


@dataclass(frozen=True)
class Needles:
    """The needles that one row found.

    Attributes:
        name: The row.
        lengths: The columns, tokens.
        depths: The rows, such as `0-20 %`.
        rates: Shares found: [depths][lengths], None where nothing was asked.
        texts: The same as `found/asked`.
    """

    name: str
    lengths: list[str]
    depths: list[str]
    rates: Cells
    texts: Cells


def shares_of(plan: Plan) -> tuple[Share, ...]:
    """Return which shares of the text a map of the plan shows: what a step reads too, where that is less than kept."""
    return ("kept", "read") if plan.reads() else ("kept",)


def shares(plan: Plan, n: int, share: Share) -> list[list[float | None]]:
    """Return the share of `n` tokens that each layer and KV head keeps or reads; None in layers that take no rules."""
    found: list[list[float | None]] = [[None] * plan.model.kv_heads for _ in range(plan.model.layers)]
    ruled = list(plan.model.ruled_layers)
    values = plan.read_shares(n) if share == "read" else plan.spans(n)[ruled] / n
    for layer, row in zip(ruled, values, strict=True):
        found[layer] = [round(float(x), 4) for x in row]
    return found


def growth(plan: Plan, longest: int) -> list[Curve]:
    """Return the keys that heads see as the text grows: the widest, the mean and the narrowest, beside dense."""
    lengths = sorted({*(int(n) for n in np.geomspace(BLOCK, max(longest, 2 * BLOCK), 60)), longest})
    ruled = list(plan.model.ruled_layers)
    spans = np.stack([plan.spans(n)[ruled].ravel() for n in lengths])
    curves = {
        "dense": (np.array(lengths), COLOURS["dense"], "dot"), "widest head": (spans.max(1), COLOURS["plan"], "dash"),
        "mean": (spans.mean(1), COLOURS["plan"], "solid"), "narrowest head": (spans.min(1), "#7fb2dd", "solid"),
    }  # fmt: skip
    return [Curve(name, lengths, y.tolist(), colour, dash) for name, (y, colour, dash) in curves.items()]


def needles(rows: Rows) -> list[Needles]:
    """Return found needles by length and depth for each row's name, of all tasks that ask for needles."""
    found = []
    for name in dict.fromkeys(row["row"] for row in rows):
        own = [row for row in rows if row["row"] == name]
        cells = [_by_depth(row) for row in own]  # [lengths][depths]
        parts = len(cells[0])
        depths = [f"{round(100 * i / parts)}–{round(100 * (i + 1) / parts)} %" for i in range(parts)]
        rates = [[right / count if count else None for right, count in column] for column in cells]
        texts = [[f"{right}/{count}" if count else "" for right, count in column] for column in cells]
        found.append(Needles(name, [f"{row['length']:,}" for row in own], depths, _turned(rates), _turned(texts)))
    return found


def perplexities(rows: Rows) -> dict[int, list[Curve]]:
    """Return perplexity by position in the text, of all rows, by length."""
    found: dict[int, list[Curve]] = {}
    others = [name for name in dict.fromkeys(row["row"] for row in rows) if name not in COLOURS]
    colours = COLOURS | {name: MORE[i % len(MORE)] for i, name in enumerate(others)}
    for row in rows:
        n, name = row["length"], row["row"]
        figures = next(row["text"][key] for key in PERPLEXITY if key in row["text"])
        places = [round((i + 0.5) * n / len(figures)) for i in range(len(figures))]
        dash = "dot" if name.endswith("dense") else "solid"
        found.setdefault(n, []).append(Curve(name, places, figures, colours[name], dash))
    return found


@dataclass(frozen=True)
class Front:
    """The plan among those of other budgets.

    Attributes:
        axis: What is along the axis.
        cost: What each plan takes of it, rising.
        harm: Their predicted harm.
        words: A line about each.
        chosen: Which of them is the plan.
    """

    axis: str
    cost: list[float]
    harm: list[float]
    words: list[str]
    chosen: int


def front(found: Mapping[str, Any]) -> Front:
    """Return the front in `figures.json`."""
    plans = found["plans"]
    words = [
        f"density {each['density']:.3f}, reads {each['read']:.3f}, {each['kv_bytes'] / 2**20:,.1f} MiB"
        for each in plans
    ]
    cost, harm = ([float(each[name]) for each in plans] for name in ("cost", "harm"))
    batch = f" of {found['batch']}" if found["batch"] > 1 else ""
    axis = f"{COSTS[found['kind']]}, at {found['length']:,} tokens{batch}"
    return Front(axis, cost, harm, words, [each["chosen"] for each in plans].index(True))


def front_table(found: Mapping[str, Any]) -> Table:
    """Return the front as a table."""
    headings = ["plan", "budget", found["kind"], "density", "read", f"KV cache, MiB in {found['dtype']}", "harm"]
    rows = [
        [
            "this plan" if each["chosen"] else "", f"{each['budget']:.4g}", f"{each['cost']:.4g}",
            f"{each['density']:.3f}", f"{each['read']:.3f}", f"{each['kv_bytes'] / 2**20:,.1f}", f"{each['harm']:.4g}",
        ]
        for each in found["plans"]
    ]  # fmt: skip
    return headings, rows


def _by_depth(row: Mapping[str, Any]) -> list[tuple[int, int]]:
    """Return needles found and asked for at each depth."""
    tables = [row[task]["by_depth"] for task in NEEDLES if task in row]
    return [(sum(t[i]["right"] for t in tables), sum(t[i]["questions"] for t in tables)) for i in range(len(tables[0]))]


def _turned(cells: Sequence[Sequence[Any]]) -> Cells:
    return [list(column) for column in zip(*cells, strict=True)]
