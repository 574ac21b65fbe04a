"""Profiling: what it costs, and how well its estimators rank groups."""

from pages_parts.common import MIB, Figures, claims, listed, span, table, wrapped


def truth(found: Figures) -> str:
    """Rank correlation of every estimator with the harm of single cuts."""
    if "run" not in found:  # of first keys and of KL alone
        about = f"{found['length']:,} tokens, {found['samples']} samples, {len(found['truth'])} groups."
        rows = [[row["text"], f"{row['spearman']:.2f}"] for row in found["rows"]]
        return "\n\n".join([about, table(["estimator", "Spearman with the truth"], rows), claims(found)])
    kinds = {"sink_window": "first keys", "keydiff_window": "keydiff"}
    columns = [(kind, name) for kind in kinds for name in ("kl", "margin")]
    rows = [[row["text"], *(f"{row['spearman'][kind][name]:.2f}" for kind, name in columns)] for row in found["rows"]]
    names = [f"{kinds[kind]}, {'KL' if name == 'kl' else 'margin'}" for kind, name in columns]
    sizes = listed([f"{found['size'][kind]['ratio']:.2f} with {says}" for kind, says in kinds.items()])
    return "\n\n".join([
        wrapped(
            f"{found['length']:,} tokens, {found['samples']} samples, {found['groups']} groups; Spearman's correlation "
            "with the truth, by the kind of sink: the KL divergence, and what the margin of the given answer loses."
        ),
        table(["estimator", *names], rows),
        wrapped(f"The KL divergence by `fisher` over the measured one has a median over groups of {sizes}."),
        claims(found),
    ])  # fmt: skip


def iqr(taken: Figures) -> str:
    """The distance between the quartiles as a share of the median, where the file has it."""
    return f" ({percent(taken['iqr'])})" if "iqr" in taken else ""


def cost(found: Figures) -> str:
    """Time and memory beside a plain forward and backward pass."""
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
            f"that of the plain pass{slope}. For these peaks freed memory went back to the system at once."
        ),
        table(columns, rows),
        *([claims(found)] if "claims" in found else []),
    ])  # fmt: skip
