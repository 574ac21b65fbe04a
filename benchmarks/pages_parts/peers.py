"""Write the block about the methods of kvpress beside plans, at equal bytes."""

from collections.abc import Sequence

from pages_parts.common import MIB, Figures, table, wrapped
from peers.claims import questions, right, wins
from peers.samples import NEEDLES, TASKS

from moa.evaluation import summary


def peers(found: Figures) -> str:
    """Return all rows, and in which of them a peer is better than our plan."""
    rows, settings, versions = found["rows"], found["settings"], found["peers"]
    better = wins(rows)
    return "\n\n".join([
        wrapped(
            f"The peers are those of kvpress {versions['kvpress']} with transformers {versions['transformers']}, with "
            "its defaults, in a process of their own. They read a text with full attention and then drop what exceeds "
            "the bytes that the plan's cache needs for it; other rows of moa need no more than the plan at the whole "
            "length. "
            "Kept and allocated bytes are shares of those of all keys and values of the largest text: a peer that "
            "allocates more than it keeps only masks what it would drop, and a plan's cache, which grows in steps, has "
            "the rest in reserve. Later tokens all stay in a peer's cache. "
            "Needles are asked about after the text was compressed, or given: at its end, and compressed with it. "
            f"Perplexity and KL divergence from the dense model are those of {settings['tail']} tokens behind a "
            "compressed window. Times are medians with the distance between the quartiles, as a share; memory is the "
            "peak of the process, libraries and weights included. A peer is called better where the 95 % interval of "
            "the paired difference from the plan (of needles by question, of KL by window) excludes 0, or where times "
            "differ by more than the quartiles of either; what is neither better nor worse is not told apart."
        ),
        rowed([row for row in rows if "read" not in row]),
        *read(found),
        "\n".join(f"- {one}" for one in better)
        if better
        else "No peer finds more needles than the plan, has less KL, or takes less time or memory.",
    ])  # fmt: skip


def read(found: Figures) -> list[str]:
    """Return the rows that are compared at equal bytes read, and what they are; none where they were not measured."""
    rows = [row for row in found["rows"] if "read" in row]
    if not rows:
        return []
    text = (
        "At equal bytes read in a decode step, summaries included, on the same samples, all on moa's runtime: what the "
        "search finds, the same share for every group, and the selections of Quest, UNIQUE and RocketKV, whose two "
        "stages keep half by a window or by unlikeness of keys, and read of that. *read* is the share of all bytes. A "
        "question that is given is part of the prefill, which reads everything."
    )
    return [wrapped(text), rowed([row for row in found["rows"] if "read" in row or row["row"] == "dense"])]


def short(found: Figures) -> str:
    """Return the quality of all rows at the greatest length and the first budget."""
    length = max(row["length"] for row in found["rows"])
    here = [row for row in found["rows"] if row["length"] == length]
    budget = next(row["budget"] for row in here if "budget" in row)
    first = [row for row in here if row.get("budget", budget) == budget]
    lines = []
    for row in first:
        needles = [f"{right(row, mode)} of {questions(row, mode)}" for mode in NEEDLES]
        shares = f"{row['kept']:.3f}", f"{row.get('read', row['kept']):.3f}"
        lines.append([row["row"], *shares, *needles, f"{row['tail']['kl']:.4f}"])
    text = (
        f"Plans, and methods as kvpress {found['peers']['kvpress']} runs them, at {length:,} tokens, the latter in no "
        "more bytes than the plan's cache; rows that say *read* are plans and selections at equal bytes read. The "
        "columns *kept* and *read* are shares of all bytes. Questions come after the text was compressed (withheld) "
        "or with it (given)."
    )
    columns = ["row", "kept", "read", *(f"needles, {mode}" for mode in NEEDLES), "KL, nats"]
    better = [f"- {one}" for one in wins(first) if "better: " in one]
    said = "\n".join(better) or "Of no method can it be told that it is better than the plan at the same bytes."
    return "\n\n".join([wrapped(text), table(columns, lines), said])


def rowed(rows: Sequence[Figures]) -> str:
    """Return the table of some rows."""
    reads = any("read" in row for row in rows)
    headings, shown = summary.table([{**row, "density": row["kept"], "kv_bytes": 0} for row in rows], TASKS)
    first = len(summary.KEPT) + reads
    columns = ["tokens", "row", "kept", "allocated", *["read"] * reads, *headings[first:]]
    columns += [] if reads else ["prefill, s", "step, ms", "peak, MiB"]
    cells = []
    for row, old in zip(rows, shown, strict=True):
        shares = [f"{row['kept']:.3f}", f"{row['allocated']:.3f}", *[f"{row.get('read', 1):.3f}"] * reads]
        times = [] if reads else timed(row) if "peak" in row else "---"
        cells.append([*old[:2], *shares, *old[first:], *times])
    return table(columns, cells)


def timed(row: Figures) -> tuple[str, str, str]:
    """Return a row's times and memory."""
    prefill, step = row["prefill"], row["step"]
    times = f"{prefill['median']:.2f} ({prefill['iqr']:.0%})", f"{1000 * step['median']:.1f} ({step['iqr']:.0%})"
    return *times, f"{row['peak'] / MIB:,.0f}"
