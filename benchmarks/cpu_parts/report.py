"""Bounds, claims and the Markdown page of `benchmarks/cpu.py`, from its figures."""

from typing import Any

DYNAMIC, STATIC = "dense, DynamicCache", "dense, StaticCache"
WHOLE, HALF, QUARTER = "density 1.0", "plan 0.5", "plan 0.25"
WITHOUT = "without attention"

Figures = dict[str, Any]


def prefill_bound(found: Figures, cell: Figures, plan: str) -> float:
    """Seconds: the time without attention, and the part of attention's that the plan keeps."""
    dense, without = cell["seconds"][DYNAMIC]["median"], cell["seconds"][WITHOUT]["median"]
    return float(without + found["kept"][plan][str(cell["length"])] * (dense - without))


def decode_bound(found: Figures, cell: Figures, variant: str) -> float:
    """Seconds: a step without attention, and the reading of the keys."""
    keys = cell["held"][variant] / found["rates"]["bytes_per_second"]
    return float(cell["seconds"][WITHOUT]["median"] + keys)


def bytes_bound(found: Figures, cell: Figures, variant: str) -> float:
    """Seconds to read the weights and the keys once."""
    return float((found["rates"]["weights"] + cell["held"][variant]) / found["rates"]["bytes_per_second"])


def claims(found: Figures) -> list[Figures]:
    """What must hold, and what was measured."""
    out: list[Figures] = []

    def claim(text: str, measured: float, bound: float, at_most: bool = False) -> None:
        holds = measured <= bound if at_most else measured >= bound
        out.append({"claim": text, "measured": measured, "bound": bound, "holds": holds})

    def times(cell: Figures, variant: str, over: tuple[str, ...] = (DYNAMIC, STATIC)) -> float:
        """How many times faster than the fastest of `over`."""
        medians = {name: s["median"] for name, s in cell["seconds"].items()}
        return float(min(medians[name] for name in over) / medians[variant])

    for cell in (*found["prefill"], *found["decode"]):
        fastest = min((DYNAMIC, STATIC), key=lambda name: cell["seconds"][name]["median"])
        spread = cell["seconds"][WHOLE]["spread"] + cell["seconds"][fastest]["spread"]
        claim(f"{_where(cell)}: density 1.0 takes of the faster dense at most 1.05 and both spreads",
              1 / times(cell, WHOLE), 1.05 + spread, at_most=True)  # fmt: skip
    long = found["prefill"][-1]
    for plan in (HALF, QUARTER):
        seconds = long["seconds"][plan]["median"]
        claim(f"{_where(long)}: {plan} reaches of the bound at least", prefill_bound(found, long, plan) / seconds, 0.8)
    claim(f"{_where(long)}: plan 0.25 against dense, at least times", times(long, QUARTER, (DYNAMIC,)), 1.5)
    most = found["decode"][-1]
    claim(f"{_where(most)}: plan 0.25 against StaticCache, at least times", times(most, QUARTER, (STATIC,)), 2.2)
    claim(f"{_where(most)}: plan 0.25 against DynamicCache, at least times", times(most, QUARTER, (DYNAMIC,)), 4)
    for cell in found["decode"]:
        if cell["batch"] == 1:
            for plan in (HALF, QUARTER):
                claim(f"{_where(cell)}: {plan} against the faster dense, at least times", times(cell, plan), 1)
    held = most["held"]
    claim(f"{_where(most)}: plan 0.25 allocates of StaticCache at most", held[QUARTER] / held[STATIC], 0.28, True)
    peaks = {cell["variant"]: cell["decode"] for cell in found["memory"]}
    for plan in (HALF, QUARTER):
        fall, saved = peaks[STATIC] - peaks[plan], held[STATIC] - held[plan]
        part = fall / saved if saved else 0.0
        claim(f"{_where(most)}: peak memory falls by what {plan} saves, at least this part of it", part, 0.95)
    return out


def markdown(found: Figures) -> str:
    """The page: environment, prefill, decode, memory, claims."""
    about = ", ".join(f"{name} {value}" for name, value in found["environment"].items())
    lines = [
        f"{about}; memory is read at {found['rates']['bytes_per_second'] / 1e9:.1f} GB/s.", "",
        "Spread is the distance between the quartiles as a share of the median.", "",
        "Prefill, batch 1:", "", *_prefill(found), "",
        "A decode step:", "", *_decode(found), "",
        "Peak memory of a process, MiB:", "", *_memory(found), "",
        *_table("claim", "bound", "measured", "holds"),
    ]  # fmt: skip
    for c in found["claims"]:
        lines.append(_row(c["claim"], f"{c['bound']:.3f}", f"{c['measured']:.3f}", "yes" if c["holds"] else "no"))
    return "\n".join(lines) + "\n"


def _prefill(found: Figures) -> list[str]:
    lines = _table("tokens", "variant", "seconds", "spread", "against dense", "kept", "bound, s", "of bound")
    for cell in found["prefill"]:
        dense, n = cell["seconds"][DYNAMIC]["median"], cell["length"]
        for name, taken in cell["seconds"].items():
            seconds = taken["median"]
            kept = ["-", "-", "-"]
            if name in found["kept"]:
                bound = prefill_bound(found, cell, name)
                kept = [f"{found['kept'][name][str(n)]:.3f}", f"{bound:.2f}", f"{bound / seconds:.2f}"]
            figures = f"{seconds:.2f}", f"{taken['spread']:.1%}", f"{dense / seconds:.2f}"
            lines.append(_row(f"{n:,}", name, *figures, *kept))
    return lines


def _decode(found: Figures) -> list[str]:
    against = "against StaticCache", "against DynamicCache"
    bounds = "bound, ms", "of bound", "bytes alone, ms"
    lines = _table("tokens", "batch", "variant", "KV, MiB", "ms", "spread", "tokens/s", *against, *bounds)
    for cell in found["decode"]:
        medians = {name: taken["median"] for name, taken in cell["seconds"].items()}
        for name, seconds in medians.items():
            figures = f"{1e3 * seconds:.1f}", f"{cell['seconds'][name]['spread']:.1%}", f"{cell['batch'] / seconds:.1f}"
            times = [f"{medians[dense] / seconds:.2f}" for dense in (STATIC, DYNAMIC)]
            where = f"{cell['length']:,}", str(cell["batch"]), name
            kept = ["-", "-", "-", "-"]
            if name != WITHOUT:
                bound, least = (f(found, cell, name) for f in (decode_bound, bytes_bound))
                kept = [f"{cell['held'][name] / 2**20:.0f}", f"{1e3 * bound:.1f}", f"{bound / seconds:.2f}",
                        f"{1e3 * least:.1f}"]  # fmt: skip
            lines.append(_row(*where, kept[0], *figures, *times, *kept[1:]))
    return lines


def _memory(found: Figures) -> list[str]:
    lines = _table("tokens", "variant", "model alone", "and the back-end", "one prefill", "decoding the batch", "batch")
    for cell in found["memory"]:
        peaks = [f"{cell[stage] / 2**20:,.0f}" for stage in ("model", "backend", "prefill", "decode")]
        lines.append(_row(f"{cell['length']:,}", cell["variant"], *peaks, str(cell["batch"])))
    return lines


def _where(cell: Figures) -> str:
    if "batch" in cell:
        return f"decode, {cell['length']:,} tokens, batch {cell['batch']}"
    return f"prefill, {cell['length']:,} tokens"


def _table(*columns: str) -> list[str]:
    return [_row(*columns), f"|{'---|' * len(columns)}"]


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"
