"""`moa plans`: list the plans that are known on this machine."""

from typing import TYPE_CHECKING, Any

from moa.cli.common import Json

if TYPE_CHECKING:
    from moa.plans.plan import Plan

SHOWN = {"for texts of up to": ("longest", ","), "density there": ("density", ".3f"), "read there": ("read", ".3f")}
"""Columns of figures: their key and format."""


def command(json_: Json = False) -> None:
    """List the plans that come with moa, and those that `moa compress` made here; `--plan` takes their names.

    Example: moa plans
    """
    from rich.console import Console

    import moa
    from moa.cli.common import print_json
    from moa.report.figures import Figures

    rows = [_row(name, plan) for name, plan in moa.list_plans().items()]
    if json_:
        print_json(rows)
        return
    cells = [
        [row["name"], row["model"], *(f"{row[key]:{form}}" if row[key] else "-" for key, form in SHOWN.values())]
        for row in rows
    ]
    needed = sum(
        max(len(cell) for cell in column) + 4 for column in zip(["plan", "model", *SHOWN], *cells, strict=True)
    )
    width = max(needed, Console().width)  # a file's name is copied: the terminal may wrap it, the table must not
    Console(soft_wrap=True, highlight=False, width=width).print(Figures(["plan", "model", *SHOWN], cells, names=2))


def _row(name: str, plan: "Plan") -> dict[str, Any]:
    longest = plan.predicted.lengths[-1] if plan.predicted else None
    return {
        "name": name, "model": plan.model.name, "fingerprint": plan.fingerprint(), "longest": longest,
        "density": None if longest is None else plan.density(longest),
        "read": None if longest is None else plan.read_density(longest), "reads": plan.reads(),
        "budget": plan.provenance.budget if plan.provenance else None,
    }  # fmt: skip
