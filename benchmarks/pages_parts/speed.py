"""Write blocks about speed and memory on a CPU: whole models, and attention alone."""

from collections.abc import Sequence

from cpu_parts.report import (
    DYNAMIC,
    EIGHTH,
    FIRST_KEYS,
    HALF,
    QUARTER,
    STATIC,
    WHOLE,
    WITHOUT,
    decode_bound,
    prefill_bound,
)
from pages_parts.common import MIB, Figures, aims_met, claims, percent, table, wrapped

SHOWN = DYNAMIC, STATIC, WHOLE, EIGHTH, HALF, QUARTER, FIRST_KEYS


def timed(cell: Figures, name: str, unit: float, form: str) -> str:
    """Return a median, and the distance between the quartiles as a share of it."""
    taken = cell["seconds"][name]
    return f"{format(unit * taken['median'], form)} ({100 * taken['iqr']:.0f} %)"


def cells(found: Figures, variants: Sequence[str]) -> list[list[str]]:
    """Return the rows of both tables."""
    long, most = found["prefill"][-1], found["decode"][-1]
    n, batch = most["length"], most["batch"]
    alone = [cell for cell in found["decode"] if cell["batch"] == 1 and cell["length"] in (2048, n)]
    peaks = {cell["variant"]: cell for cell in found["memory"]}
    rows = [[f"prefill of {long['length']:,} tokens, s", *(timed(long, name, 1, ".1f") for name in variants)]]
    for cell in [*alone, most]:
        where = f"decode step at {cell['length']:,} tokens, batch {cell['batch']}, ms"
        rows.append([where, *(timed(cell, name, 1e3, ".0f") for name in variants)])
    at = f"at {n:,} tokens, batch {batch}, MiB"
    rows.append([f"KV cache {at}", *(f"{most['held'][name] / MIB:,.0f}" for name in variants)])
    taken = [f"{peaks[name]['decode'] / MIB:,.0f}" if name in peaks else "-" for name in variants]
    rows.append([f"peak memory of the process {at}", *taken])
    return rows


def ratio(cell: Figures, name: str, over: str) -> float:
    """Return how many times faster one variant is than another."""
    return float(cell["seconds"][over]["median"] / cell["seconds"][name]["median"])


def kinds(found: Figures) -> str:
    """Return the sentence that says which plans these are."""
    counts = found["rounds"]
    return (
        "The plans are those of the default search at densities 0.5 and 0.25. Figures are medians of "
        f"{counts['prefill']} prefills, and of {counts['steps']} decode steps in each of {counts['decode']} rounds"
    )


def speed(found: Figures) -> str:
    """Return README's table."""
    long, most = found["prefill"][-1], found["decode"][-1]
    variants = STATIC, HALF, QUARTER
    return "\n\n".join([
        wrapped(
            f"{kinds(found)}. Variants take turns in one process. Figures are medians; the distance between the "
            "quartiles is in brackets, as a share of the median. `StaticCache` and `DynamicCache` are "
            "transformers' own."
        ),
        table(["", *variants], cells(found, variants)),
        wrapped(
            f"Under plan 0.25 a prefill of {long['length']:,} tokens is {ratio(long, QUARTER, DYNAMIC):.2f} times as "
            f"fast as dense; a decode step of batch {most['batch']} is {ratio(most, QUARTER, STATIC):.2f} times as "
            f"fast as with `StaticCache` and {ratio(most, QUARTER, DYNAMIC):.2f} times as fast as with "
            f"`DynamicCache`. {aims_met(found)}"
        ),
    ])  # fmt: skip


def whole(found: Figures) -> str:
    """Return the same with every variant and the aims."""
    return "\n\n".join([wrapped(f"{kinds(found)}."), table(["", *SHOWN], cells(found, SHOWN)), claims(found)])


def bounds(found: Figures) -> str:
    """Return what bounds a decode step and a prefill."""
    cell, long = found["decode"][-1], found["prefill"][-1]
    n, batch, rate = cell["length"], cell["batch"], found["rates"]["bytes_per_second"]
    without, held = 1e3 * cell["seconds"][WITHOUT]["median"], cell["held"][QUARTER]
    rows = []
    for name in SHOWN:
        bound, ms = 1e3 * decode_bound(found, cell, name), 1e3 * cell["seconds"][name]["median"]
        row = [name, f"{bound:.0f}", f"{ms:.0f}", f"{bound / ms:.2f}"]
        if name in found["kept"]:
            least, taken = prefill_bound(found, long, name), long["seconds"][name]["median"]
            row += [f"{least:.1f}", f"{taken:.1f}", f"{least / taken:.2f}"]
        rows.append(row + ["-"] * (7 - len(row)))
    columns = "", "step's bound, ms", "measured", "reached", "prefill's bound, s", "measured", "reached"
    over = any(float(row[3]) > 1 for row in rows)
    return "\n\n".join([
        wrapped(
            f"At {n:,} tokens and batch {batch} a step without attention takes {without:.0f} ms. The keys and values "
            f"that plan 0.25 keeps are {held / MIB:,.0f} MiB, which take {1e3 * held / rate:.0f} ms at the "
            f"{rate / 1e9:.1f} GB/s at which this machine reads memory, by a sum of numbers."
            + " A step that reaches more than 1 reads faster than this sum did." * over
        ),
        table(columns, rows),
    ])  # fmt: skip


def attention(found: Figures) -> str:
    """Return one step through the layers' attention alone, and one layer's prefill where it was measured."""
    cases = found["results"]
    decode, prefill = ([case for case in cases if case["part"] == part] for part in ("decode", "prefill"))
    parts = []
    if decode:
        rows = []
        for case in decode:
            ms = case["ms"]
            for mix in ("1.0", "0.25"):
                library = ms["enable_gqa"] if mix == "1.0" else None
                ours = [ms[f"{mix} {backend}"] for backend in ("torch", "numba")]
                figures = [
                    f"{x['median']:.3g} ({percent(x['iqr'])}; {x['GB/s']:.1f})" if x else "-" for x in (library, *ours)
                ]
                rows.append([str(case["batch"]), f"{ours[0]['kept']:.2f}", *figures])
        one = decode[0]
        parts += [
            wrapped(
                f"One step through {one['layers']} layers of caches of {one['length']:,} slots with SmolLM2-135M's "
                f"heads, in milliseconds, medians of {found['repeats']}; in brackets are the distance between the "
                "quartiles, as a share of the median, and the GB/s at which keys and values are read. A sum of 256 MiB "
                f"reads {found['read_GB/s']:.1f} GB/s. Dense library attention uses `enable_gqa`."
            ),
            table(["batch", "kept", "library", "`torch`", "`numba`"], rows),
        ]
    if prefill:
        columns = "tokens", "rules", "ms (IQR)", "kept", "share of the ideal speed-up"
        rows = [
            [
                f"{case['length']:,}", name, f"{x['median']:.0f} ({percent(x['iqr'])})",
                *([f"{x['kept']:.2f}", percent(x["of_bound"])] if "kept" in x else ["1.00", "-"]),
            ]
            for case in prefill for name, x in case["ms"].items()
        ]  # fmt: skip
        parts += ["Prefill of one layer:", table(columns, rows)]
    return "\n\n".join(parts)
