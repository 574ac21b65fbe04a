"""Write blocks about plans that read less than they keep: what they cost in quality, beside other ways to choose."""

from pages_parts.common import RESULTS, Figures, claims, load, made, missing, table, wrapped
from pages_parts.quality import DENSE, TASKS
from tables import SIGNED, difference

COLUMNS = "kept", "read", *TASKS.values()
PERPLEXITIES = {"text": "perplexity", "decoded": "perplexity decoded"}
RUNS = "reads-2k", "reads-4k", "reads-8k"
"""Result files, one per length."""
TWIN = "uniform like "
"""Begins the names of rows of uniform reads, before that of the plan."""


def cells(row: Figures) -> list[str]:
    """Return a row's cells under COLUMNS; a task that it lacks has none."""
    shares = [f"{row['density']:.3f}", f"{row.get('read', row['density']):.3f}"]
    tasks = (row.get(task) for task in TASKS)
    return shares + [f"{task['right']} of {task['questions']}" if task else "-" for task in tasks]


def quality(found: Figures) -> str:
    """Return needles and perplexities of every row, their differences from what plans compare with, and missed aims."""
    perplexities = [task for task in ("text", "decoded") if any(task in row for row in found["rows"])]
    columns = ["tokens", "row", *COLUMNS, "asked in one call", *(PERPLEXITIES[task] for task in perplexities)]
    rows = []
    for row in found["rows"]:
        against = [f"{row[task]['perplexity_against_dense']:.3f}" for task in perplexities]
        rows.append([f"{row['length']:,}", row["row"], *cells(row), in_one_call(row), *against])
    says = (
        "Questions come in short calls, which read. In one call they read everything, and choose the answer's first "
        "token: what a plan finds so, with one needle and with four, stands beside it. Perplexity is of dense, of a "
        "prefill and as decoded."
    )
    return "\n\n".join([wrapped(says), table(columns, rows), *differences(found), claims(found)])


def short() -> str:
    """Return what plans find and lose as decoding reads them, beside uniform reads, at every length measured."""
    known = {name: load(name) for name in RUNS if (RESULTS / f"{name}.json").exists()}
    if not known:
        return missing(RUNS[0])
    rows = [
        [
            f"{row['length']:,}", row["row"], *cells(row),
            f"{row['decoded']['perplexity_against_dense']:.3f}",
        ]
        for found in known.values() for row in found["rows"] if not row["row"].endswith(": all of it")
    ]  # fmt: skip
    says = (
        "Shares are of the bytes of all keys and values, summaries included. Questions, answers and the ends of texts "
        "are decoded, so that they are read so. *Uniform like* is the same share for every head, of at least as many "
        "bytes as the plan above it reads and no more than it keeps."
    )
    lines = [made(name, found) for name, found in known.items()]
    return "\n\n".join([wrapped(says), table(["tokens", "row", *COLUMNS, "perplexity / dense"], rows), *lines])


def in_one_call(row: Figures) -> str:
    """Return what a row finds where questions come in one call, by task; `-` where it would be the same."""
    once = [row[task]["in_one_call"] for task in TASKS if "in_one_call" in row.get(task, ())]
    return " / ".join(f"{each['right']} of {each['questions']}" for each in once) or "-"


def differences(found: Figures) -> list[str]:
    """Return plans' needles minus those of what they compare with, on the same questions; nothing where none has any.

    That is uniform reads, and dense or the plan that reads all that it keeps.
    """
    by_name, rows = {(row["length"], row["row"]): row for row in found["rows"]}, []
    for (n, name), row in by_name.items():
        if (n, TWIN + name) not in by_name:
            continue
        base = by_name.get((n, f"{name}: all of it"), by_name[n, DENSE])
        for task in (task for task in TASKS if task in row):
            apart = (SIGNED.format(*difference(row, by_name[n, other], task)) for other in (base["row"], TWIN + name))
            rows.append([f"{n:,}", name, TASKS[task], *apart])
    columns = "tokens", "row", "", "minus dense, or all of it", "minus uniform reads"
    says = "Rates of right answers minus those of others to the same questions, with 95 % intervals:"
    return [says, table(columns, rows)] if rows else []


def baselines(found: Figures) -> str:
    """Return what ways to choose the bytes that a step reads find and lose."""
    rows = [[row["row"], *cells(row), f"{row['decoded']['kl']:.4f}"] for row in found["rows"]]
    lengths = dict.fromkeys(row["length"] for row in found["rows"])
    about = f"Texts have {' and '.join(f'{length:,}' for length in lengths)} tokens. KL is of decoded text, in nats."
    return "\n\n".join([wrapped(about), table(["", *COLUMNS, "KL"], rows)])
