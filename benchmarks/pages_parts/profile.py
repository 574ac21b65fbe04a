"""Write blocks about profiling: what it costs, and how well its estimators rank groups."""

from collections.abc import Iterable

from pages_parts.common import MIB, Figures, claims, listed, percent, span, table, wrapped

KINDS = {"sink_window": "first keys", "keydiff_window": "keydiff"}
TRUTHS = {"kl": "KL", "margin": "margin"}
ESTIMATORS = "fisher", "effect"
"""Those of a profile, in the table of reads."""
WAYS = {"plain": "plain", "fisher": "profiling", "reads": "profiling with reads"}
"""Passes that were timed, in the table of costs: those that the file has."""
OVER = {"": "profiling / plain", "reads_": "with reads / without"}


def ranked(ranks: Iterable[float | None]) -> list[str]:
    """Return rank correlations as cells."""
    return ["-" if rank is None else f"{rank:.2f}" for rank in ranks]


def truth(found: Figures) -> str:
    """Return the rank correlation of every estimator with the harm of single cuts."""
    about = f"{found['length']:,} tokens, {found['samples']} samples, {found['groups']} groups."
    rows = []
    for row in found["rows"]:
        ranks = (row["spearman"][kind][name] for kind in KINDS for name in TRUTHS)
        rows.append([row["text"], *ranked(ranks)])
    columns = [f"{says}, {name}" for says in KINDS.values() for name in TRUTHS.values()]
    sizes = [
        f"{size['ratio']:.2f} times the measured one for {says} (IQR {percent(size['iqr'])})"
        for size, says in ((found["size"][kind], says) for kind, says in KINDS.items())
    ]
    return "\n\n".join([
        about,
        table(["Spearman with the truth", *columns], rows),
        wrapped(f"In the median over groups the KL that `fisher` predicts is {listed(sizes)}."),
        claims(found),
    ])  # fmt: skip


def reads(found: Figures) -> str:
    """Return how the profile's figures of reads rank groups, against what single groups lose."""
    rows = []
    for row in found["rows"]:
        ranks = (row["spearman"][name][of] for name in ESTIMATORS for of in TRUTHS)
        size = f"{row['size']['ratio']:.2f} ({percent(row['size']['iqr'])})"
        rows.append([f"{row['length']:,}", f"1/{round(1 / row['share'])}", *ranked(ranks), size])
    about = (
        f"Spearman's correlation with the truth, {found['samples']} samples per length, {found['groups']} groups; "
        "*size* is the KL that `fisher` predicts over the measured one, the median over groups and its IQR."
    )
    columns = "tokens", "read", *(f"{name}, {says}" for name in ESTIMATORS for says in TRUTHS.values()), "size"
    return "\n\n".join([wrapped(about), table(columns, rows), claims(found)])


def cost(found: Figures) -> str:
    """Return time and memory beside a plain forward and backward pass."""
    ways = {name: says for name, says in WAYS.items() if name in found["rows"][0]}
    over = [says for way, says in (("fisher", ""), ("reads", "reads_")) if way in ways]
    columns = [
        "length", *(f"{says}, s" for says in ways.values()), *(OVER[says] for says in over),
        *(f"{says}, peak MiB" for says in ways.values()),
    ]  # fmt: skip
    rows, pairs = [], []
    for row in found["rows"]:
        each = [row[name] for name in ways]
        seconds = [f"{x['seconds']:.1f} ({percent(x['iqr'])})" for x in each]
        times = [f"{row[f'{says}ratio']:.2f} ({percent(row[f'{says}iqr'])})" for says in over]
        rows.append([f"{row['length']:,}", *seconds, *times, *(f"{x['bytes'] / MIB:.0f}" for x in each)])
        pairs.append(row["fisher"]["bytes"] / row["plain"]["bytes"])
    ratios = span([row["ratio"] for row in found["rows"]], ".2f")
    line = found["memory_fit"]
    heap = (
        f"Freed memory of {found['freed'] // MIB} MiB or more went back to the system, as under `moa profile`."
        if "freed" in found
        else "While peaks were measured, freed memory went back to the system at once."
    )
    slope = f", and grows by {line['bytes_per_token'] / 1e3:.0f} KB a token" if line else ""
    return "\n\n".join([
        wrapped(
            f"Profiling takes {ratios} times as long as a plain forward and backward pass under the same "
            f"checkpointing (medians of {found['repeats']} runs and their IQR, per length). Its peak of memory "
            f"above the weights is {span(pairs, '.2f')} times that of the plain pass{slope}. {heap}"
        ),
        table(columns, rows),
        claims(found),
    ])  # fmt: skip
