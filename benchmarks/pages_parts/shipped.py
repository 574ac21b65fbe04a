"""Write what was measured of each shipped plan, found in the result files by the plan's fingerprint."""

from collections.abc import Mapping
from itertools import chain
from pathlib import Path

from pages_parts.common import RESULTS, Figures, listed, load, made, table, wrapped
from pages_parts.quality import TASKS, meant
from pages_parts.reads import RUNS

from moa.plans.plan import Plan

LIBRARY = Path(__file__).parents[2] / "plans" / "library"
SOURCES = "elastic", "elastic-8k", "library", *RUNS, "baselines", "study"
"""Result files with rows of quality and the plans that they are of, those with the most samples first."""
TEXTS = {
    "text": ("perplexity / dense", "KL, nats"),
    "decoded": ("perplexity / dense, decoded", "KL, decoded"),
}
"""Tasks on held-out text, with the headings of their columns."""
NOTHING = "Not measured: no result file has a plan with these rules."


def shipped() -> str:
    """Return every shipped plan with its evidence, or the line that there is none."""
    found = {name: load(name) for name in SOURCES if (RESULTS / f"{name}.json").exists()}
    return "\n\n".join(section(path, found) for path in sorted(LIBRARY.glob("*.yaml")))


def section(path: Path, found: Mapping[str, Figures]) -> str:
    """Return a plan's name, fingerprint and budget, and a table from every result file that has it."""
    plan = Plan.load(path)
    budget = f", searched for `{plan.provenance.budget}`" if plan.provenance else ""
    parts = [f"### {path.stem}", wrapped(f"Fingerprint `{plan.fingerprint()}`{budget}. {keeps(plan)}")]
    for name, figures in found.items():
        if rows := measured(plan, figures):
            parts += [evidence(rows), made(name, figures)]
    return "\n\n".join(parts if len(parts) > 2 else [*parts, NOTHING])


def keeps(plan: Plan) -> str:
    """Return what the plan's density means, by what its file says of lengths, and what it reads where that is less."""
    said = plan.predicted
    assert said is not None
    assert said.density is not None
    *shorter, (longest, density) = zip(said.lengths, said.density, strict=True)
    more_of_shorter = density == 1 or all(kept > density for _, kept in shorter)
    assert more_of_shorter, f"a search for {longest} tokens keeps more of shorter texts"
    more = listed([f"{kept:.2f} of {n:,} tokens" for n, kept in reversed(shorter)])
    text = f"{meant(f'Density {density:g}', plan)}; of shorter ones it keeps more: {more}."
    if density == 1:
        text = "It keeps everything."
    if said.read_density is not None:
        read = listed(
            [f"{share:.3f} at {n:,} tokens" for n, share in zip(said.lengths, said.read_density, strict=True)]
        )
        text += f" Of all bytes of keys and values a decode step reads {read}."
    return text


def measured(plan: Plan, figures: Figures) -> list[Figures]:
    """Return the rows of a result file that ran under this plan, one per length."""
    known = figures.get("plans", {})
    mine = {name for name, document in known.items() if Plan.from_dict(document).fingerprint() == plan.fingerprint()}
    rows: dict[int, Figures] = {}
    for row in figures["rows"]:
        if not mine.isdisjoint((row["row"], f"{row['row']} at {row['length']}")):
            rows.setdefault(row["length"], row)
    return list(rows.values())


def evidence(rows: list[Figures]) -> str:
    """Return needles with 95 % intervals and their difference from dense, and what text loses, by length."""
    tasks = [task for task in TASKS if any(task in row for row in rows)]
    texts = [text for text in TEXTS if any(text in row for row in rows)]
    reads = any("read" in row for row in rows)
    columns = ["tokens", "density", *(["read"] if reads else [])]
    for task in tasks:
        columns += [f"{TASKS[task]}: found", "minus dense"]
    lines = []
    for row in rows:
        cells = [f"{row['length']:,}", f"{row['density']:.3f}"]
        if reads:
            cells.append(f"{row.get('read', row['density']):.3f}")
        for task in tasks:
            if task not in row:
                cells += ["-", "-"]
                continue
            one = row[task]
            low, high = one["interval"]
            cells.append(f"{one['right']} of {one['questions']}, {one['rate']:.2f} ({low:.2f} to {high:.2f})")
            cells.append("{:+.2f} ({:+.2f} to {:+.2f})".format(*one["minus_dense"]))
        for text in texts:
            found = row.get(text)
            cells += [f"{found['perplexity_against_dense']:.3f}", f"{found['kl']:.4f}"] if found else ["-", "-"]
        lines.append(cells)
    return table([*columns, *chain.from_iterable(TEXTS[text] for text in texts)], lines)
