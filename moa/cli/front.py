"""`moa search --front K -o DIR`: write a front of plans, their table and their picture."""

import re
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING

from moa.plans.errors import MoaError

if TYPE_CHECKING:
    from rich.console import Console

    from moa.finding import Front


def write_front(found: "Front", folder: Path, console: "Console") -> None:
    """Save the plans of a front as they are found, then their table and picture."""
    from rich.console import Console

    from moa.outputs import writable
    from moa.plans.replace import replace as replace_file
    from moa.report.front import picture, table
    from moa.report.plan import canvas

    question, kind = found.question, found.axis.kind.replace("_", "-")
    ours = re.compile(
        rf"{kind}-[\d.e+-]+\.yaml|front\.txt|front\.png|\.[0-9a-f]{{32}}\.tmp"
    )  # the last: left by a killed run
    there = {file.name for file in folder.iterdir()} if folder.is_dir() else set()
    other = sorted(name for name in there if not ours.fullmatch(name))
    if other or folder.is_file():
        rule = f"with --front, output must be a new or an empty folder, or an earlier front by {found.axis.kind}"
        raise MoaError(f"{rule}; found {folder / other[0] if other else folder}")
    canvas((1, 1))  # a missing matplotlib is refused here, before anything is solved
    writable((folder if folder.is_dir() else folder.parent) / "front.txt", "front", lambda _: None)
    points = {}
    for point in found:
        folder.mkdir(exist_ok=True)
        name = f"{kind}-{point.budget.most:g}.yaml"
        point.plan.save(folder / name)
        points[name] = point
        console.print(f"  {point.budget}: objective {point.solution.value:.4g}, {point.solution.seconds:.1f} s")
    shown = table(points, question.lengths.longest, question.costs)
    Console(highlight=False).print(shown)
    drawn = StringIO()
    Console(file=drawn, width=160).print(shown)
    replace_file(folder / "front.txt", drawn.getvalue().encode())
    picture(points, question.lengths.longest, question.costs, folder / "front.png")
    if left := sorted(name for name in there - points.keys() if name.endswith(".yaml")):
        console.print(f"left of an earlier front, not in front.txt: {', '.join(left)}")
    console.print(f"wrote {len(points)} plans, front.txt and front.png to {folder}")
