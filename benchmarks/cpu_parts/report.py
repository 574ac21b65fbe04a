"""Make the bounds, the claims and the Markdown page of `benchmarks/cpu.py` from its figures."""

from typing import Any

from provenance import about
from tables import claim, claimed, head, line

DYNAMIC, STATIC = "dense, DynamicCache", "dense, StaticCache"
WHOLE, HALF, QUARTER = "density 1.0", "plan 0.5", "plan 0.25"
FIRST_KEYS = "plan 0.25, first keys"
EIGHTH = "density 1.0, 1/8 read"
WITHOUT = "without attention"

AVX512 = "AVX512"
"""What torch calls a CPU that has it."""

Figures = dict[str, Any]


def prefill_bound(found: Figures, cell: Figures, plan: str) -> float:
    """Return a bound in seconds: the time without attention, and the part of attention's that the plan keeps."""
    dense, without = cell["seconds"][DYNAMIC]["median"], cell["seconds"][WITHOUT]["median"]
    return float(without + found["kept"][plan][str(cell["length"])] * (dense - without))


def bytes_read(found: Figures, cell: Figures, variant: str) -> float:
    """Return the bytes of keys and values that a step reads: all that is held, or of everything the part read."""
    if variant == EIGHTH:
        return float(cell["held"][WHOLE] * found["read"][str(cell["length"])])
    return float(cell["held"][variant])


def decode_bound(found: Figures, cell: Figures, variant: str) -> float:
    """Return a bound in seconds: a step without attention, and the reading of the keys."""
    keys = bytes_read(found, cell, variant) / found["rates"]["bytes_per_second"]
    return float(cell["seconds"][WITHOUT]["median"] + keys)


def bytes_bound(found: Figures, cell: Figures, variant: str) -> float:
    """Return the seconds to read the weights and the keys once."""
    return float((found["rates"]["weights"] + bytes_read(found, cell, variant)) / found["rates"]["bytes_per_second"])


def claims(found: Figures) -> list[Figures]:
    """Return what must hold, and what was measured."""

    def times(cell: Figures, variant: str, over: tuple[str, ...] = (DYNAMIC, STATIC)) -> float:
        """Return how many times faster a variant is than the fastest of `over`."""
        medians = {name: s["median"] for name, s in cell["seconds"].items()}
        return float(min(medians[name] for name in over) / medians[variant])

    out: list[Figures] = []
    for cell in (*found["prefill"], *found["decode"]):
        where, fastest = _where(cell), min((DYNAMIC, STATIC), key=lambda name: cell["seconds"][name]["median"])
        noise = cell["seconds"][WHOLE]["iqr"] + cell["seconds"][fastest]["iqr"]
        text = f"{where}: density 1.0 takes of the faster dense at most 1.05 and both IQRs"
        out.append(claim(text, 1 / times(cell, WHOLE), 1.05 + noise, at_most=True))
        text = f"{where}: plan 0.25 takes of the same plan with first keys at most"
        out.append(claim(text, 1 / times(cell, QUARTER, (FIRST_KEYS,)), 1.05, at_most=True))
    long, most = found["prefill"][-1], found["decode"][-1]
    for cell, bound in ((long, prefill_bound), (most, decode_bound)):
        for plan in (HALF, QUARTER):
            part = bound(found, cell, plan) / cell["seconds"][plan]["median"]
            out.append(claim(f"{_where(cell)}: {plan} reaches of the bound at least", part, 0.8))
    part = decode_bound(found, most, EIGHTH) / most["seconds"][EIGHTH]["median"]
    out.append(claim(f"{_where(most)}: {EIGHTH} reaches of the bound at least", part, 0.85))
    if found["run"]["vectors"] == AVX512:
        text = f"{_where(most)}: {EIGHTH} against StaticCache, at least times"
        out.append(claim(text, times(most, EIGHTH, (STATIC,)), 2.6))
        for cell, dense, least in ((long, DYNAMIC, 1.5), (most, STATIC, 2.3), (most, DYNAMIC, 4)):
            text = f"{_where(cell)}: plan 0.25 against {dense.removeprefix('dense, ')}, at least times"
            out.append(claim(text, times(cell, QUARTER, (dense,)), least))
    for cell in found["decode"]:
        if cell["batch"] == 1:
            for plan in (HALF, QUARTER, EIGHTH):
                out.append(
                    claim(f"{_where(cell)}: {plan} against the faster dense, at least times", times(cell, plan), 1)
                )
    held, where = most["held"], _where(most)
    text = f"{where}: plan 0.25 allocates of StaticCache at most"
    out.append(claim(text, held[QUARTER] / held[STATIC], 0.28, at_most=True))
    peaks = {cell["variant"]: cell["decode"] for cell in found["memory"]}
    for plan in (HALF, QUARTER):
        fall, saved = peaks[STATIC] - peaks[plan], held[STATIC] - held[plan]
        part = fall / saved if saved else 0.0
        out.append(claim(f"{where}: peak memory falls by what {plan} saves, at least this part of it", part, 0.95))
    return out


def markdown(found: Figures) -> str:
    """Return the page: the run, prefill, decode, memory, claims."""
    rounds = found["rounds"]
    lines = [
        about(found["run"]), "",
        f"Medians of {rounds['prefill']} prefills, and of {rounds['steps']} decode steps in each of {rounds['decode']} "
        "rounds; IQR is the distance between the quartiles as a share of the median. This machine reads memory at "
        f"{found['rates']['bytes_per_second'] / 1e9:.1f} GB/s.", "",
        "Prefill, batch 1:", "", *_prefill(found), "",
        "A decode step:", "", *_decode(found), "",
        "Peak memory of a process, MiB:", "", *_memory(found), "",
        *claimed(found["claims"]),
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _prefill(found: Figures) -> list[str]:
    lines = head(["tokens", "variant", "seconds", "IQR", "against dense", "kept", "bound, s", "of bound"])
    for cell in found["prefill"]:
        dense, n = cell["seconds"][DYNAMIC]["median"], cell["length"]
        for name, taken in cell["seconds"].items():
            seconds = taken["median"]
            kept = ["-", "-", "-"]
            if name in found["kept"]:
                bound = prefill_bound(found, cell, name)
                kept = [f"{found['kept'][name][str(n)]:.3f}", f"{bound:.2f}", f"{bound / seconds:.2f}"]
            figures = f"{seconds:.2f}", f"{taken['iqr']:.1%}", f"{dense / seconds:.2f}"
            lines.append(line(f"{n:,}", name, *figures, *kept))
    return lines


def _decode(found: Figures) -> list[str]:
    against = "against StaticCache", "against DynamicCache"
    bounds = "bound, ms", "of bound", "bytes alone, ms"
    lines = head(["tokens", "batch", "variant", "KV, MiB", "ms", "IQR", "tokens/s", *against, *bounds])
    for cell in found["decode"]:
        medians = {name: taken["median"] for name, taken in cell["seconds"].items()}
        for name, seconds in medians.items():
            figures = f"{1e3 * seconds:.1f}", f"{cell['seconds'][name]['iqr']:.1%}", f"{cell['batch'] / seconds:.1f}"
            times = [f"{medians[dense] / seconds:.2f}" for dense in (STATIC, DYNAMIC)]
            where = f"{cell['length']:,}", str(cell["batch"]), name
            kept = ["-", "-", "-", "-"]
            if name != WITHOUT:
                bound, least = (f(found, cell, name) for f in (decode_bound, bytes_bound))
                kept = [f"{cell['held'][name] / 2**20:.0f}", f"{1e3 * bound:.1f}", f"{bound / seconds:.2f}",
                        f"{1e3 * least:.1f}"]  # fmt: skip
            lines.append(line(*where, kept[0], *figures, *times, *kept[1:]))
    return lines


def _memory(found: Figures) -> list[str]:
    lines = head(["tokens", "variant", "model alone", "and the back-end", "one prefill", "decoding the batch", "batch"])
    for cell in found["memory"]:
        peaks = [f"{cell[stage] / 2**20:,.0f}" for stage in ("model", "backend", "prefill", "decode")]
        lines.append(line(f"{cell['length']:,}", cell["variant"], *peaks, str(cell["batch"])))
    return lines


def _where(cell: Figures) -> str:
    if "batch" in cell:
        return f"decode, {cell['length']:,} tokens, batch {cell['batch']}"
    return f"prefill, {cell['length']:,} tokens"
