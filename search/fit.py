"""Measure a few plans on the user's device and fit the terms of `moa.search.cost` to their times.

The caller passes the running model as a callable, so nothing here depends on a model.
"""

from collections.abc import Callable, Mapping, Sequence
from statistics import median

import numpy as np
from scipy.optimize import nnls

from moa.plans.errors import MoaError
from moa.plans.model import ModelInfo
from moa.plans.patterns import PATTERNS
from moa.plans.plan import FULL, Plan, Rule
from moa.plans.progress import Progress, silent
from moa.plans.reading import READ_STEPS
from moa.plans.span import BLOCK
from moa.search.cost import Costs, Kind, Measured, Work, counts, term_names
from moa.search.spread import SURE, iqr, standard_error

Run = Callable[[Plan, Work], Sequence[float]]
"""Runs a plan: milliseconds of some work, once or several times."""
Taken = dict[tuple[str, Work], list[float]]
"""Milliseconds of each plan, by its name, at each work: one figure per round."""

LEAST = 4
"""Rounds that a standard error takes."""
ENDS, SHARES = (64, 16), (READ_STEPS, 64, 32, 16)
"""What rules of `reading_probes` read, in 1/256: all groups the same, and each group its own."""


def measure(
    model: ModelInfo, works: Sequence[Work], run: Run, *, environment: Mapping[str, str | int], rounds: int = 8,
    reads: bool = False, progress: Progress = silent,
) -> Costs:  # fmt: skip
    """Measure the probes and return the fitted costs.

    Args:
        model: The model that `run` runs.
        works: What to measure, at two lengths or more per kind, so that growth with the length shows.
        run: Runs a plan.
        environment: The environment that the figures hold for.
        rounds: See `in_turn`.
        reads: Whether to measure decode steps of plans that read less than they keep, too.
        progress: See `in_turn`.

    Raises:
        MoaError: A kind of work has one length only.
    """
    for kind in {work.kind for work in works}:
        if len({work.length for work in works if work.kind == kind}) < 2:
            raise MoaError(f"{kind} must be measured at two lengths or more")
    plans = probes(model, max(work.length for work in works))
    choosing = reading_probes(plans) if reads else {}
    cells = {work: plans | choosing if work.kind == "decode" else plans for work in works}
    taken = in_turn(cells, run, lambda _: rounds, progress)
    return fit(plans | choosing, taken, environment)


def probes(model: ModelInfo, longest: int) -> dict[str, Plan]:
    """Return the plans to measure: dense, wide and narrow windows of each pattern, and all of them mixed.

    Groups of a layer differ, as in plans that a search found, so that no two of them share a call.
    """
    wide, narrow = longest // 2 // BLOCK * BLOCK, max(BLOCK, longest // 16 // BLOCK * BLOCK)

    def windows(kind: type[Rule], window: int) -> Plan:
        rules = [kind.probe(window + BLOCK * head, longest) for head in range(model.kv_heads)]
        return Plan.from_rules(model, dict.fromkeys(model.ruled_layers, rules))

    found, rules = {"dense": Plan.dense(model)}, [FULL, FULL]
    for kind in PATTERNS.values():
        found |= {
            f"{kind.label} wide".strip(): windows(kind, wide),
            f"{kind.label} narrow".strip(): windows(kind, narrow),
        }
        rules += [kind.probe(max(BLOCK, longest // part // BLOCK * BLOCK), longest) for part in (16, 8, 4, 2)]
        rules += [kind.probe(share * longest, longest, grows=True) for share in (0.25, 0.5)]
    drawn = np.random.default_rng(0).integers(len(rules), size=(len(model.ruled_layers), model.kv_heads))
    mixed = {layer: [rules[i] for i in row] for layer, row in zip(model.ruled_layers, drawn, strict=True)}
    return {**found, "mixed": Plan.from_rules(model, mixed)}


def reading_probes(plans: Mapping[str, Plan]) -> dict[str, Plan]:
    """Return the plans to measure whose groups read less than they keep, made of `probes`."""
    model, mixed = plans["dense"].model, plans["mixed"]
    shares = np.random.default_rng(1).choice(SHARES, size=(len(model.ruled_layers), model.kv_heads))
    rows = zip(model.ruled_layers, shares.tolist(), strict=True)
    each = {
        layer: [rule.reading(share) for rule, share in zip(mixed.groups[layer], row, strict=True)]
        for layer, row in rows
    }
    found = {f"dense, {share}/256 read": Plan.from_rules(model, {}, defaults=FULL.reading(share)) for share in ENDS}
    return {**found, "mixed, read": Plan.from_rules(model, each)}


def in_turn(
    cells: Mapping[Work, Mapping[str, Plan]], run: Run, most: Callable[[Work], int], progress: Progress = silent
) -> Taken:
    """Measure everything in turn, round after round, so that drift of the machine affects all alike.

    A round runs the plans of each cell one after the other, with another one first each time. A cell is done once the
    standard error of every median in it is `SURE` or less.

    Args:
        cells: The plans to run at each work, by name.
        run: Runs a plan; the median of the times it returns is the round's figure.
        most: Returns the most rounds for a cell's work.
        progress: Called after each run with the number of runs done, the most there may be, and the last one's name.
    """
    taken: Taken = {(name, work): [] for work, plans in cells.items() for name in plans}

    def wanted(work: Work) -> bool:
        figures = [taken[name, work] for name in cells[work]]
        rounds = min(map(len, figures))
        return rounds < most(work) and (rounds < LEAST or any(standard_error(ms) > SURE for ms in figures))

    done, turn = 0, 0
    while left := [work for work in cells if wanted(work)]:
        for work in left:
            names = list(cells[work])
            first = turn % len(names)
            for name in names[first:] + names[:first]:
                taken[name, work].append(median(run(cells[work][name], work)))
                done += 1
                to_come = sum(most(w) - len(taken[n, w]) for w in cells if wanted(w) for n in cells[w])
                progress(done, done + to_come, f"{work} {name}")
        turn += 1
    return taken


def fit(plans: Mapping[str, Plan], taken: Taken, environment: Mapping[str, str | int]) -> Costs:
    """Return costs fitted to the times of some plans of one model.

    Args:
        plans: The plans, by name.
        taken: Their times.
        environment: The environment that the times hold for.
    """
    model = next(iter(plans.values())).model
    terms = {kind: _terms(kind, plans, taken) for kind in dict.fromkeys(work.kind for _, work in taken)}
    unchecked = Costs(model=model, environment=dict(environment), terms=terms, error={}, measured=())
    rows, error = [], {}
    for (name, work), ms in taken.items():
        rows.append(Measured(
            plan=name, kind=work.kind, length=work.length, batch=work.batch, ms=round(median(ms), 4),
            iqr=round(iqr(ms), 4), standard_error=round(standard_error(ms), 4) if len(ms) >= LEAST else None,
            predicted=round(unchecked.predict(plans[name], work), 4),
        ))  # fmt: skip
    for kind in terms:
        error[kind] = median(abs(row.predicted / row.ms - 1) for row in rows if row.kind == kind)
    return unchecked.model_copy(update={"measured": tuple(rows), "error": error})


def _terms(kind: Kind, plans: Mapping[str, Plan], taken: Taken) -> dict[str, float]:
    """Return the terms of least squared relative error, none negative (Lawson and Hanson's NNLS)."""
    rows, times = [], []
    names = term_names(kind, reads=any(plan.reads() for plan in plans.values()))
    for (name, work), ms in taken.items():
        if work.kind == kind:
            rows.append(counts(plans[name], work, names))
            times.append(median(ms))
    table = np.array(rows) / np.array(times)[:, None]
    scale = np.maximum(table.max(0), 1e-300)
    found, _ = nnls(table / scale, np.ones(len(times)))
    return dict(zip(names, (found / scale).tolist(), strict=True))
