"""Write blocks about plans that read less than they keep: what they cost in quality, beside other ways to choose."""

from pages_parts.common import Figures, claims, table, wrapped
from pages_parts.quality import DENSE, TASKS

COLUMNS = "kept", "read", *TASKS.values()


def cells(row: Figures) -> list[str]:
    """Return a row's cells under COLUMNS; a task that it lacks has none."""
    shares = [f"{row['density']:.3f}", f"{row.get('read', row['density']):.3f}"]
    tasks = (row.get(task) for task in TASKS)
    return shares + [f"{task['right']} of {task['questions']}" if task else "-" for task in tasks]


def quality(found: Figures) -> str:
    """Return needles and the perplexity of decoded text of every row, and the aims that are missed."""
    dense = {row["length"]: row["decoded"]["perplexity"] for row in found["rows"] if row["row"] == DENSE}
    rows = []
    for row in found["rows"]:
        against = row["decoded"]["perplexity"] / dense[row["length"]]
        rows.append([f"{row['length']:,}", row["row"], *cells(row), f"{against:.3f}"])
    return "\n\n".join([table(["tokens", "row", *COLUMNS, "perplexity decoded, of dense"], rows), claims(found)])


def baselines(found: Figures) -> str:
    """Return what ways to choose the bytes that a step reads find and lose."""
    rows = [[row["row"], *cells(row), f"{row['decoded']['kl']:.4f}"] for row in found["rows"]]
    lengths = dict.fromkeys(row["length"] for row in found["rows"])
    about = f"Texts have {' and '.join(f'{length:,}' for length in lengths)} tokens. KL is of decoded text, in nats."
    return "\n\n".join([wrapped(about), table(["", *COLUMNS, "KL"], rows)])
