"""The smallest feasible values that errors print: searched again at them there is a plan, at less there is none."""

import re
from dataclasses import replace

import pytest

from moa.plans.errors import BudgetInfeasible
from moa.search.budget import Budget, cost, parse
from moa.search.calibrate import Scale
from moa.search.choose import choose
from moa.search.cost import Costs
from moa.search.front import front

PLACES = ("512", "777", "1000x3", "3001x7")
KINDS = [
    *((kind, place) for kind in ("kv_gb", "decode_ms", "prefill_ms") for place in PLACES),
    *(("density", place) for place in ("512", "777", "1000", "3001")),
]


@pytest.fixture(scope="module")
def profile(make_profile):
    return make_profile()


@pytest.fixture(scope="module")
def costs(profile):
    """Whose figures no four digits hold."""
    terms = {
        "decode": {"step": 1 / 7, "sequence": 1 / 11, "block": 1 / 97, "keydiff": 1 / 89},
        "prefill": {
            "step": 1 / 7,
            "token": 1 / 997,
            "whole": 1 / 9973,
            "windowed": 1 / 7919,
            "chunk": 1 / 97,
            "keydiff": 1 / 6007,
            "keydiff_chunk": 1 / 89,
        },
    }
    about = {"device": "x", "threads": 1, "backend": "torch", "dtype": "float32"}
    return Costs(model=profile.model, environment=about, terms=terms, error={}, measured=())


def named(error):
    """Smallest feasible values by budget, as they are printed."""
    text = str(error.value)
    if " together" not in text:
        return re.findall(r"no plan keeps (\S+)(?: in \w+)?: the smallest feasible value is (\S+)$", text)
    return [(name, value) for value, name in re.findall(r"([\d.e+-]+) for (\S+?)(?: in \w+)?(?:,|$)", text)]


@pytest.mark.parametrize(("kind", "place"), KINDS)
def test_of_one_budget(profile, costs, kind, place):
    with pytest.raises(BudgetInfeasible) as error:
        choose(profile, [parse(kind, f"1e-9@{place}")], costs=costs)
    [(_, value)] = named(error)
    _, solution = choose(profile, [parse(kind, f"{value}@{place}")], costs=costs)
    assert solution.value > 0
    with pytest.raises(BudgetInfeasible):
        choose(profile, [parse(kind, f"{float(value) * 0.998}@{place}")], costs=costs)


@pytest.mark.parametrize(("kind", "place"), KINDS)
def test_of_a_budget_and_a_harm_that_conflict(profile, costs, kind, place):
    """Each at the value printed for it, the other as it was."""
    least = cost("density@900")
    with pytest.raises(BudgetInfeasible) as error:
        choose(profile, [parse(kind, f"1e-9@{place}")], costs=costs)
    [(_, smallest)] = named(error)
    budgets = [Budget("harm", 0.1), parse(kind, f"{float(smallest) * 1.1}@{place}")]
    with pytest.raises(BudgetInfeasible) as error:
        choose(profile, budgets, costs=costs, minimise=least)
    values = named(error)
    assert len(values) == 2
    for i, (_, value) in enumerate(values):
        at_it = [replace(b, most=float(value)) if j == i else b for j, b in enumerate(budgets)]
        choose(profile, at_it, costs=costs, minimise=least)
        below = [replace(b, most=float(value) * 0.998) if j == i else b for j, b in enumerate(budgets)]
        with pytest.raises(BudgetInfeasible):
            choose(profile, below, costs=costs, minimise=least)


def test_a_harm_said_in_nats_is_feasible_at_what_is_printed():
    """Back through the calibration, the figure printed is no less than the objective's."""
    for power, factor, objective in ((0.7, 0.31, "0.1234"), (1.0, 2.0, "0.3001"), (1.9, 0.017, "0.9999")):
        scale = Scale(factor, power, 0.0)
        said = scale.reword(f"smallest: {objective} for harm<=0.05", "harm<=0.05", "harm<=0.1 nats")
        printed = float(re.findall(r"(\S+) for", said)[0])
        assert float(objective) <= scale.objective(printed) <= float(objective) * 1.01


@pytest.mark.parametrize("kind", ["density", "kv_gb", "decode_ms", "prefill_ms"])
def test_every_budget_that_a_front_prints_gives_its_plan(profile, costs, kind):
    length = None if kind == "density" else 777
    points = list(front(profile, 5, Budget(kind, 1, length), costs=costs))
    assert len(points) >= 3
    for point in points:
        written = str(point.budget).removeprefix(f"{kind}<=").partition(" ")[0]
        plan, solution = choose(profile, [parse(kind, written)], costs=costs)
        assert plan.groups == point.plan.groups
        assert solution.value == point.solution.value
    dense = points[-1].plan
    assert points[-1].solution.value == 0
    assert dense.density(777) == 1.0
