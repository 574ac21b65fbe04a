"""Write pages about plans and their evaluations: one HTML file that needs no network."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from moa.plans.errors import MoaError
from moa.plans.plan import Plan
from moa.report import plots, series
from moa.report.series import NEEDLES, Table

STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #222; margin: 0 auto; padding: 1rem; max-width: 60rem; }
h1 { font-size: 1.5rem; overflow-wrap: anywhere; } h2 { font-size: 1.15rem; margin: 2rem 0 .3rem; }
p { margin: .3rem 0; } .cards, .grid { display: flex; flex-wrap: wrap; gap: 1rem; }
.cards > div { flex: 1 1 14rem; border: 1px solid #ccc; border-radius: .5rem; padding: .7rem 1rem; }
.cards b { display: block; font-size: 2rem; line-height: 1.2; color: #0b3c68; }
.grid > div { flex: 1 1 17rem; min-width: 0; } section, .grid > div { overflow: hidden; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: .85rem; }
th, td { text-align: right; padding: .25rem .6rem; border-bottom: 1px solid #ddd; white-space: nowrap; }
th:nth-child(-n+2), td:nth-child(-n+2) { text-align: left; }
pre { overflow-x: auto; background: #f4f4f4; padding: .7rem; font-size: .85rem; }
@media print { body { max-width: none; font-size: 11pt; } .wide { overflow: visible; } pre { white-space: pre-wrap; }
section, .cards > div, .grid > div { break-inside: avoid; } }
"""
FIT = """
for (const plot of document.querySelectorAll(".plotly-graph-div"))
  new ResizeObserver(() => Plotly.Plots.resize(plot)).observe(plot.parentElement);
"""
"""A picture is drawn before its neighbours take their part of the line."""
MARK = "<!doctype html>"
KEEPS = "The share of the text that its last query sees, by layer and KV head; grey layers take no rules."
READS = f"{KEEPS} Beside it, the share of all keys' and values' bytes that a decode step reads."
Section = tuple[str, str, str]
"""Heading, a line about it, and the HTML of its content."""


@dataclass(frozen=True)
class Content:
    """What a page says besides its pictures.

    Attributes:
        title: The title.
        cards: The numbers at the top: each a figure and what it is.
        verdict: Lines below them.
        rows: Rows of the evaluation, as in its file.
        evaluation: The same as a table.
        front: The plan among those of other budgets, as in `figures.json`; None in results of older versions.
        predicted: A table of predicted beside measured figures.
        origin: A table of where everything comes from.
        commands: Lines to run the plan, or all of it again.
    """

    title: str
    cards: Sequence[tuple[str, str]]
    verdict: Sequence[str]
    rows: Sequence[Mapping[str, Any]]
    evaluation: Table
    front: Mapping[str, Any] | None
    predicted: Table
    origin: Table
    commands: Sequence[str]


def page(plan: Plan, content: Content, script: str) -> str:
    """Return the page; `script` is the JavaScript of its pictures (`plots.library`)."""
    lengths = shown(plan, content.rows)
    sections = [
        (*keeps([plan]), plots.heat_map(plan, lengths)),
        ("How windows grow", "Keys that a query sees after so many tokens.", plots.growth(plan, lengths[-1])),
        *_front(content.front),
        *evaluated(content.rows, content.evaluation),
        ("Predicted and measured", "What was expected beforehand, and what it was.", tabled(content.predicted)),
        ("Where this comes from", "", tabled(content.origin)),
        ("Commands", "", f"<pre>{escape(chr(10).join(content.commands))}</pre>"),
    ]
    return whole(content.title, content.cards, content.verdict, sections, script)


def shown(plan: Plan, rows: Sequence[Mapping[str, Any]]) -> tuple[int, ...]:
    """Return the lengths at which a plan is shown: those that it was made for, or else those of its evaluation."""
    return plan.predicted.lengths if plan.predicted else tuple(sorted({row["length"] for row in rows}))


def _front(front: Mapping[str, Any] | None) -> list[Section]:
    """Return the section about other budgets, if they are known."""
    if front is None:
        return []
    about = (
        "Predicted harm against what the budget limits, of the plans of smaller and larger budgets and of this one. "
        "Harm is predicted from the profile; the evaluation measures this plan alone."
    )
    return [("Front with the chosen plan", about, plots.front(front) + tabled(series.front_table(front)))]


def keeps(plans: Iterable[Plan]) -> tuple[str, str]:
    """Return heading and line of the maps of plans: of what they keep, and where one reads less, of that too."""
    if any(plan.reads() for plan in plans):
        return "What each head keeps and reads", READS
    return "What each head keeps", KEEPS


def evaluated(rows: Sequence[Mapping[str, Any]], table: Table) -> list[Section]:
    """Return the sections about rows of an evaluation and their table: of needles and texts where rows have some."""
    needles = [row for row in rows if any(task in row for task in NEEDLES)]
    texts = [row for row in rows if "text" in row]
    sections = [
        ("Evaluation", "All rows of a run answered the same samples. Rates have 95 % intervals.", tabled(table))
    ]
    if needles:
        about = "By length and depth, of one and of several needles in a text."
        sections.insert(0, ("Needles found", about, beside(plots.needle_maps(needles))))
    if texts:
        about = "Of held-out text, by part of the text."
        sections.append(("Perplexity by position", about, beside(plots.perplexities(texts))))
    return sections


def whole(
    title: str, cards: Sequence[tuple[str, str]], verdict: Sequence[str], sections: Sequence[Section], script: str
) -> str:
    """Return a page of sections, below cards (each a figure and what it is) and lines."""
    shown = "".join(f"<div><b>{escape(figure)}</b>{escape(what)}</div>" for figure, what in cards)
    lines = "".join(f"<p>{escape(line)}</p>" for line in verdict)
    body = "".join(
        f"<section><h2>{escape(name)}</h2><p>{escape(about)}</p>{part}</section>\n" for name, about, part in sections
    )
    return (
        f'{MARK}\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<link rel="icon" href="data:,"><title>{escape(title)}</title><style>{STYLE}</style>'
        f"<script>{script}</script></head>\n<body><h1>{escape(title)}</h1>\n"
        f'<div class="cards">{shown}</div>\n{lines}\n{body}<script>{FIT}</script></body></html>\n'
    )


def is_page(path: Path) -> None:
    """Raise an error unless a file begins as a page does."""
    with path.open("rb") as file:
        if file.read(len(MARK)) != MARK.encode():
            raise MoaError("it does not begin as a report does")


def beside(parts: Sequence[str]) -> str:
    """Return pictures beside each other, as many as the screen is wide enough for."""
    return f'<div class="grid">{"".join(f"<div>{part}</div>" for part in parts)}</div>'


def tabled(table: Table) -> str:
    """Return a table that scrolls where the screen is narrow."""
    headings, rows = table
    head = "".join(f"<th>{escape(heading)}</th>" for heading in headings)
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
