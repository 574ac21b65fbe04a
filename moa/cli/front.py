"""`moa search --front K -o DIR`: a row of plans, their table and their picture."""

import re
from collections.abc import Sequence
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING

from moa.plans.errors import MoaError

if TYPE_CHECKING:
    from rich.console import Console

    from moa.plans.model import Dtype
    from moa.profiler.profile import Profile
    from moa.search.budget import Budget
    from moa.search.cost import Costs
    from moa.search.lengths import Lengths
    from moa.search.objective import Mix


def write_front(
    count: int, path: Path, profile: "Profile", budgets: Sequence["Budget"], mix: "Mix",
    costs: "Costs | None", lengths: "Lengths", time_limit: float, kv_dtype: "Dtype", folder: Path, console: "Console",
) -> None:  # fmt: skip
    """Save the plans of a front as they are found, then their table and picture."""
    from rich.console import Console

    import moa
    from moa.cli.common import writable
    from moa.front import picture, table
    from moa.plans.replace import replace as replace_file
    from moa.report import canvas
    from moa.search.budget import Budget
    from moa.search.choose import record
    from moa.search.front import front

    timed = costs is not None and "decode" in costs.terms
    axis = Budget("decode_ms" if timed else "density", 1, lengths.longest)
    kind = axis.kind.replace("_", "-")
    ours = re.compile(rf"{kind}-[\d.e+-]+\.yaml|front\.txt|front\.png|\.[0-9a-f]{{32}}\.tmp")  # the last: of a kill
    there = {file.name for file in folder.iterdir()} if folder.is_dir() else set()
    other = sorted(name for name in there if not ours.fullmatch(name))
    if other or folder.is_file():
        rule = f"with --front, output must be a new or an empty folder, or an earlier front by {axis.kind}"
        raise MoaError(f"{rule}; found {folder / other[0] if other else folder}")
    canvas((1, 1))  # refuses here, not when all is solved, where matplotlib is missing
    writable((folder if folder.is_dir() else folder.parent) / "front.txt", "front", lambda _: None)
    points = {}
    solved = front(
        profile, count, axis, budgets, mix=mix, costs=costs, lengths=lengths, time_limit=time_limit, kv_dtype=kv_dtype
    )
    for point in solved:
        folder.mkdir(exist_ok=True)
        name = f"{kind}-{point.budget.most:g}.yaml"
        origin = record(path, profile, [point.budget, *budgets], moa.__version__, mix.sources)
        point.plan.model_copy(update={"provenance": origin}).save(folder / name)
        points[name] = point
        console.print(f"  {point.budget}: objective {point.solution.value:.4g}, {point.solution.seconds:.1f} s")
    found = table(points, lengths.longest, costs)
    Console(highlight=False).print(found)
    drawn = StringIO()
    Console(file=drawn, width=160).print(found)
    replace_file(folder / "front.txt", drawn.getvalue().encode())
    picture(points, lengths.longest, costs, folder / "front.png")
    if left := sorted(name for name in there - points.keys() if name.endswith(".yaml")):
        console.print(f"left of an earlier front, not in front.txt: {', '.join(left)}")
    console.print(f"wrote {len(points)} plans, front.txt and front.png to {folder}")
