"""Measure a chat about one text: questions follow each other on one cache, which was filled before any was known."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from moa.evaluation.haystack import Haystack
from moa.evaluation.interval import wilson
from moa.evaluation.tasks.needles import Needles


@dataclass(frozen=True)
class Turns(Needles):
    """Four needles and a turn about each; every row sees the right answers to earlier turns, so all see one text."""

    needles: int = 4
    chat: bool = True

    def score(self, contents: Sequence[Haystack], results: Sequence[Any], dense: Sequence[Any]) -> dict[str, Any]:
        """Return the right answers, also by turn."""
        by_turn = [
            {"right": sum(turn), "questions": len(turn), "interval": list(wilson(sum(turn), len(turn)))}
            for turn in zip(*(r["right"] for r in results), strict=True)
        ]
        return {**super().score(contents, results, dense), "by_turn": by_turn}


TASKS = (Turns("turns", ("four turns",), 0, "contexts of a chat of four turns"),)
