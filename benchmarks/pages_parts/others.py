"""Write blocks about model families, generated command lines, kernels compiled ahead of time, bounds on GPUs."""

from collections import Counter
from collections.abc import Iterator

from pages_parts.common import Figures, claims, listed, percent, span, table, wrapped

SAYS = {"wrong": "WRONG", "works": "works", "refused": "refused by name", "not built": "cannot be built or run here"}


def models(found: Figures) -> str:
    """Return every causal language model of transformers."""
    results: dict[str, Figures] = found["models"]
    counted = Counter(one["status"] for one in results.values())
    counts = ", ".join(f"{says}: {counted[status]}" for status, says in SAYS.items() if counted[status])

    def why(one: Figures) -> str:
        if one["status"] == "works":
            return f"largest difference {one['difference']:.0e}"
        return str(one["why"]).replace("|", "/")

    rows = [
        [f"`{kind}`", SAYS[status], why(one)]
        for status in SAYS
        for kind, one in results.items()
        if one["status"] == status
    ]
    whole = f"transformers {found['run']['transformers']} lists {len(results)} causal language models ({counts})."
    parts = [whole, table(["model type", "plans", "reason, or difference from the oracle"], rows)]
    if shares := found.get("shares"):
        parts += [SHARES, table(["model type", "layers with rules", "other layers", *_LENGTHS], list(_shares(shares)))]
    return "\n\n".join(parts)


SHARES = wrapped(
    "Of models that work and whose layers are of several kinds, the table says what a plan can reach: the KV cache of "
    "one text in bfloat16, and the share of it in the layers that take rules. It counts the default config of each "
    "type, and needs no profile; `moa doctor MODEL` says the same of a model. States come on top, of a constant size. "
    "A type is left out if its default config has one kind of layers, all of which take rules or none: where all do, a "
    "plan reaches the whole cache."
)
_LENGTHS = ("at 32,768 tokens", "at 131,072 tokens")


def _shares(shares: dict[str, Figures]) -> Iterator[list[str]]:
    for kind, one in shares.items():
        ruled = one["layers"] - sum(one["others"].values())
        others = ", ".join(f"{count} {name}" for name, count in one["others"].items())
        cells = (f"{size / 2**30:.2f} GiB, {one['share'][n]:.0%}" for n, size in one["kv_bytes"].items())
        yield [f"`{kind}`", f"{ruled} of {one['layers']}", others, *cells]


def pass_through(found: Figures) -> str:
    """Return what a hybrid takes under the dense plan, beside the bare model."""

    def ms(times: Figures) -> str:
        return f"{1000 * times['median']:,.0f} ({percent(times['iqr'])})"

    rows = [
        [f"{row['length']:,}", row["phase"], ms(row["bare"]), ms(row["dense plan"]), f"{row['ratio']:.3f}"]
        for row in found["rows"]
    ]
    columns = "tokens", "phase", "bare, ms (IQR)", "dense plan, ms (IQR)", "ratio"
    return "\n\n".join([table(columns, rows), claims(found)])


def fuzz(found: Figures) -> str:
    """Return the counts of `make fuzz-cli`."""
    first, last = found["seeds"][0], found["seeds"][1] - 1
    rows = [
        [f"`moa {command}`", *(f"{n:,}" for n in (right + refused, right, refused))]
        for command, right, refused in ((name, n["right"], n["refused"]) for name, n in found["commands"].items())
    ]
    return "\n\n".join([
        wrapped(
            f"`make fuzz-cli` ran {found['cases']:,} cases, seeds {first} to {last:,}, in "
            f"{found['seconds'] / 60:.0f} minutes of one process, with {len(found['failures'])} failures. Of those "
            f"that succeeded, {found['compared']:,} were compared with the answer of the plain command line."
        ),
        table(["command", "cases", "right", "refused in one line"], rows),
    ])  # fmt: skip


def compiled(found: Figures) -> str:
    """Return how many configurations were compiled, and what the compiler reports."""
    rows = found["rows"]
    kernels, targets = ({row[key]: None for row in rows} for key in ("kernel", "target"))
    spilled = sum(row["spills"] > 0 for row in rows)
    registers = span([row["registers"] for row in rows], "d")
    largest = max(row["shared"] for row in rows) / 1024
    return wrapped(
        f"{len(rows)} configurations of {len(kernels)} kernels were compiled for {listed(list(targets))}; "
        f"{spilled or 'none'} of them spill registers. A thread takes {registers} registers, and a program takes at "
        f"most {largest:.0f} KiB of shared memory."
    )


def roofline(found: Figures) -> str:
    """Return the bound on decode throughput over dense for a model of Llama-3-8B's shape."""
    length = 16384
    rows = [row for row in found["rows"] if row["model"] == "Llama-3-8B" and row["length"] == length]
    cells = []
    for device in dict.fromkeys(row["device"] for row in rows):
        own = {row["density"]: row for row in rows if row["device"] == device}
        for density, row in own.items():
            over = row["tokens_per_s"] / own[1.0]["tokens_per_s"]
            figures = f"{row['step_ms']:.1f}", f"{row['tokens_per_s']:,.0f}", f"{over:.2f}"
            cells.append([device, f"{density:g}", str(row["batch"]), *figures])
    reads = [row for row in found["reads"] if row["length"] == 2 * length]
    shares = []
    for row in reads:
        whole = next(x for x in reads if x["device"] == row["device"] and x["read"] == 1)
        moved, over = row["bytes"] + row["scores"], row["tokens_per_s"] / whole["tokens_per_s"]
        figures = f"{moved:.3f}", str(row["batch"]), f"{row['step_ms']:.1f}", f"{over:.2f}"
        shares.append([row["device"], f"{row['read']:g}", *figures])
    return "\n\n".join([
        f"The table is for a model of Llama-3-8B's shape at {length:,} tokens, with the largest batch that fits.",
        table(["device", "density", "batch", "step, ms", "tokens/s", "over dense"], cells),
        wrapped(
            f"At {2 * length:,} tokens, steps that keep all keys and read a share of their bytes: bytes are those of "
            "keys, values, summaries and scores, as a share of all keys and values."
        ),
        table(["device", "read", "bytes", "batch", "step, ms", "tokens/s over dense"], shares),
    ])  # fmt: skip
