"""Write blocks about profiling: what it costs, and how well its estimators rank groups."""

from pages_parts.common import MIB, Figures, claims, listed, percent, span, table, wrapped


def truth(found: Figures) -> str:
    """Return the rank correlation of every estimator with the harm of single cuts."""
    groups = found["groups"] if "groups" in found else len(found["truth"])
    about = f"{found['length']:,} tokens, {found['samples']} samples, {groups} groups."
    if "size" not in found:  # a file of before: cuts of first keys alone
        rows = [[row["text"], f"{row['spearman']:.2f}"] for row in found["rows"]]
        return "\n\n".join([about, table(["estimator", "Spearman with the truth"], rows), claims(found)])
    kinds = {"sink_window": "first keys", "keydiff_window": "keydiff"}
    truths = {"kl": "KL", "margin": "margin"}
    rows = []
    for row in found["rows"]:
        ranks = [row["spearman"][kind][name] for kind in kinds for name in truths]
        rows.append([row["text"], *("-" if rank is None else f"{rank:.2f}" for rank in ranks)])
    columns = [f"{says}, {name}" for says in kinds.values() for name in truths.values()]
    sizes = [
        f"{size['ratio']:.2f} times the measured one for {says} (IQR {percent(size['iqr'])})"
        for size, says in ((found["size"][kind], says) for kind, says in kinds.items())
    ]
    return "\n\n".join([
        about,
        table(["Spearman with the truth", *columns], rows),
        wrapped(f"In the median over groups the KL that `fisher` predicts is {listed(sizes)}."),
        claims(found),
    ])  # fmt: skip


def iqr(taken: Figures) -> str:
    """Return the distance between the quartiles as a share of the median, where the file has it."""
    return f" ({percent(taken['iqr'])})" if "iqr" in taken else ""


def cost(found: Figures) -> str:
    """Return time and memory beside a plain forward and backward pass."""
    columns = "length", "plain, s", "profiling, s", "ratio", "plain, peak MiB", "profiling, peak MiB"
    rows, pairs = [], []
    for row in found["rows"]:
        both = row["plain"], row["fisher"]
        seconds = [f"{x['seconds']:.1f}{iqr(x)}" for x in both]
        peaks = [f"{x['bytes'] / MIB:.0f}" for x in both]
        rows.append([f"{row['length']:,}", *seconds, f"{row['ratio']:.2f}{iqr(row)}", *peaks])
        pairs.append(both[1]["bytes"] / both[0]["bytes"])
    runs = "one run" if found["repeats"] == 1 else f"medians of {found['repeats']} runs, and their IQR,"
    ratios = span([row["ratio"] for row in found["rows"]], ".2f")
    line = found["memory_fit"]
    slope = f", and grows by {line['bytes_per_token'] / 1e3:.0f} KB a token" if line else ""
    return "\n\n".join([
        wrapped(
            f"Profiling takes {ratios} times as long as a plain forward and backward pass under the same "
            f"checkpointing ({runs} per length). Its peak of memory above the weights is {span(pairs, '.2f')} times "
            f"that of the plain pass{slope}. While peaks were measured, freed memory went back to the system at once."
        ),
        table(columns, rows),
        *([claims(found)] if "claims" in found else []),
    ])  # fmt: skip
