"""Write blocks about profiling: what it costs, and how well its estimators rank groups."""

from pages_parts.common import MIB, Figures, claims, listed, percent, span, table, wrapped


def truth(found: Figures) -> str:
    """Return the rank correlation of every estimator with the harm of single cuts."""
    about = f"{found['length']:,} tokens, {found['samples']} samples, {found['groups']} groups."
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


def cost(found: Figures) -> str:
    """Return time and memory beside a plain forward and backward pass."""
    columns = "length", "plain, s", "profiling, s", "ratio", "plain, peak MiB", "profiling, peak MiB"
    rows, pairs = [], []
    for row in found["rows"]:
        both = row["plain"], row["fisher"]
        seconds = [f"{x['seconds']:.1f} ({percent(x['iqr'])})" for x in both]
        peaks = [f"{x['bytes'] / MIB:.0f}" for x in both]
        rows.append([f"{row['length']:,}", *seconds, f"{row['ratio']:.2f} ({percent(row['iqr'])})", *peaks])
        pairs.append(both[1]["bytes"] / both[0]["bytes"])
    ratios = span([row["ratio"] for row in found["rows"]], ".2f")
    line = found["memory_fit"]
    slope = f", and grows by {line['bytes_per_token'] / 1e3:.0f} KB a token" if line else ""
    return "\n\n".join([
        wrapped(
            f"Profiling takes {ratios} times as long as a plain forward and backward pass under the same "
            f"checkpointing (medians of {found['repeats']} runs and their IQR, per length). Its peak of memory "
            f"above the weights is {span(pairs, '.2f')} times that of the plain pass{slope}. While peaks were "
            "measured, freed memory went back to the system at once."
        ),
        table(columns, rows),
        claims(found),
    ])  # fmt: skip
