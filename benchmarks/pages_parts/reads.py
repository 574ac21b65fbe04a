"""Write blocks about plans that read less than they keep: quality, other ways to choose, and the profile's figures."""

from pages_parts.common import Figures, claims, percent, table, wrapped
from pages_parts.quality import DENSE, TASKS

READS = "fisher", "effect"
TRUTHS = {"kl": "KL", "margin": "margin"}


def found_of(row: Figures, task: str) -> str:
    """Return right answers of all, or nothing where a row lacks them."""
    return f"{row[task]['right']} of {row[task]['questions']}" if task in row else "-"


def quality(found: Figures) -> str:
    """Return needles and the perplexity of decoded text of every row, and the aims that are missed."""
    dense = {row["length"]: row["decoded"]["perplexity"] for row in found["rows"] if row["row"] == DENSE}
    rows = [
        [
            f"{row['length']:,}", row["row"], f"{row['density']:.3f}", f"{row.get('read', row['density']):.3f}",
            *(found_of(row, task) for task in TASKS), f"{row['decoded']['perplexity'] / dense[row['length']]:.3f}",
        ]
        for row in found["rows"]
    ]  # fmt: skip
    columns = "tokens", "row", "kept", "read", *TASKS.values(), "perplexity decoded, of dense"
    return "\n\n".join([table(columns, rows), claims(found)])


def baselines(found: Figures) -> str:
    """Return what ways to choose the bytes that a step reads find and lose."""
    dense = {row["length"]: row["decoded"]["kl"] for row in found["rows"] if row["row"] == DENSE}
    rows = [
        [
            row["row"], f"{row['density']:.3f}", f"{row.get('read', row['density']):.3f}",
            *(found_of(row, task) for task in TASKS), f"{row['decoded']['kl']:.4f}",
        ]
        for row in found["rows"]
    ]  # fmt: skip
    about = f"Texts have {' and '.join(f'{length:,}' for length in dense)} tokens. KL is of decoded text, in nats."
    return "\n\n".join([wrapped(about), table(["", "kept", "read", *TASKS.values(), "KL"], rows)])


def truth(found: Figures) -> str:
    """Return how the profile's figures of reads rank groups, against what single groups lose."""
    rows = []
    for row in found["rows"]:
        ranks = (row["spearman"][name][of] for name in READS for of in TRUTHS)
        cells = ("-" if rank is None else f"{rank:.2f}" for rank in ranks)
        size = f"{row['size']['ratio']:.2f} ({percent(row['size']['iqr'])})"
        rows.append([f"{row['length']:,}", f"1/{round(1 / row['share'])}", *cells, size])
    about = (
        f"Spearman's correlation with the truth, {found['samples']} samples per length, {found['groups']} groups; "
        "*size* is the KL that `fisher` predicts over the measured one, the median over groups and its IQR."
    )
    columns = "tokens", "read", *(f"{name}, {says}" for name in READS for says in TRUTHS.values()), "size"
    return "\n\n".join([wrapped(about), table(columns, rows), claims(found)])
