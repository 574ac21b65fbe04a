"""Provide `moa.find_front`, which finds plans from the smallest to dense, and saves them."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Unpack

from moa.outputs import writable
from moa.plans.errors import MoaError
from moa.plans.progress import Note, silent
from moa.profiler.profile import Profile
from moa.report.front import picture, table, write
from moa.report.plan import canvas
from moa.search.budget import Budget
from moa.search.front import Point, front
from moa.search.question import KEEPING, Figures, Options, Question
from moa.version import __version__


@dataclass(frozen=True)
class Front:
    """Plans from the smallest to dense, which iteration solves for one by one.

    Attributes:
        question: What was asked, completed.
        count: Budgets to solve for.
        axis: The budget that is varied; its figure does not count.
    """

    question: Question
    count: int
    axis: Budget

    def __iter__(self) -> Iterator[Point]:
        asked = self.question
        points = front(
            asked.profile, self.count, self.axis, asked.budgets, mix=asked.mix, costs=asked.costs,
            lengths=asked.lengths, time_limit=asked.time_limit, kv_dtype=asked.kv_dtype, keep_all=asked.keep_all,
        )  # fmt: skip
        for point in points:
            kept = ", ".join([*map(str, [point.budget, *asked.budgets]), *([KEEPING] if asked.keep_all else [])])
            origin = asked.origin.model_copy(update={"budget": kept})
            yield replace(point, plan=point.plan.model_copy(update={"provenance": origin}))

    def save(self, folder: str | PathLike[str], note: Note = silent) -> dict[str, Point]:
        """Solve for the plans and save each in `folder` once it is found, then their table and picture.

        Args:
            folder: A new or an empty folder, or that of an earlier front by the same kind of budget.
            note: Called with a line about each plan, and about plans of the earlier front that are no longer in it.

        Returns:
            The points by the names of their files; beside them are `front.txt` and `front.png`.

        Raises:
            BudgetInfeasible: The other budgets cannot be kept together with the least of this one.
            MoaError: The folder holds other files, or matplotlib is not installed.
        """
        folder, kind = Path(folder), self.axis.kind.replace("_", "-")
        earlier = self._earlier(folder)
        canvas((1, 1))  # a missing matplotlib is refused here, before anything is solved
        writable((folder if folder.is_dir() else folder.parent) / "front.txt", "front", lambda _: None)
        points = {}
        for point in self:
            folder.mkdir(exist_ok=True)
            name = f"{kind}-{point.budget.most:g}.yaml"
            point.plan.save(folder / name)
            points[name] = point
            note(f"  {point.budget}: objective {point.solution.value:.4g}, {point.solution.seconds:.1f} s")
        longest, costs = self.question.lengths.longest, self.question.costs
        write(table(points, longest, costs), folder / "front.txt")
        picture(points, longest, costs, folder / "front.png")
        if left := sorted(name for name in earlier - points.keys() if name.endswith(".yaml")):
            note(f"left of an earlier front, not in front.txt: {', '.join(left)}")
        return points

    def _earlier(self, folder: Path) -> set[str]:
        """Return the names of files that an earlier front left in the folder; refuse any other file."""
        kind = self.axis.kind.replace("_", "-")
        ours = re.compile(
            rf"{kind}-[\d.e+-]+\.yaml|front\.txt|front\.png|\.[0-9a-f]{{32}}\.tmp"
        )  # the last: left by a killed run
        there = {file.name for file in folder.iterdir()} if folder.is_dir() else set()
        other = sorted(name for name in there if not ours.fullmatch(name))
        if other or folder.is_file():
            rule = f"with --front, output must be a new or an empty folder, or an earlier front by {self.axis.kind}"
            raise MoaError(f"{rule}; found {folder / other[0] if other else folder}")
        return there


def find_front(
    profile: Profile | str | PathLike[str], count: int, budgets: Mapping[str, Figures] | None = None,
    **options: Unpack[Options],
) -> Front:  # fmt: skip
    """Find plans from the smallest to dense, each with less harm than all that keep less.

    Args:
        profile: A profile, or its file.
        count: Budgets to solve for, 2 or more, in equal ratios: of the time of a decode step at the longest intended
            length where costs have it, else of the density there, or where everything is kept of what a step reads.
        budgets: Other budgets, as for `find_plan`, which every plan keeps.
        **options: As for `find_plan`, without `minimise`.

    Returns:
        The front, whose plans are solved for while it is iterated over.

    Raises:
        BudgetInfeasible: Raised while iterating: the other budgets cannot be kept together with the least of this one.
        MoaError: An option is invalid, or a file cannot be read.
    """
    question = Question.of(profile, budgets or {}, __version__, **options)
    if question.minimise is not None:
        raise MoaError("a front makes harm least: no budget on harm (--max-harm) and no --minimise with it")
    known = question.costs is not None and "decode" in question.costs.terms
    axis = "decode_ms" if known else "read" if question.keep_all else "density"
    return Front(question, count, Budget(axis, 1, question.lengths.longest))
