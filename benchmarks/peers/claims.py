"""Say what must hold of plans beside peers, and where a peer is better."""

from collections.abc import Callable, Iterator, Sequence
from math import inf
from typing import Any

from peers.ours import PLAN
from peers.samples import NEEDLES
from peers.theirs import DENSE
from tables import claim

Row = dict[str, Any]

LESS: dict[str, tuple[str, Callable[[Row], float]]] = {
    "KL is {}": ("{:.4f}", lambda row: row["tail"]["kl"]),
    "prefill takes {}": ("{:.2f} s", lambda row: row["prefill"]["median"] if "prefill" in row else inf),
    "decode step takes {}": ("{:.1f} ms", lambda row: 1000 * row["step"]["median"] if "step" in row else inf),
    "peak of memory is {}": ("{:,.0f} MiB", lambda row: row["peak"] / 2**20 if "peak" in row else inf),
}
"""Measures of which less is better: a sentence about the plan, the form of a value, and the value of a row."""
LIKE = 0.01
"""How far perplexities of one model in two environments may be apart, as a share."""


def right(row: Row, mode: str) -> int:
    """Return the right answers of a row, with one and with four needles together."""
    return sum(row[task]["right"] for task in NEEDLES[mode])


def questions(row: Row, mode: str) -> int:
    """Return the questions that a row was asked."""
    return sum(row[task]["questions"] for task in NEEDLES[mode])


def budgets(rows: Sequence[Row]) -> Iterator[tuple[Row, list[Row]]]:
    """Yield, of every length and density, our plan and its peers."""
    for plan in rows:
        if plan["row"].split()[0] == PLAN:
            same = [row for row in rows if row["length"] == plan["length"] and row.get("budget") == plan["budget"]]
            yield plan, [row for row in same if row["environment"] == "kvpress"]


def claims(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return every claim with what was measured; one that does not hold stands among them as such."""
    found = []
    for row in rows:
        if row["row"] == DENSE:
            (own,) = (x for x in rows if x["row"] == "dense" and x["length"] == row["length"])
            says = f"{row['length']:,} tokens: dense in both environments,"
            apart = abs(row["tail"]["perplexity"] / own["tail"]["perplexity"] - 1)
            found.append(claim(f"{says} perplexity apart by a share of", apart, LIKE, at_most=True))
            for mode in NEEDLES:
                apart = abs(right(row, mode) - right(own, mode)) / questions(own, mode)
                found.append(claim(f"{says} needles ({mode}) apart by a share of", apart, 0.1, at_most=True))
    for plan, others in budgets(rows):
        at = f"{plan['length']:,} tokens, {plan['budget']}:"
        most = max(row["over"] for row in others)
        found.append(claim(f"{at} the most that a peer keeps, over what it may", most, 1, at_most=True))
        for mode in NEEDLES:
            ahead = right(plan, mode) - max(right(row, mode) for row in others)
            found.append(claim(f"{at} needles ({mode}) that the plan finds more than any peer", ahead, 0))
        least = min(row["tail"]["kl"] for row in others)
        found.append(
            claim(f"{at} KL of the plan over the least of a peer", plan["tail"]["kl"] / least, 1, at_most=True)
        )
    return found


def wins(rows: Sequence[Row]) -> list[str]:
    """Return a sentence for each length, density and measure in which some peer is better than our plan."""
    found = []
    for plan, others in budgets(rows):
        where = f"At {plan['length']:,} tokens and density {plan['budget']}"
        for mode in NEEDLES:
            own, of = right(plan, mode), questions(plan, mode)
            better = [f"{_named(row)} finds {right(row, mode)}" for row in others if right(row, mode) > own]
            if better:
                found.append(f"{where}, question {mode}, the plan finds {own} of {of} needles: {', '.join(better)}.")
        for says, (form, value) in LESS.items():
            better = [f"{_named(row)} {form.format(value(row))}" for row in others if value(row) < value(plan)]
            if better:
                found.append(f"{where} the plan's {says.format(form.format(value(plan)))}: {', '.join(better)}.")
    return found


def _named(row: Row) -> str:
    """Return a peer's name, and whether it allocates what it masks."""
    name = row["row"].rsplit(" ", 1)[0]
    return f"{name} (masked only)" if row["allocated"] > row["kept"] * 1.001 else name
