"""Say what must hold of plans beside peers, and where a peer is better."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from peers import reading
from peers.ours import PLAN
from peers.samples import NEEDLES
from peers.theirs import DENSE
from student import student
from tables import claim

from moa.evaluation.interval import paired

Row = dict[str, Any]

LIKE = 0.01
"""How far perplexities of one model in two environments may be apart, as a share, and peaks of memory be the same."""
TIMES = {"prefill": ("prefill", 1, "{:.2f} s"), "step": ("decode step", 1000, "{:.1f} ms")}
"""What is timed: its name in a sentence, a factor on seconds, and the form of the result."""


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


def groups(rows: Sequence[Row]) -> Iterator[tuple[str, Row, list[Row]]]:
    """Yield what stands beside each other: where, our plan, and the other methods, at equal bytes kept or read."""
    for plan, others in budgets(rows):
        yield f"At {plan['length']:,} tokens and density {plan['budget']}", plan, others
    for plan in rows:
        kind, *rest = plan["row"].split(", ")
        if kind == reading.PLAN:
            same = [row for row in rows if row["length"] == plan["length"] and row["row"].endswith(rest[-1])]
            others = [row for row in same if (reading.HALF in row["row"]) == (reading.HALF in rest)]
            yield f"At {plan['length']:,} tokens, {', '.join(rest)},", plan, [row for row in others if row is not plan]


def wins(rows: Sequence[Row]) -> list[str]:
    """Return a sentence for each group and measure in which some peer is better than our plan, or may be.

    A peer is better in needles or KL where the 95 % interval of the paired difference excludes 0, in a time where
    medians differ by more than either's distance between quartiles. The others are worse, or not told apart.
    """
    found = []
    for where, plan, others in groups(rows):
        for mode in NEEDLES:
            own = f"the plan finds {right(plan, mode)} of {questions(plan, mode)} needles"
            ahead = [(row, f"{right(row, mode)}", needles_ahead(row, plan, mode)) for row in others]
            found += _told(f"{where.rstrip(',')}, question {mode}, {own}", ahead)
        ahead = [(row, f"{row['tail']['kl']:.4f}", kl_ahead(row, plan)) for row in others]
        found += _told(f"{where} the plan's KL is {plan['tail']['kl']:.4f}", ahead)
        for what, (name, factor, form) in TIMES.items():
            timed = [row for row in others if what in row and what in plan]
            shown = {each["row"]: form.format(factor * each[what]["median"]) for each in (plan, *timed) if what in each}
            ahead = [(row, shown[row["row"]], time_ahead(row[what], plan[what])) for row in timed]
            found += timed and _told(f"{where} the plan's {name} takes {shown[plan['row']]}", ahead)
        sized = [row for row in others if "peak" in row and "peak" in plan]
        ahead = [(row, _mib(row), _sign(plan["peak"] - row["peak"], LIKE * plan["peak"])) for row in sized]
        found += sized and _told(f"{where} the plan's peak of memory is {_mib(plan)}", ahead)
    return found


def needles_ahead(row: Row, plan: Row, mode: str) -> int:
    """Return 1 where a row finds more needles than the plan, -1 where it finds fewer, 0 where that is not told."""
    own, other = ("".join(each[task]["by_question"] for task in NEEDLES[mode]) for each in (plan, row))
    _, low, high = paired([x == "1" for x in other], [x == "1" for x in own])
    return int(low > 0) - int(high < 0)


def kl_ahead(row: Row, plan: Row) -> int:
    """Return 1 where a row's KL, window by window, is less than the plan's, -1 where it is more, else 0."""
    _, low, high = student(np.subtract(plan["tail"]["kl_by_window"], row["tail"]["kl_by_window"]).tolist())
    return int(low > 0) - int(high < 0)


def time_ahead(row: Row, plan: Row) -> int:
    """Return 1 where a row takes less time than the plan, -1 where it takes more, 0 where that is not told."""
    return _sign(plan["median"] - row["median"], max(each["iqr"] * each["median"] for each in (row, plan)))


def _sign(difference: float, margin: float) -> int:
    return int(difference > margin) - int(difference < -margin)


def _mib(row: Row) -> str:
    return f"{row['peak'] / 2**20:,.0f} MiB"


def _told(says: str, ahead: Sequence[tuple[Row, str, int]]) -> list[str]:
    """Return a sentence of the rows that are better and of those that are not told apart, if there are any."""
    better, even = ([f"{_named(row)} {value}" for row, value, sign in ahead if sign == wanted] for wanted in (1, 0))
    parts = [", ".join(better)] * bool(better) + [f"not told apart: {', '.join(even)}"] * bool(even)
    return [f"{says}; {'; '.join(['better: ' + parts[0], *parts[1:]] if better else parts)}."] if parts else []


def _named(row: Row) -> str:
    """Return a peer's name, and whether it allocates what it masks."""
    name = row["row"].rsplit(", " if "read" in row else " ", 1)[0]
    return f"{name} (masked only)" if row["allocated"] > row["kept"] * 1.001 else name
