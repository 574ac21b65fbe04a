"""Draw the pictures of docs/how-it-works.md, from the code's own definitions, a shipped plan and results.

python benchmarks/pictures.py            writes docs/pictures/*.svg
python benchmarks/pictures.py --check    names pictures that differ; exit code 1 if there are any
"""

import argparse
import json
import sys
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from moa.plans.patterns import Rule, reach
from moa.plans.plan import Plan
from moa.plans.replace import replace

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs" / "pictures"
PLAN, RESULTS = "smollm2-135m-instruct-0.25", ROOT / "benchmarks" / "results" / "elastic.json"
BLUE, ORANGE, GREY, PALE = "#1f6fb4", "#d9822b", "#777777", "#e8eef4"
BLOCKS = 16
STYLE = {"svg.fonttype": "none", "svg.hashsalt": "moa", "font.family": "sans-serif", "font.size": 9}


def seen() -> Figure:
    """Draw which blocks of keys a block of queries sees, under three rules."""
    rules = {
        "constant window: alpha 320, beta 0": Rule(alpha=320, beta=0),
        "growing window: alpha 128, beta 0.4": Rule(alpha=128, beta=102 / 256),
        "everything: alpha 0, beta 1": Rule(alpha=0, beta=1),
    }
    figure = Figure(figsize=(8, 3), layout="constrained")
    query, key = np.mgrid[:BLOCKS, :BLOCKS]
    for panel, (name, rule) in zip(figure.subplots(1, 3), rules.items(), strict=True):
        first = reach([rule]).first(np.arange(BLOCKS))[0][:, None]
        kinds = np.where(key < rule.sink // 64, 2, np.where(key >= first, 1, 0))
        panel.pcolormesh(
            np.ma.masked_where(key > query, kinds),
            cmap=matplotlib.colors.ListedColormap([PALE, BLUE, ORANGE]), vmin=0, vmax=2,
            edgecolor="white", linewidth=0.4,
        )  # fmt: skip
        panel.set(title=name, xlabel="blocks of keys", ylabel="blocks of queries", aspect="equal", xticks=[], yticks=[])
        panel.title.set_fontsize(8)
        panel.invert_yaxis()
    return figure


def kept() -> Figure:
    """Draw what each layer and KV head of a shipped plan keeps, at three lengths."""
    plan, lengths = Plan.load(PLAN), (1024, 4096, 8192)
    figure = Figure(figsize=(6, 4), layout="constrained")
    panels = figure.subplots(1, len(lengths), sharey=True)
    for panel, n in zip(panels, lengths, strict=True):
        drawn = panel.pcolormesh(plan.spans(n) / n, vmin=0, vmax=1, cmap="Blues", edgecolor="white", linewidth=0.4)
        panel.set(title=f"{n:,} tokens", xlabel="KV head", xticks=[])
    panels[0].set_ylabel("layer")
    panels[0].invert_yaxis()
    figure.colorbar(drawn, ax=panels, label="keys seen / length")
    return figure


def growth() -> Figure:
    """Draw how the span of each group of a shipped plan grows with the text."""
    plan, lengths = Plan.load(PLAN), np.arange(64, 8193, 64)
    spans = np.stack([plan.spans(int(n)) for n in lengths]).reshape(len(lengths), -1)
    figure = Figure(figsize=(5, 3.2), layout="constrained")
    panel = figure.subplots()
    panel.plot(lengths, spans, color=BLUE, alpha=0.35, linewidth=0.8)
    panel.plot(lengths, lengths, color=GREY, linewidth=1.2, linestyle="--", label="everything")
    panel.plot(lengths, spans.mean(1), color=ORANGE, linewidth=1.8, label="mean of all groups")
    panel.set(xlabel="tokens in the text", ylabel="keys seen by the newest")
    panel.legend(frameon=False)
    return figure


def needles() -> Figure:
    """Draw how many single needles the dense model, two plans and a uniform window find, with 95 % intervals."""
    rows = json.loads(RESULTS.read_text())["rows"]
    looks = {
        "dense": (GREY, "o"), "plan 0.5": ("#5b9bd0", "s"), "plan 0.25": (BLUE, "^"),
        "uniform like plan 0.25": (ORANGE, "v"),
    }  # fmt: skip
    figure = Figure(figsize=(5, 3.2), layout="constrained")
    panel = figure.subplots()
    for i, (name, (colour, marker)) in enumerate(looks.items()):
        found = [(row["length"], row["single"]) for row in rows if row["row"] == name]
        lengths, rates = np.array([n for n, _ in found]), np.array([each["rate"] for _, each in found])
        low, high = np.transpose([each["interval"] for _, each in found])
        panel.errorbar(lengths * 1.03 ** (i - 1.5), rates, (rates - low, high - rates), color=colour, marker=marker,
                       capsize=2, linewidth=1.2, markersize=4, label=name)  # fmt: skip
    panel.set(xlabel="tokens in the text", ylabel="needles found", ylim=(0, 1.05), xscale="log")
    panel.set_xticks(lengths, [f"{n:,}" for n in lengths])
    panel.minorticks_off()
    panel.legend(frameon=False, loc="lower left")
    return figure


PICTURES: dict[str, Callable[[], Figure]] = {"seen": seen, "kept": kept, "growth": growth, "needles": needles}


def drawn(name: str) -> bytes:
    """Return a picture as SVG: the same bytes from the same data and versions."""
    content = BytesIO()
    with matplotlib.rc_context(STYLE):
        PICTURES[name]().savefig(content, format="svg", metadata={"Date": None, "Creator": None}, transparent=False)
    return b"\n".join(line.rstrip() for line in content.getvalue().splitlines()) + b"\n"


def main() -> int:
    """Write or check all pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    check, stale = parser.parse_args().check, 0
    for name in PICTURES:
        path, content = FOLDER / f"{name}.svg", drawn(name)
        if path.is_file() and path.read_bytes() == content:
            continue
        if check:
            print(f"{path.relative_to(ROOT)} differs: python benchmarks/pictures.py", file=sys.stderr)
            stale = 1
        else:
            replace(path, content)
    return stale


if __name__ == "__main__":
    sys.exit(main())
