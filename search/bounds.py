"""Bound the optimum before any integer program: drop dominated rules, prove a lower bound, find a good choice.

All functions take `objective` [groups, rules] and `costs` [budgets, groups, rules], scaled so that every budget is 1.
"""

import numpy as np
import numpy.typing as npt
from scipy.optimize import linprog

from moa.plans.span import Floats, Ints

Mask = npt.NDArray[np.bool_]

PLANES = 200
"""Most cutting planes of the dual; a dozen or two usually do."""

NEAR = 1e-6
"""The dual ends this close to its best, as a share of it: far below the gap that the search asks for."""


def undominated(objective: Floats, costs: Floats) -> Mask:
    """Return which rules no other rule of their group equals or beats in everything; of equal ones the first stays."""
    kept = np.empty(objective.shape, bool)
    earlier = np.tri(objective.shape[1], k=-1, dtype=bool).T  # [other, rule]: other comes before rule
    for group in range(len(objective)):
        beats = np.ones(earlier.shape, bool)
        for figure in (objective[group], *costs[:, group]):
            beats &= figure[:, None] <= figure
        kept[group] = ~(beats & (earlier | ~beats.T)).any(0)
    return kept


def reduced(objective: Floats, costs: Floats, prices: Floats) -> Floats:
    """Return the objective plus the costs at their prices: [groups, rules]."""
    total: Floats = objective + np.tensordot(prices, costs, 1)
    return total


def dual(objective: Floats, costs: Floats) -> tuple[Floats, float]:
    """Return prices of the budgets [budgets], and the lower bound that they prove by Lagrangian duality.

    bound(prices) = sum over groups of the least reduced objective, less the prices. It is concave, every evaluation
    gives a plane above it, and a linear program over the planes says where to evaluate next (Kelley 1960, cutting
    planes). Any prices that are not negative prove a bound, so if this stops early, the bound is looser but still true.
    """
    groups = np.arange(len(objective))
    room = 1 - costs.min(2).sum(1)
    highest = (objective.max(1) - objective.min(1)).sum() / np.maximum(room, 1e-3)
    prices, best, best_prices = np.zeros(len(costs)), -np.inf, np.zeros(len(costs))
    planes: list[list[float]] = []
    heights: list[float] = []
    for _ in range(PLANES):
        choice = reduced(objective, costs, prices).argmin(1)
        height, over = float(objective[groups, choice].sum()), costs[:, groups, choice].sum(1) - 1
        if height + prices @ over > best:
            best, best_prices = height + float(prices @ over), prices
        planes.append([*-over, 1.0])
        heights.append(height)
        ranges = [*((0, most) for most in highest), (None, None)]
        master = linprog([*np.zeros(len(costs)), -1.0], A_ub=planes, b_ub=heights, bounds=ranges)
        if not master.success or -master.fun - best <= NEAR * abs(best):
            break
        prices = np.maximum(master.x[:-1], 0.0)
    return best_prices, best


def repair(objective: Floats, costs: Floats, choice: Ints) -> Ints | None:
    """Return a choice that keeps every budget, made from one that may not and improved while there is room.

    It makes the best change at each step: least objective per excess removed, then most objective saved.

    Returns:
        int64 [groups], or None if no such change leads to a choice within the budgets.
    """
    groups, choice = np.arange(len(objective)), choice.copy()
    while True:
        total = costs[:, groups, choice].sum(1)
        excess = np.maximum(total - 1, 0).sum()
        if excess == 0:
            break
        after = costs - costs[:, groups, choice][..., None] + total[:, None, None]
        removed = excess - np.maximum(after - 1, 0).sum(0)
        added = objective - objective[groups, choice][:, None]
        price = np.divide(added, removed, out=np.full_like(added, np.inf), where=removed > 1e-12)
        group, rule = divmod(int(price.argmin()), objective.shape[1])
        if price[group, rule] == np.inf:
            return None
        choice[group] = rule
    while True:
        room = 1 - costs[:, groups, choice].sum(1)
        fits = (costs - costs[:, groups, choice][..., None] <= room[:, None, None]).all(0)
        saved = np.where(fits, objective[groups, choice][:, None] - objective, 0.0)
        group, rule = divmod(int(saved.argmax()), objective.shape[1])
        if saved[group, rule] <= 0:
            return choice
        choice[group] = rule
