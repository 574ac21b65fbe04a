"""What is claimed of the rows of `serving.py`, and the page that shows both."""

from collections.abc import Iterator, Sequence
from typing import Any

from provenance import about
from serving_parts.rows import CHUNKS, DENSE, QUARTER, Row, name
from serving_parts.sizes import TOLERANCE
from tables import claim, claimed, head, line

Claim = dict[str, Any]
RATE = "tokens per second"
NONE = {"bound": 0, "at_most": True}


def claims(rows: Sequence[Row]) -> list[Claim]:
    """Return every claim of which the rows have been measured."""
    return [*_exact(rows), *_memory(rows), *_speed(rows), *_crowds(rows)]


def _of(rows: Sequence[Row], stage: str, **what: Any) -> list[Row]:
    """Return the rows of a stage that have these arguments."""
    return [row for row in rows if row["stage"] == stage and all(row[key] == value for key, value in what.items())]


def _exact(rows: Sequence[Row]) -> Iterator[Claim]:
    for row in _of(rows, "equality"):
        found, what = row["found"], name(row)
        yield claim(f"{what}: wrong tokens", found["wrong"], **NONE)
        yield claim(f"{what}: largest difference of logprobs", found["difference"], TOLERANCE, at_most=True)
        if row["way"] == "preemption":
            yield claim(f"{what}: preemptions", found["preemptions"], 1)
        if row["way"] == "prefix cache" and "first keys" in row["plan"]:
            yield claim(f"{what}: tokens found there", found["tokens found there"], 1)
    for row in _of(rows, "cancellations"):
        for which in ("lost", "changed", "pages in use", "pages in use at the end"):
            yield claim(f"{name(row)}: {which}", row["found"][which], **NONE)


def _memory(rows: Sequence[Row]) -> Iterator[Claim]:
    for ours, dense in zip(_of(rows, "pages", plan=QUARTER), _of(rows, "pages", plan=DENSE), strict=False):
        share = ours["found"]["pages"] / dense["found"]["pages"]
        yield claim(f"{name(ours)}: share of dense", share, 0.27, at_most=True)
    fits = _of(rows, "concurrency", chunk=CHUNKS[0])
    shortest = min((row["length"] for row in fits), default=0)
    ours, dense = (_of(fits, "concurrency", plan=plan, length=shortest) for plan in (QUARTER, DENSE))
    for some, others in zip(ours, dense, strict=False):
        times = some["found"]["requests"] / others["found"]["requests"]
        yield claim(f"{name(some)}: times dense", times, 3.0)


def _speed(rows: Sequence[Row]) -> Iterator[Claim]:
    for row in [*_of(rows, "decode"), *_of(rows, "prefill")]:
        faster = row["found"][DENSE]["median"] / row["found"][QUARTER]["median"]
        aim = 1.6 if row.get("batch", 1) > 1 else 1.0
        yield claim(f"{name(row)}: {QUARTER}, times as fast as dense", faster, aim)


def _crowds(rows: Sequence[Row]) -> Iterator[Claim]:
    every = _of(rows, "crowd")
    longest = max((row["new"] for row in every), default=0)
    for row in every:
        if row["plan"] == DENSE:
            continue
        for which in ("lost", "changed"):
            yield claim(f"{name(row)}: {which}", row["found"][which], **NONE)
        dense = [other["found"][RATE] for other in _of(every, "crowd", plan=DENSE, new=longest)]
        if dense and row["new"] == longest and row["plan"] == QUARTER:
            yield claim(f"{name(row)}: {RATE}, times dense at its best", row["found"][RATE] / max(dense), 1.3)


def page(found: dict[str, Any]) -> str:
    """Return the page."""
    lines = [about(found["run"]), "", *claimed(found["claims"]), "", *head(["measured", "found"])]
    shown = (row for row in found["rows"] if row["stage"] != "reference")
    lines += [line(name(row), "; ".join(_said(row["found"]))) for row in shown]
    return "\n".join([*lines, ""])


def _said(found: dict[str, Any]) -> Iterator[str]:
    for what, value in found.items():
        if isinstance(value, dict) and "median" in value:
            yield f"{what} {1000 * value['median']:,.1f} ms (IQR {value['iqr']:.0%})"
        elif isinstance(value, dict):
            yield from (f"{kind} {what} {_number(each)}" for kind, each in value.items())
        elif isinstance(value, list):
            yield from (f"{what}: {each}" for each in value)
        else:
            yield f"{what} {_number(value)}"


def _number(value: float) -> str:
    small = value != 0 and abs(value) < 0.001
    return f"{value:.1e}" if small else f"{value:,.3f}".rstrip("0").rstrip(".")
