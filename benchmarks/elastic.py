"""Measure retrieval and perplexity of plans for all lengths, also at lengths beyond those of the profile.

Every plan is what `moa search PROFILE --max-density D --max-length LONGEST` finds, from the whole profile or from its
part up to some length. `--half` and `--quarter` take the two main plans from their files, so that figures of several
lengths, measured at different times, are of the same plans: profiles from different CPUs differ by rounding, and so do
a few rules. Beside them stand the dense model, a plan searched for each measured length alone (`--lengths`), and the
uniform window that keeps as much as plan 0.25 does there. Needles have formats by which no choice of this project was
made (`HELD_OUT` of `moa.evaluation.haystack`). With `--beyond`, there are only dense and plans from parts of the
profile, each at lengths of twice and more what its part has, under a name of their own. The dense model is asked first,
in a pilot: plans are not asked for needles that it surely finds less than 0.9 of. Writes NAME.json and NAME.md to
`--results`. If it is stopped, the same command continues from NAME.partial. Several processes may measure a length each
(`--only`), and one then combines all lengths.

    python benchmarks/elastic.py .model/SmolLM2-135M-Instruct profile.safetensors
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from held_out import TASKS
from pages_parts.quality import effective
from pilots import NEEDLES, answered, measured, piloted
from provenance import about, provenance, write
from tables import claim, claimed, compared, difference, head, line

from moa.evaluation.journal import Journal
from moa.evaluation.rows import uniform_like
from moa.evaluation.samples import Part
from moa.hf.load import load_model
from moa.plans.errors import MoaError
from moa.plans.plan import Plan
from moa.profiler.profile import Profile, describe
from moa.search.budget import parse
from moa.search.choose import choose
from moa.search.lengths import Lengths

HALF, QUARTER = "plan 0.5", "plan 0.25"
RETRIEVAL = {HALF: 0.99, QUARTER: 0.97}
"""Aims: the least share of the dense model's needles that a plan finds."""
PERPLEXITY = {HALF: 1.015, QUARTER: 1.05}
"""Aims: the largest perplexity of a plan over the dense model's."""
UNIFORM = "uniform like plan 0.25"
LONGER = 4.0
"""Aim: the least ratio of plan 0.25's effective context to the uniform window's."""
PARTS = {
    n: Part(n, {"single": s, "four": s, "text": w}, TASKS)
    for n, s, w in ((1024, 100, 8), (2048, 40, 4), (4096, 40, 2), (8192, 25, 2))
}


def sized(length: int, contexts: int | None) -> Part:
    """Return what is asked at a length: so many contexts of each kind, None for the full numbers."""
    part = PARTS[length]
    return replace(part, counts=part.counts | dict.fromkeys(NEEDLES, contexts)) if contexts else part


def part_of(profile: Profile, longest: int) -> Profile:
    """Return the profile as it would be if no text longer than `longest` had been measured."""
    return replace(profile, cuts={cut: table for cut, table in profile.cuts.items() if cut[1] <= longest})


def elastic(density: str, profile: Profile, longest: int) -> Plan:
    """Return the plan for all lengths that a default search finds."""
    return choose(profile, [parse("density", density)], lengths=Lengths.of(profile, longest=longest))[0]


def plans(profile: Profile, longest: int, length: int, half: Plan, quarter: Plan) -> list[tuple[str, Plan]]:
    """Return the plans of the rows beside dense at one length."""
    found = [(HALF, half), (QUARTER, quarter)]
    if length in profile.lengths:
        alone = choose(profile, [parse("density", "0.25")], lengths=Lengths((length,)))[0]
        found.append((f"0.25 for {length:,} alone", alone))
    return [*found, (UNIFORM, uniform_like(quarter, length))]


def beyond(profile: Profile, longest: int, length: int) -> list[tuple[str, Plan]]:
    """Return the plans from parts of the profile that end at half of the length, or before."""
    return [
        (f"{name}, profiled to {known:,}", elastic(density, part_of(profile, known), longest))
        for known in sorted(profile.lengths)[1:] if 2 * known <= length
        for name, density in ((HALF, "0.5"), (QUARTER, "0.25"))
    ]  # fmt: skip


def claims(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return what must hold at every length, beside what was measured."""
    found = []
    for row in rows:
        name, n = row["row"].split(",")[0], row["length"]
        if name not in RETRIEVAL:
            continue
        beside = {other["row"]: other for other in rows if other["length"] == n}
        dense, alone = beside["dense"], beside.get(f"0.25 for {n:,} alone")
        at = f"{row['row']}, {n:,} tokens"
        for task in answered(row, dense):
            found.append(claim(f"{at}, {task}: keeps of dense at least", row[task]["kept"], RETRIEVAL[name]))
            if name == QUARTER and alone:
                most = difference(row, alone, task)[2]
                text = f"{at}, {task}: minus the plan for this length alone, upper end of its interval, at least"
                found.append(claim(text, most, 0.0))
        if "text" in row:
            times = row["text"]["perplexity_against_dense"]
            found.append(claim(f"{at}: perplexity against dense at most", times, PERPLEXITY[name], at_most=True))
    reached, lengths = effective(rows), [row["length"] for row in rows]
    shortest = min(lengths, default=0)
    if UNIFORM not in {row["row"] for row in rows} or not reached or max(lengths) < LONGER * shortest:
        return found
    times = reached.get(QUARTER, 0) / reached.get(UNIFORM, shortest)
    return [*found, claim("effective context, plan 0.25 over the uniform window, at least", times, LONGER)]


def depths(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return the table of right answers by how deep the needle lies, both tasks together."""
    rows = [row for row in rows if any(task in row for task in NEEDLES)]
    if not rows:
        return ["None was asked."]
    fifths = len(next(rows[0][task] for task in NEEDLES if task in rows[0])["by_depth"])
    lines = head(["tokens", "row", *(f"depth {i / fifths:g} to {(i + 1) / fifths:g}" for i in range(fifths))])
    for row in (row for row in rows if row["row"] in ("dense", HALF, QUARTER)):
        each = zip(*(row[task]["by_depth"] for task in NEEDLES if task in row), strict=True)
        sums = [tuple(sum(task[what] for task in tasks) for what in ("right", "questions")) for tasks in each]
        lines.append(line(f"{row['length']:,}", row["row"], *(f"{right} of {asked}" for right, asked in sums)))
    return lines


def markdown(found: dict[str, Any]) -> str:
    """Return the page: environment, the table, pilots, depths, effective context, the claims."""
    lines = [f"{found['model']['name']}; {about(found['run'])}", "", *compared(found["rows"])]
    lines += ["", *piloted(found["pilots"])]
    lines += ["", "Needles found by depth, 0 the farthest from the question:", "", *depths(found["rows"])]
    if found["effective"]:
        lines += ["", "Longest measured length up to which a row finds 90 % of what dense finds:", ""]
        lines += [*head(["row", "tokens"]), *(f"| {name} | {n:,} |" for name, n in found["effective"].items())]
    return "\n".join([*lines, "", *claimed(found["claims"])]) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("profile", type=Path)
    parser.add_argument("--half", type=Path, help="file of plan 0.5, else it is searched")
    parser.add_argument("--quarter", type=Path, help="file of plan 0.25, else it is searched")
    parser.add_argument("--lengths", type=int, nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--longest", type=int, default=8192, help="longest intended length")
    parser.add_argument(
        "--contexts", type=int, help="contexts of each kind at every length, in place of the full sizes"
    )
    parser.add_argument("--only", type=int, nargs="*", help="measure these lengths now, and write no results")
    parser.add_argument("--beyond", action="store_true", help="measure plans from parts of the profile alone")
    parser.add_argument("--name", help="name of the results: by default elastic, or elastic-beyond")
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    try:
        if options.beyond and (options.half or options.quarter):
            raise MoaError("--beyond finds its plans in the profile: --half and --quarter do not go with it")
        lengths = sorted(set(options.lengths))
        profile = Profile.load(options.profile)
        if options.beyond:
            rows = {n: those for n in lengths if (those := beyond(profile, options.longest, n))}
            lengths = list(rows)
        else:
            half, quarter = (
                Plan.load(file) if file else elastic(density, profile, options.longest)
                for density, file in (("0.5", options.half), ("0.25", options.quarter))
            )
            rows = {n: plans(profile, options.longest, n, half, quarter) for n in lengths}
        options.results.mkdir(parents=True, exist_ok=True)
        title = options.name or ("elastic-beyond" if options.beyond else "elastic")
        journal = Journal(options.results / f"{title}.partial")
        model, tokenizer = load_model(options.model, dtype=options.dtype)
        found: dict[str, Any] = {"rows": [], "pilots": []}
        for n in options.only or lengths:
            part = sized(n, options.contexts)
            how: Any = {"uniform": False, "seed": options.seed, "journal": journal}
            shown, dense = measured(model, tokenizer, rows[n], part, **how)
            found = {
                "model": shown["model"],
                "rows": found["rows"] + shown["rows"],
                "pilots": [*found["pilots"], dense],
            }
    except MoaError as error:
        print("error:", error, file=sys.stderr)
        return 2
    if options.only:
        return 0
    found["run"] = provenance(model, seed=options.seed, runs=1)
    found["profile"] = describe(options.profile, profile)
    found["plans"] = {f"{name} at {n}": plan.to_dict() for n in lengths for name, plan in rows[n]}
    found["effective"] = effective(found["rows"])
    found["claims"] = claims(found["rows"])
    write(options.results, title, found, markdown(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
