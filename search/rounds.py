"""Improve a plan in rounds, by what is measured around it on the running model."""

from collections.abc import Callable
from dataclasses import replace

from moa.plans.plan import Plan
from moa.profiler.profile import Profile
from moa.search.descent import TRIES, Descent
from moa.search.objective import candidates, parts
from moa.search.question import Question
from moa.search.study import Best, Evaluate


def descend(
    question: Question, start: Best, evaluate: Evaluate, slopes: Callable[[int, Plan], Profile], count: int, *,
    found: Callable[[Best, int], None], note: Callable[[str], None],
) -> Best:  # fmt: skip
    """Return the best plan of `count` rounds, each of which follows slopes measured around the best plan so far.

    Args:
        question: What the plans must keep.
        start: The plan to begin with, and what it measured.
        evaluate: Measures a plan.
        slopes: Measures the slopes around a plan, in the round of that number.
        count: Number of rounds.
        found: Called with every better plan and its round.
        note: Called with a line about every step tried.

    Returns:
        The best plan; it is `start` if no step was better.
    """
    best, rules = start, candidates(question.profile, start.mix, question.lengths, question.reads)
    harms = parts(question.profile, rules, start.mix, question.lengths)
    descent = Descent(best.plan, best.plan, (), max(best.measured.kl, 1e-9))
    for number in range(1, count + 1):
        around = slopes(number, best.plan)
        descent = replace(descent, plan=best.plan, rounds=(*descent.rounds, around), damping=1.0)
        now = descent.merit(*harms, rules, best.plan, best.measured.kl)
        for _ in range(TRIES):
            plan, _solution = question.solve(best.mix, descent)
            if plan.groups == best.plan.groups:  # more damping would not change it either
                note(f"  round {number}: the plan stays")
                break
            *_, measured = evaluate(plan)
            new = descent.merit(*harms, rules, plan, measured.kl)
            note(
                f"  round {number}: objective {now:.4g} to {new:.4g}, KL {measured.kl:.4f}, answers' KL "
                f"{measured.recall:.4f}"
            )
            if new < now:
                best = replace(best, plan=plan, measured=measured)
                found(best, number)
                break
            descent = descent.damped
    return best
