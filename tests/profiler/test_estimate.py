"""The time that a run has left, told from samples whose times are written out here."""

import pytest

from moa.profiler.calibration import Sample, Source
from moa.profiler.estimate import Pace
from moa.profiler.settings import Task

SOURCE = Source("text", lambda *_: Sample((), ()), "given", "nll")


@pytest.mark.parametrize("power", [1.0, 1.5, 2.0])
def test_time_left_is_within_a_factor_of_two_whatever_the_first_sample_cost(power: float) -> None:
    todo = [Task(SOURCE, n, i) for n in (1024, 4096) for i in range(4)]
    took = [600.0, *((task.length / 1024) ** power for task in todo[1:])]  # at first a busy machine, or compilation
    now, told = 0.0, {}
    pace = Pace(todo, clock=lambda: now)
    for i, (task, seconds) in enumerate(zip(todo, took, strict=True)):
        now += seconds
        left = pace.after(task)
        if left is not None:
            told[i] = left, sum(took[i + 1 :])
    assert list(told) == [1, 4]  # the second sample, and the first of the longer ones
    for said, true in told.values():
        assert true / 2 <= said <= 2 * true
    assert told[4][0] == pytest.approx(told[4][1])


def test_what_is_left_is_nothing_after_the_last_sample() -> None:
    todo = [Task(SOURCE, 512, i) for i in range(2)]
    pace = Pace(todo, clock=iter([0.0, 1.0]).__next__)
    assert [pace.after(task) for task in todo] == [None, None]
