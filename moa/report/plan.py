"""Show plans as pictures and tables: in the terminal with rich, as a PNG with matplotlib."""

from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.table import Table
from rich.text import Text

from moa.plans.config import RULED, WINDOWS
from moa.plans.errors import MoaError, ModelMismatch
from moa.plans.model import Dtype
from moa.plans.patterns import PATTERNS, Rule, reach
from moa.plans.plan import Plan
from moa.plans.replace import replace
from moa.plans.span import BLOCK, Ints
from moa.report.figures import Figures
from moa.report.series import shares, shares_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHADES = "·░▒▓█"
EDGES = (1 / 8, 1 / 4, 1 / 2, 1)
LEGEND = (
    "span / length: · under 1/8, ░ under 1/4, ▒ under 1/2, ▓ under 1, █ all; ~ the model's own window, = a layer that "
    "keeps no keys"
)
SIGNS = "-·+"
SIGNS_LEGEND = "2 against 1: + the second plan sees further, - less far"
KINDS = ("full", "growing", "constant")
FAR = 2**36
"""A block beyond the reach of any alpha: a rule that sees everything there sees everything at all lengths."""
MOST = 10
"""Largest number of differing spans that are listed one by one."""


def growth(rule: Rule) -> str:
    """Return how the span grows with the length: `full`, `constant`, or `growing`."""
    near, far = reach([rule]).live_blocks(np.array([BLOCK * FAR // 2, BLOCK * FAR]))[0]
    if far == FAR:
        return "full"
    return "growing" if far > near else "constant"


def same_model(plans: Sequence[Plan]) -> None:
    """Raise ModelMismatch, naming each field that differs, unless all plans are for one shape of model."""
    for other in plans[1:]:
        differences = plans[0].model.differences(other.model)
        if differences:
            raise ModelMismatch(f"plans of different models cannot be compared: {'; '.join(differences)}")


def figures(plans: Mapping[str, Plan], lengths: Sequence[int], dtype: Dtype) -> list[dict[str, Any]]:
    """Return, in JSON types, what each plan costs at each length, batch 1, and the rule of every head."""
    return [
        {
            "name": name, "fingerprint": plan.fingerprint(), "kv_dtype": dtype,
            "costs": [
                {
                    "length": n, "density": plan.density(n), "read": plan.read_density(n),
                    "prefill": plan.prefill_fraction(n), "kv_bytes": plan.kv_bytes(n, dtype=dtype),
                    "dense_kv_bytes": plan.model.dense_kv_bytes(n, dtype=dtype), **_step(plan, n),
                }
                for n in lengths
            ],
            "plan": plan.to_dict(expand=True),
        }
        for name, plan in plans.items()
    ]  # fmt: skip


def _step(plan: Plan, length: int) -> dict[str, float]:
    """Return the milliseconds that the plan predicts of a decode step, if it does so at this length."""
    said = plan.predicted
    if said is None or said.decode_ms is None or length not in said.lengths:
        return {}
    return {"decode_ms": said.decode_ms[said.lengths.index(length)]}


def costs(plans: Mapping[str, Plan], lengths: Sequence[int], dtype: Dtype) -> Figures:
    """Return a table of what each plan keeps at each length, batch 1, beside the dense model; the cache in `dtype`.

    Where a plan reads less than it keeps, `read` is the part of the bytes of all keys and values that a step reads.
    Where a plan predicts the time of a step, it is there.
    """
    told = [(each["name"], of) for each in figures(plans, lengths, dtype) for of in each["costs"]]
    reads, timed = any(plan.reads() for plan in plans.values()), any("decode_ms" in of for _, of in told)
    headings = [
        "tokens",
        "plan",
        "density",
        *(["read"] if reads else []),
        "prefill kept",
        "KV cache, MiB",
        "KV / dense",
    ]
    headings += ["step predicted, ms"] if timed else []
    rows = []
    for name, of in sorted(told, key=lambda row: lengths.index(row[1]["length"])):
        shares = [of["density"], *([of["read"]] if reads else []), of["prefill"]]
        whole = of["kv_bytes"] / of["dense_kv_bytes"]
        cells = [*(f"{share:.3f}" for share in shares), f"{of['kv_bytes'] / 2**20:.1f}", f"{whole:.3f}"]
        cells += [f"{of['decode_ms']:.1f}" if "decode_ms" in of else "-"] if timed else []
        rows.append([f"{of['length']:,}", name, *cells])
    made = {name: plan.predicted for name, plan in plans.items() if plan.predicted and plan.predicted.measured_to}
    caption = "\n".join(
        f"{name}: for texts of up to {said.lengths[-1]:,} tokens, profiled up to {said.measured_to:,}"
        + (f"; times predicted for {said.device}" if timed and said.device else "")
        for name, said in made.items()
    )
    return Figures(headings, rows, f"Costs, KV cache in {dtype}", caption, names=2)


def rules(plan: Plan, lengths: Sequence[int], title: str) -> Figures:
    """Return a table of the rules by how they grow: groups, ranges of numbers, patterns, mean densities by length."""
    places = [(layer, head) for layer in plan.model.ruled_layers for head in range(plan.model.kv_heads)]
    numbers = list(dict.fromkeys(name for place in places for name in plan.rule(*place).shown))
    labelled = [kind for kind in PATTERNS.values() if kind.label]
    labels = [kind.label for kind in labelled]
    reads = plan.reads()
    headings = "span", "groups", *numbers, *(["read"] if reads else []), *labels, *(f"at {n:,}" for n in lengths)
    meanings = "".join(f"{kind.label}: {kind.about}; " for kind in labelled)
    rows = []
    for kind in KINDS:
        found = [place for place in places if growth(plan.rule(*place)) == kind]
        if found:
            ruled = [plan.rule(*place) for place in found]
            index = tuple(np.transpose(found))
            density = [f"{plan.spans(n)[index].mean() / n:.3f}" for n in lengths]
            ranges = [_range([rule.shown[name] for rule in ruled if name in rule.shown]) for name in numbers]
            ranges += [_range([rule.read for rule in ruled])] if reads else []
            counts = [str(sum(type(rule) is pattern for rule in ruled)) for pattern in labelled]
            rows.append([kind, str(len(found)), *ranges, *counts, *density])
    return Figures(headings, rows, title, f"{meanings}at a length: density there")


def span_map(plan: Plan, lengths: Sequence[int], title: str) -> Table:
    """Return spans as shaded blocks: a row per layer, a block per KV head, a column per length."""
    shades = {f"{n:,}": np.searchsorted(EDGES, plan.spans(n) / n, side="right") for n in lengths}
    return _map(plan, shades, SHADES, title)


def difference_map(first: Plan, second: Plan, lengths: Sequence[int]) -> Table:
    """Return a map of where the second plan sees further (+) or less far (-) than the first."""
    signs = {f"{n:,}": np.sign(second.spans(n) - first.spans(n)) + 1 for n in lengths}
    return _map(first, signs, SIGNS, "2 against 1")


def differences(first: Plan, second: Plan, lengths: Sequence[int]) -> Figures:
    """Return a table of the groups that differ, the widest difference first: spans at each length, sinks and reads."""
    spans = [(first.spans(n), second.spans(n)) for n in lengths]
    change = np.max([np.abs(b - a) for a, b in spans], axis=0)
    counts = ", ".join(f"{np.count_nonzero(b - a)} at {n:,}" for n, (a, b) in zip(lengths, spans, strict=True))
    groups = len(first.model.ruled_layers) * first.model.kv_heads
    pairs = {
        (layer, head): (a, b)
        for layer, rules in first.groups.items()
        for head, (a, b) in enumerate(zip(rules, second.groups[layer], strict=True))
    }
    sinks = {
        place: f"{a.pattern} {a.sink} → {b.pattern} {b.sink}"
        for place, (a, b) in pairs.items()
        if (a.pattern, a.sink) != (b.pattern, b.sink)
    }
    reads = {place: f"{a.read:g} → {b.read:g}" for place, (a, b) in pairs.items() if a.read != b.read}
    counts += f", {len(sinks)} in what their sinks hold" if sinks else ""
    counts += f", {len(reads)} in what they read" if reads else ""
    others = {name: cells for name, cells in (("sink", sinks), ("read", reads)) if cells}
    columns = *(f"span at {n:,}" for n in lengths), *others
    rows = []
    places = [(int(i), int(j)) for i, j in np.ndindex(change.shape) if change[i, j] or (i, j) in sinks | reads]
    for layer, head in sorted(places, key=lambda place: -change[place])[:MOST]:
        cells = (f"{a[layer, head]:,} → {b[layer, head]:,}" for a, b in spans)
        rows.append([str(layer), str(head), *cells, *(other.get((layer, head), "") for other in others.values())])
    caption = f"of {groups} groups differ: {counts}"
    return Figures(["layer", "KV head", *columns], rows, "Groups that differ", caption, names=2)


def picture(plans: Mapping[str, Plan], lengths: Sequence[int], path: Path) -> None:
    """Write as a PNG what plans keep: a row of panels per plan, a panel per length, layers down, KV heads across.

    A plan that reads less than it keeps has a second row, of the bytes that a decode step reads.

    Raises:
        MoaError: matplotlib is not installed.
        OSError: The file cannot be written.
    """
    model = next(iter(plans.values())).model
    drawn = [(name, plan, share) for name, plan in plans.items() for share in shares_of(plan)]
    size = (1.5 + len(lengths) * max(2.0, 0.15 * model.kv_heads), len(drawn) * max(2.5, 0.15 * model.layers))
    figure = canvas(size)
    panels = figure.subplots(len(drawn), len(lengths), squeeze=False)
    for row, (name, plan, share) in zip(panels, drawn, strict=True):
        for panel, n in zip(row, lengths, strict=True):
            panel.set_facecolor("lightgrey")  # of layers without rules
            cells = np.array(shares(plan, n, share), np.float64)
            image = panel.imshow(cells, vmin=0, vmax=1, aspect="auto", interpolation="nearest")
            mean = f"density {plan.density(n):.3f}" if share == "kept" else f"read {plan.read_density(n):.3f}"
            panel.set_title(f"{name}\n{n:,} tokens, {mean}", fontsize=8, parse_math=False)
            panel.set_xlabel("KV head", fontsize=8)
            panel.xaxis.get_major_locator().set_params(integer=True)
            panel.yaxis.get_major_locator().set_params(integer=True)
        row[0].set_ylabel("layer", fontsize=8)
    both = any(share == "read" for *_, share in drawn)
    figure.colorbar(image, ax=panels, label="kept (span / length) or read" if both else "span / length")
    save(figure, path)


def is_png(path: Path) -> None:
    """Raise an error unless a file begins as a PNG does."""
    with path.open("rb") as file:
        if not file.read(8).startswith(b"\x89PNG"):
            raise MoaError("it does not begin as a PNG file does")


def save(figure: "Figure", path: Path) -> None:
    """Write a PNG, whole or not at all."""
    content = BytesIO()
    figure.savefig(content, format="png", dpi=150)
    replace(path, content.getvalue())


def canvas(size: tuple[float, float]) -> "Figure":
    """Return an empty figure of `size` inches.

    Raises:
        MoaError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise MoaError("a PNG needs matplotlib: pip install 'moa-attention[demo]'") from None
    return Figure(figsize=size, layout="constrained")


def _map(plan: Plan, cells: Mapping[str, Ints], marks: str, title: str) -> Table:
    """Return one mark per (layer, KV head): `cells` holds indices into `marks`, [layers, kv_heads], per column."""
    table = Table("layer", title=Text(title))
    for name in cells:
        table.add_column(name, overflow="fold")  # a row of many heads continues on the next line
    wide = 2 if plan.model.kv_heads <= 8 else 1
    for layer, kind in enumerate(plan.model.kinds):
        own = None if kind == RULED else "~" if kind in WINDOWS else "="
        drawn = ("".join((own or marks[i]) * wide for i in grid[layer]) for grid in cells.values())
        table.add_row(str(layer), *drawn)
    return table


def _range(values: Sequence[float]) -> str:
    if not values:
        return "-"
    low, high = min(values), max(values)
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"
