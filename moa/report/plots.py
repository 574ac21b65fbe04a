"""Draw a plan and its evaluation as interactive pictures, which are pieces of HTML."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from moa.plans.plan import Plan
from moa.report import series
from moa.report.series import Rows

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

SHADES = [[0.0, "#eef4fa"], [0.5, "#6aa3d5"], [1.0, "#0b3c68"]]
GREY = "#dddddd"


def library() -> str:
    """Return the JavaScript that all pictures of a page need, once."""
    from plotly.offline import get_plotlyjs

    return str(get_plotlyjs())


def heat_map(plan: Plan, lengths: Sequence[int], name: str = "heat-map", title: str = "") -> str:
    """Return what each layer and KV head keeps, as a share of the text, with a slider of lengths.

    Where the plan reads less than it keeps, a second map beside it has the share that a decode step reads.

    Args:
        plan: The plan.
        lengths: Tokens.
        name: The picture's name in its page.
        title: The line above it.
    """
    from plotly.graph_objects import Heatmap
    from plotly.subplots import make_subplots

    model, kinds = plan.model, series.shares_of(plan)
    shares = [[series.shares(plan, n, kind) for kind in kinds] for n in lengths]
    figure = make_subplots(1, len(kinds), shared_yaxes=True, subplot_titles=kinds if len(kinds) > 1 else None)
    for column, (kind, share) in enumerate(zip(kinds, shares[-1], strict=True), 1):
        drawn = Heatmap(
            z=share, coloraxis="coloraxis", xgap=1, ygap=1,
            hovertemplate=f"layer %{{y}}, KV head %{{x}}: {kind} %{{z:.2f}}<extra></extra>",
        )  # fmt: skip
        figure.add_trace(drawn, row=1, col=column)
    traces = list(range(len(kinds)))
    steps = [
        {"label": f"{n:,}", "method": "restyle", "args": [{"z": share}, traces]}
        for n, share in zip(lengths, shares, strict=True)
    ]
    slider = {"active": len(lengths) - 1, "steps": steps, "currentvalue": {"prefix": "tokens: "}, "pad": {"t": 45}}
    colours = {"colorscale": SHADES, "cmin": 0, "cmax": 1, "colorbar": {"title": " or ".join(kinds), "thickness": 12}}
    figure.update_layout(sliders=[slider], plot_bgcolor=GREY, title=title or None, coloraxis=colours)
    figure.update_xaxes(title="KV head", dtick=max(1, model.kv_heads // 8), range=[-0.5, model.kv_heads - 0.5])
    figure.update_yaxes(range=[model.layers - 0.5, -0.5])
    figure.update_yaxes(title="layer", col=1)
    return _html(figure, name, max(380, 14 * model.layers + 180))


def growth(plan: Plan, longest: int, name: str = "growth", title: str = "") -> str:
    """Return the keys that heads see as the text grows: the widest, the mean and the narrowest, beside dense."""
    from plotly.graph_objects import Figure

    figure = Figure(list(map(_line, series.growth(plan, longest))))
    powers = [2**power for power in range(6, longest.bit_length())]
    ticks = {"type": "log", "tickvals": powers, "ticktext": [f"{n:,}" for n in powers]}
    figure.update_xaxes(title="tokens of text", **ticks)
    figure.update_yaxes(title="keys seen", **ticks)
    figure.update_layout(title=title or None)
    return _html(figure, name, 420, legend=True)


def front(found: Mapping[str, Any]) -> str:
    """Return harm against cost of the plans of other budgets, and of the chosen one."""
    from plotly.graph_objects import Figure, Scatter

    told = series.front(found)
    line, chosen = series.COLOURS["plan"], series.COLOURS["uniform like plan"]
    about = {"hovertemplate": "harm %{y:.4g}: %{text}<extra></extra>", "mode": "lines+markers"}
    plans = Scatter(x=told.cost, y=told.harm, text=told.words, name="other budgets", line={"color": line}, **about)
    marker = {"color": chosen, "size": 13, "symbol": "diamond"}
    at = slice(told.chosen, told.chosen + 1)
    this = Scatter(
        x=told.cost[at], y=told.harm[at], text=told.words[at], name="this plan", marker=marker,
        **{**about, "mode": "markers"},
    )  # fmt: skip
    figure = Figure([plans, this])
    figure.update_xaxes(title=told.axis, rangemode="tozero")
    figure.update_yaxes(title="predicted harm", rangemode="tozero")
    return _html(figure, "front", 420, legend=True)


def needle_maps(rows: Rows) -> list[str]:
    """Return a map of found needles by length and depth for each row's name, of all tasks that ask for needles."""
    from plotly.graph_objects import Figure, Heatmap

    found: list[str] = []
    for each in series.needles(rows):
        figure = Figure(
            Heatmap(
                x=each.lengths, y=each.depths, z=each.rates, text=each.texts, texttemplate="%{text}", zmin=0, zmax=1,
                colorscale=SHADES, xgap=2, ygap=2, showscale=False,
                hovertemplate="%{x} tokens, depth %{y}: %{text} found<extra></extra>",
            )
        )  # fmt: skip
        figure.update_layout(title=each.name, plot_bgcolor=GREY)
        figure.update_xaxes(title="tokens", type="category")
        figure.update_yaxes(title="depth", autorange="reversed", type="category")
        found.append(_html(figure, f"needles-{len(found)}", 300))
    return found


def perplexities(rows: Rows) -> list[str]:
    """Return perplexity by position in the text for each length, of all rows."""
    from plotly.graph_objects import Figure

    found: list[str] = []
    for n, curves in series.perplexities(rows).items():
        figure = Figure([_line(curve, "lines+markers") for curve in curves])
        figure.update_layout(title=f"{n:,} tokens")
        figure.update_xaxes(title="position in the text")
        figure.update_yaxes(title="perplexity")
        found.append(_html(figure, f"perplexity-{len(found)}", 340, legend=True))
    return found


def _line(curve: series.Curve, mode: str = "lines") -> Any:
    from plotly.graph_objects import Scatter

    return Scatter(x=curve.x, y=curve.y, name=curve.name, mode=mode, line={"color": curve.colour, "dash": curve.dash})


def _html(figure: "Figure", name: str, height: int, legend: bool = False) -> str:
    """Return a picture as a piece of HTML that fills its place's width."""
    figure.update_layout(
        template="simple_white", height=height, font={"size": 12},
        margin={"l": 65, "r": 15, "t": 40, "b": 110 if legend else 50},
        legend={"orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom", "x": 0}, dragmode=False,
    )  # fmt: skip
    options = {"displayModeBar": False, "responsive": True}
    return str(figure.to_html(full_html=False, include_plotlyjs=False, div_id=name, config=options))
