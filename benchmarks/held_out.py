"""Provide the evaluation's tasks with needles of the held-out formats, by which no choice of this project was made."""

from moa.evaluation.haystack import HELD_OUT
from moa.evaluation.tasks import TASKS as KNOWN
from moa.evaluation.tasks.needles import Needles

TASKS = {
    **KNOWN,
    "single": Needles("single", ("one needle",), 0, "contexts", 1, HELD_OUT),
    "four": Needles("four", ("four needles",), 0, "contexts", 4, HELD_OUT),
}
