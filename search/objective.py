"""Mix the harms of all sources and lengths into one figure per group and rule, which the search minimises."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import NamedTuple

import numpy as np

from moa.plans.errors import MoaError, shortened
from moa.plans.reading import READ_STEPS
from moa.plans.span import Floats
from moa.profiler.profile import Cut, Profile
from moa.search.grid import Grid, grid
from moa.search.harm import harm
from moa.search.lengths import Lengths
from moa.search.reads import nearest, read_harm, tables_of, with_reads

RECALL = 0.25
"""Power of the hidden share of the text in what a rule costs a group that recalls facts."""

READ_TEXT = 3.0
"""What the harm of reads counts in text, beside that in sources of facts (docs/experiments/reads-shares.md)."""


@dataclass(frozen=True)
class Mix:
    """How harms are mixed: numbers that the additive search cannot know, and a study on the model can try.

    Attributes:
        sources: Weight of each source; those not named count 1, those at 0 are left out.
        lengths: Weight of each length; those not named count 1.
        layers: Weights of equal bands of layers, from the first layers to the last; none means 1.
        power: Power of the harm of sources that do not recall facts: below 1, many small harms count more.
        own: Share of the rule's own harm in what it costs a group that recalls facts; the rest is all or nothing.
        sinks: Sink sizes to choose from, None for all that were profiled.
    """

    sources: Mapping[str, float] = field(default_factory=dict)
    lengths: Mapping[int, float] = field(default_factory=dict)
    layers: tuple[float, ...] = ()
    power: float = 1.0
    own: float = 0.3
    sinks: tuple[int, ...] | None = None

    def __str__(self) -> str:
        weights = [*self.sources.items(), *self.lengths.items(), ("power", self.power), ("own", self.own)]
        layers = "/".join(f"{weight:.3g}" for weight in self.layers) or "1"
        parts = [f"{name}={weight:.3g}" for name, weight in weights]
        return ", ".join([*parts, f"layers={layers}", f"sinks={self.sinks or 'all'}"])

    def check(self, profile: Profile, lengths: Lengths) -> None:
        """Refuse what does not fit the profile and the lengths of the plan.

        Raises:
            MoaError: Sources, lengths or sinks are unknown, or weights are out of range.
        """
        _known("sources", self.sources, profile.sources)
        _known("lengths", self.lengths, (*profile.lengths, *lengths.ahead))
        _known("sinks", self.sinks or (), sorted({size for _, size in profile.variants}))
        for what, weights in (("source", self.sources), ("length", self.lengths)):
            if not all(0 <= weight < inf for weight in weights.values()):
                raise MoaError(f"{what} weights must be 0 or more, found {dict(weights)}")
        if not any(self.sources.get(source, 1.0) for source in profile.sources):
            raise MoaError(f"source weights must be 0 or more, and one over 0, found {dict(self.sources)}")
        if not all(0 < weight < inf for weight in self.layers) or len(self.layers) > len(profile.model.ruled_layers):
            raise MoaError(f"layer weights must be over 0, and no more than the layers, found {self.layers}")
        if not (0 < self.power <= 1 and 0 <= self.own <= 1):
            raise MoaError(f"power must be over 0 and at most 1, own within 0 and 1; found {self.power}, {self.own}")


PLAIN = Mix()


def candidates(profile: Profile, mix: Mix, lengths: Lengths, reads: bool = False) -> Grid:
    """Return the rules that `mix` lets the search choose from, for a plan for these lengths.

    With `reads` they are there with every share that groups may read too (`moa.search.reads.finer`).
    """
    mix.check(profile, lengths)
    chosen = [(name, size) for name, size in profile.variants if size in (mix.sinks or [size])]
    rules = grid(lengths.all, chosen)
    return with_reads(profile, rules, lengths) if reads else rules


def objective(profile: Profile, rules: Grid, mix: Mix, lengths: Lengths | None = None) -> Floats:
    """Return the figures whose sum the search minimises: [groups, rules].

    A source whose estimator is `effect` asks for facts that may lie anywhere, and every group on the way to the answer
    must see them. There a rule costs the group's harm under the narrowest rule at the shortest length measured, times a
    power of the share of the text that the rule hides at the length where it hides most; the rule's own harm joins as
    `mix.own` says. By other sources a rule costs its own harm, averaged over lengths. Each source is divided by the
    cost of the narrowest rule everywhere, so that all have one scale; then sources are mixed. What a rule loses by
    reading less than it keeps is added to its own harm, `READ_TEXT` times, or by tasks to what it costs.

    Args:
        profile: The profile.
        rules: Candidate rules.
        mix: The weights.
        lengths: Lengths that count, None for those of the profile.

    Raises:
        MoaError: The mix does not fit the profile, or no length has a weight over 0.
    """
    text, recall = parts(profile, rules, mix, lengths)
    return text + recall


class Harms(NamedTuple):
    """The harms that the objective mixes, [groups, rules] each.

    Attributes:
        kept: By source and length, the harm of what rules do not keep.
        read: By source and length, what they lose by reading less than they keep; empty where none does.
    """

    kept: Mapping[Cut, Floats]
    read: Mapping[Cut, Floats]


def measured(profile: Profile, rules: Grid, lengths: Lengths) -> Harms:
    """Return the harms that the objective mixes: of tasks at the shortest length, of text at every length.

    They take nearly all of the time of an objective and are the same for every mix.
    """
    keeping, which = rules.keeping
    if len(keeping) < len(rules):
        kept = _kept(profile, keeping, lengths)
        return Harms({cut: table[:, which] for cut, table in kept.items()}, _read(profile, rules, lengths, list(kept)))
    return Harms(_kept(profile, rules, lengths), {})


def _read(profile: Profile, rules: Grid, lengths: Lengths, cuts: Sequence[Cut]) -> dict[Cut, Floats]:
    """Return what rules lose by reading, for the same sources and lengths as what they lose by what they keep.

    A share costs what it does at the longest length measured: of short texts it is spent on what is always read, and
    its harm, far the greatest there, would decide how long texts are read (docs/experiments/reads-shares.md).
    """
    reads, found = tables_of(profile), {}
    for source, n in cuts:
        at = lengths.longest if profile.estimator(source) == "effect" else n
        found[source, n] = read_harm(profile, rules, nearest(reads, source, lengths.longest), at)
    return found


def _kept(profile: Profile, rules: Grid, lengths: Lengths) -> dict[Cut, Floats]:
    found: dict[Cut, Floats] = {}
    for source in profile.sources:
        if profile.estimator(source) == "effect":
            shortest = source, min(n for other, n in profile.cuts if other == source)
            found[shortest] = harm(profile, rules, shortest)
            continue
        there = [n for n in lengths.profiled if (source, n) in profile.cuts]
        found |= {(source, n): harm(profile, rules, (source, n)) for n in there}
        if there:
            found |= {(source, n): harm(profile, rules, (source, there[-1]), n) for n in lengths.ahead}
    return found


def parts(
    profile: Profile, rules: Grid, mix: Mix, lengths: Lengths | None = None, harms: Harms | None = None
) -> tuple[Floats, Floats]:
    """Return the objective's two parts: sources of plain text and documents, and sources that ask for facts.

    `harms` is what `measured` returned, where it was called already.
    """
    lengths = lengths or Lengths(profile.lengths)
    mix.check(profile, lengths)
    share = {n: mix.lengths.get(n, 1.0) for n in lengths.all}
    if not any(share.values()):
        raise MoaError(f"length weights must leave one of {_list(lengths.all)} over 0")
    harms = measured(profile, rules, lengths) if harms is None else harms
    reach = _reach(rules, [n for n in lengths.all if share[n]])
    whole = rules.read256 == READ_STEPS  # of these is the narrowest rule, whatever others read
    layers, groups = len(profile.model.ruled_layers), profile.model.kv_heads
    text, recall = np.zeros((2, layers * groups, len(rules)))
    for source in profile.sources:
        asks = profile.estimator(source) == "effect"
        total = recall if asks else text
        own = {n: (harm, harms.read.get((other, n), 0.0)) for (other, n), harm in harms.kept.items() if other == source}
        if asks:
            ((alone, read),) = own.values()
            costs = [((1 - mix.own) * alone.max(1)[:, None] * reach + mix.own * alone + read, 1.0)]
        else:
            costs = [((harm + READ_TEXT * read) ** mix.power, share[n]) for n, (harm, read) in own.items()]
        counted = sum(weight for _, weight in costs)
        for cost, weight in costs:
            narrowest = cost[:, whole].max(1).sum()
            if narrowest > 0 and weight > 0:
                total += mix.sources.get(source, 1.0) * weight / counted * cost / narrowest
    bands = _bands(mix.layers, layers, groups)[:, None]
    return text * bands, recall * bands


def _reach(rules: Grid, lengths: Sequence[int]) -> Floats:
    """Return what each rule hides from a group that recalls facts, at the length where it hides most: [rules].

    A mean over lengths would neglect the longest ones: constant windows hide nothing at short lengths, so they would
    cost little.
    """
    reach: Floats = np.max([(1 - rules.spans(n) / n) ** RECALL for n in lengths], axis=0)
    return reach


def _bands(weights: Sequence[float], layers: int, groups: int) -> Floats:
    """Return the weight of every group, layer by layer."""
    if not weights:
        return np.ones(layers * groups)
    return np.repeat(np.array(weights)[np.arange(layers) * len(weights) // layers], groups)


def _known(what: str, named: Iterable[str | int], there: Sequence[str | int]) -> None:
    if unknown := [x for x in named if x not in there]:
        raise MoaError(f"{what} of this profile are {_list(there)}, found {_list(unknown)}")


def _list(items: Iterable[str | int]) -> str:
    return shortened(", ".join(map(str, items)), 200)
