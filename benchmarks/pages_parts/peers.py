"""Write the block about the methods of kvpress beside plans, at equal bytes."""

from pages_parts.common import MIB, Figures, table, wrapped
from peers.claims import wins
from peers.samples import TASKS

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
            "peak of the process, libraries and weights included."
        ),
        rowed(found),
        "\n".join(f"- {one}" for one in better)
        if better
        else "No peer finds more needles than the plan, has less KL, or takes less time or memory.",
    ])  # fmt: skip


def rowed(found: Figures) -> str:
    """Return the table of all rows."""
    headings, shown = summary.table([{**row, "density": row["kept"], "kv_bytes": 0} for row in found["rows"]], TASKS)
    first = len(summary.KEPT)
    columns = ["tokens", "row", "kept", "allocated", *headings[first:], "prefill, s", "step, ms", "peak, MiB"]
    cells = []
    for row, old in zip(found["rows"], shown, strict=True):
        shares = f"{row['kept']:.3f}", f"{row['allocated']:.3f}"
        cells.append([*old[:2], *shares, *old[first:], *(timed(row) if "peak" in row else "---")])
    return table(columns, cells)


def timed(row: Figures) -> tuple[str, str, str]:
    """Return a row's times and memory."""
    prefill, step = row["prefill"], row["step"]
    times = f"{prefill['median']:.2f} ({prefill['iqr']:.0%})", f"{1000 * step['median']:.1f} ({step['iqr']:.0%})"
    return *times, f"{row['peak'] / MIB:,.0f}"
