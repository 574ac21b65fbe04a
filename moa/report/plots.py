"""Draw a plan and its evaluation as interactive pictures, which are pieces of HTML."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from moa.plans.plan import Plan
from moa.plans.span import BLOCK

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

COLOURS = {"dense": "#444444", "plan": "#1f6fb4", "uniform like plan": "#d9822b"}
"""Of the rows of an evaluation; told apart with any kind of colour vision, and in grey."""
MORE = ("#1f6fb4", "#d9822b", "#3a8f5a", "#8c5fbf", "#b5463c", "#7a7a2e", "#2f9ea3", "#c26aa0")
"""Of rows by other names, in turn."""
SHADES = [[0.0, "#eef4fa"], [0.5, "#6aa3d5"], [1.0, "#0b3c68"]]
GREY = "#dddddd"
NEEDLES = ("single", "four", "turns")
"""The tasks of an evaluation that ask for needles."""
PERPLEXITY = ("perplexity_by_position", "perplexity_by_quarter")
"""The figures of a text along its length, the finest first; results of older versions have the last alone."""
Rows = Sequence[Mapping[str, Any]]


def library() -> str:
    """Return the JavaScript that all pictures of a page need, once."""
    from plotly.offline import get_plotlyjs

    return str(get_plotlyjs())


def heat_map(plan: Plan, lengths: Sequence[int], name: str = "heat-map", title: str = "") -> str:
    """Return what each layer and KV head keeps, as a share of the text, with a slider of lengths.

    Args:
        plan: The plan.
        lengths: Tokens.
        name: The picture's name in its page.
        title: The line above it.
    """
    from plotly.graph_objects import Figure, Heatmap

    model = plan.model
    shares = [_shares(plan, n) for n in lengths]
    figure = Figure(
        Heatmap(
            z=shares[-1], zmin=0, zmax=1, colorscale=SHADES, xgap=1, ygap=1,
            colorbar={"title": "kept", "thickness": 12},
            hovertemplate="layer %{y}, KV head %{x}: %{z:.2f}<extra></extra>",
        )
    )  # fmt: skip
    steps = [
        {"label": f"{n:,}", "method": "restyle", "args": [{"z": [share]}]}
        for n, share in zip(lengths, shares, strict=True)
    ]
    slider = {"active": len(lengths) - 1, "steps": steps, "currentvalue": {"prefix": "tokens: "}, "pad": {"t": 45}}
    figure.update_layout(sliders=[slider], plot_bgcolor=GREY, title=title or None)
    figure.update_xaxes(title="KV head", dtick=max(1, model.kv_heads // 8), range=[-0.5, model.kv_heads - 0.5])
    figure.update_yaxes(title="layer", range=[model.layers - 0.5, -0.5])
    return _html(figure, name, max(380, 14 * model.layers + 180))


def growth(plan: Plan, longest: int, name: str = "growth", title: str = "") -> str:
    """Return the keys that heads see as the text grows: the widest, the mean and the narrowest, beside dense."""
    from plotly.graph_objects import Figure, Scatter

    lengths = sorted({*(int(n) for n in np.geomspace(BLOCK, max(longest, 2 * BLOCK), 60)), longest})
    ruled = list(plan.model.ruled_layers)
    spans = np.stack([plan.spans(n)[ruled].ravel() for n in lengths])
    curves = {
        "dense": (np.array(lengths), COLOURS["dense"], "dot"), "widest head": (spans.max(1), COLOURS["plan"], "dash"),
        "mean": (spans.mean(1), COLOURS["plan"], "solid"), "narrowest head": (spans.min(1), "#7fb2dd", "solid"),
    }  # fmt: skip
    figure = Figure(
        [
            Scatter(x=lengths, y=y.tolist(), name=curve, mode="lines", line={"color": colour, "dash": dash})
            for curve, (y, colour, dash) in curves.items()
        ]
    )
    powers = [2**power for power in range(6, longest.bit_length())]
    ticks = {"type": "log", "tickvals": powers, "ticktext": [f"{n:,}" for n in powers]}
    figure.update_xaxes(title="tokens of text", **ticks)
    figure.update_yaxes(title="keys seen", **ticks)
    figure.update_layout(title=title or None)
    return _html(figure, name, 420, legend=True)


def needle_maps(rows: Rows) -> list[str]:
    """Return a map of found needles by length and depth for each row's name, of all tasks that ask for needles."""
    from plotly.graph_objects import Figure, Heatmap

    found: list[str] = []
    for name in dict.fromkeys(row["row"] for row in rows):
        own = [row for row in rows if row["row"] == name]
        cells = [_by_depth(row) for row in own]  # [lengths][depths]
        parts = len(cells[0])
        depths = [f"{round(100 * i / parts)}–{round(100 * (i + 1) / parts)} %" for i in range(parts)]
        rates = [[right / count if count else None for right, count in column] for column in cells]
        texts = [[f"{right}/{count}" if count else "" for right, count in column] for column in cells]
        figure = Figure(
            Heatmap(
                x=[f"{row['length']:,}" for row in own], y=depths, z=_turned(rates), text=_turned(texts),
                texttemplate="%{text}", zmin=0, zmax=1, colorscale=SHADES, xgap=2, ygap=2, showscale=False,
                hovertemplate="%{x} tokens, depth %{y}: %{text} found<extra></extra>",
            )
        )  # fmt: skip
        figure.update_layout(title=name, plot_bgcolor=GREY)
        figure.update_xaxes(title="tokens", type="category")
        figure.update_yaxes(title="depth", autorange="reversed", type="category")
        found.append(_html(figure, f"needles-{len(found)}", 300))
    return found


def perplexities(rows: Rows) -> list[str]:
    """Return perplexity by position in the text for each length, of all rows."""
    from plotly.graph_objects import Figure, Scatter

    found: list[str] = []
    others = [name for name in dict.fromkeys(row["row"] for row in rows) if name not in COLOURS]
    colours = COLOURS | {name: MORE[i % len(MORE)] for i, name in enumerate(others)}
    for n in dict.fromkeys(row["length"] for row in rows):
        own = [row for row in rows if row["length"] == n]
        figure = Figure()
        for row in own:
            figures = next(row["text"][key] for key in PERPLEXITY if key in row["text"])
            places = [round((i + 0.5) * n / len(figures)) for i in range(len(figures))]
            style = {"color": colours[row["row"]], "dash": "dot" if row["row"].endswith("dense") else "solid"}
            figure.add_trace(Scatter(x=places, y=figures, name=row["row"], mode="lines+markers", line=style))
        figure.update_layout(title=f"{n:,} tokens")
        figure.update_xaxes(title="position in the text")
        figure.update_yaxes(title="perplexity")
        found.append(_html(figure, f"perplexity-{len(found)}", 340, legend=True))
    return found


def _shares(plan: Plan, n: int) -> list[list[float | None]]:
    """Return span / length per layer and KV head; None in layers that take no rules, which stay grey."""
    spans, ruled = plan.spans(n) / n, set(plan.model.ruled_layers)
    return [
        [round(float(x), 4) if layer in ruled else None for x in spans[layer]] for layer in range(plan.model.layers)
    ]


def _by_depth(row: Mapping[str, Any]) -> list[tuple[int, int]]:
    """Return needles found and asked for at each depth."""
    tables = [row[task]["by_depth"] for task in NEEDLES if task in row]
    return [(sum(t[i]["right"] for t in tables), sum(t[i]["questions"] for t in tables)) for i in range(len(tables[0]))]


def _turned(cells: Sequence[Sequence[Any]]) -> list[list[Any]]:
    return [list(column) for column in zip(*cells, strict=True)]


def _html(figure: "Figure", name: str, height: int, legend: bool = False) -> str:
    """Return a picture as a piece of HTML that fills its place's width."""
    figure.update_layout(
        template="simple_white", height=height, font={"size": 12},
        margin={"l": 65, "r": 15, "t": 40, "b": 110 if legend else 50},
        legend={"orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom", "x": 0}, dragmode=False,
    )  # fmt: skip
    options = {"displayModeBar": False, "responsive": True}
    return str(figure.to_html(full_html=False, include_plotlyjs=False, div_id=name, config=options))
