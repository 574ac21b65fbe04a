"""How long stages take, and what fits into the time that is left."""

from typing import Any

import pytest

from moa.pacing import Pace, Whole, profile_sizes


@pytest.mark.parametrize("true", [Pace(2.0, 0.0), Pace(0.0, 0.5), Pace(0.3, 0.002)])
def test_a_pace_is_the_one_measured(true: Pace) -> None:
    found = Pace.through({n: true(n) for n in (256, 1024)})
    assert [found(n) for n in (256, 4096)] == pytest.approx([true(n) for n in (256, 4096)])


def test_a_disturbed_pace_stays_between_linear_and_square() -> None:
    for taken in ({256: 4.0, 1024: 4.0}, {256: 0.001, 1024: 4.0}):
        assert 16 <= Pace.through(taken)(4096) <= 64
    assert Pace.through({512: 2.0})(512) == 2.0


def test_samples_go_before_lengths() -> None:
    sizes = profile_sizes((1, 2), 3, fixed=False)
    assert sizes == [((1, 2), 3), ((1, 2), 2), ((1,), 3), ((1,), 2), ((1,), 1)]
    assert profile_sizes((1, 2), 2, fixed=True) == [((1, 2), 2), ((1, 2), 1)]


def test_the_whole_is_as_long_as_its_stages() -> None:
    told: list[Any] = []
    whole = Whole({"one": 2.0, "two": 6.0}, lambda *args: told.append(args))
    whole.stage("two")(1, 2, "half")
    whole.stage("one")(3, 3, "all")
    assert told == [(50, 80, "two, half"), (20, 80, "one, all")]
