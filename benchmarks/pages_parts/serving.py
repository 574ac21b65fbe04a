"""Write the block about plans that vLLM serves, beside dense vLLM."""

from pages_parts.common import Figures, claims, table
from serving_parts.rows import COMPARED

RATE = "tokens per second"


def exact(found: Figures) -> str:
    """Return which aims are met, then the answers beside the reference's, and how many requests fit."""
    return "\n\n".join(filter(None, [claims(found), answers(found), fits(found)]))


def speed(found: Figures) -> str:
    """Return which aims are met, then the crowds and the times."""
    return "\n\n".join(filter(None, [claims(found), crowds(found), times(found)]))


def answers(found: Figures) -> str:
    """Return the table of the answers: tokens that are the reference's, and how far logprobs are from its."""
    rows = [
        [
            row["plan"], row["way"], f"{each['tokens']:,}", f"{each['ties']}", f"{each['wrong']}",
            f"{each['difference']:.1e}",
        ]
        for row, each in ((row, row["found"]) for row in of(found, "equality"))
    ]  # fmt: skip
    return table(["plan", "served", "tokens alike", "ties", "wrong", "logprobs apart, at most"], rows) if rows else ""


def crowds(found: Figures) -> str:
    """Return the table of the crowds: how many tokens come per second, and where the time goes."""
    rows = [
        [
            f"{row['new']}", row["plan"], f"{row['at_once']}", f"{row['chunk']:,}", f"{row['found'][RATE]:.1f}",
            *(f"{row['found']['seconds'][kind]:.0f}" for kind in ("prefill", "decode")),
            f"{row['found']['most at once']}", f"{row['found']['preemptions']:.0f}",
        ]
        for row in of(found, "crowd")
    ]  # fmt: skip
    columns = ["new", "model", "at once", "chunk", RATE, "prefill, s", "decode, s", "most at once", "preempted"]
    return table(columns, rows) if rows else ""


def times(found: Figures) -> str:
    """Return the table of prefills and decode steps, in milliseconds."""
    rows = [
        [
            f"prefill in chunks of {row['chunk']:,}" if row["stage"] == "prefill" else f"step, batch {row['batch']}",
            *(f"{1000 * row['found'][x]['median']:,.1f} ({row['found'][x]['iqr']:.0%})" for x in COMPARED),
        ]
        for row in (*of(found, "prefill"), *of(found, "decode"))
    ]
    return table(["ms (IQR)", *COMPARED], rows) if rows else ""


def fits(found: Figures) -> str:
    """Return the table of how many requests vLLM says fit."""
    rows = [
        [f"{row['length']:,}", f"{row['chunk']:,}", row["plan"], f"{row['found']['requests']:.2f}"]
        for row in of(found, "concurrency")
    ]
    return table(["tokens of a request", "chunk", "model", "requests that fit"], rows) if rows else ""


def of(found: Figures, stage: str) -> list[Figures]:
    """Return the rows of a stage."""
    return [row for row in found["rows"] if row["stage"] == stage]
