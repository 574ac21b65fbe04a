"""Run the outer study, which tries on the real model what the additive core cannot see.

Each trial mixes the profile's harms in its own way (`Mix`), has the core solve for a plan, and measures that plan on
text held out from calibration. The caller passes the running model as a callable, so nothing here depends on a model.
Trials are kept in an Optuna storage: workers on several machines join one study, and a killed worker loses only the
trial that it was running.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import optuna
from optuna.samplers import BaseSampler, TPESampler
from optuna.trial import FixedTrial, FrozenTrial, TrialState

from moa.plans.errors import BudgetInfeasible, MoaError
from moa.plans.plan import Plan
from moa.profiler.profile import Profile
from moa.search.objective import PLAIN, Mix
from moa.search.storage import open_storage

BANDS = 4
"""Equal bands of layers that get a weight each."""

ALL = "all"
"""All profiled sizes of sinks to choose from."""

DONE = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)


@dataclass(frozen=True)
class Measured:
    """The figures of a plan, compared with the dense model on held-out text.

    Attributes:
        kl: KL divergence on plain text, nats per token.
        recall: KL divergence on answers about facts in the text, nats per answer token.
        right: Share of answer tokens that the plan gets right.
    """

    kl: float
    recall: float
    right: float

    def score(self, base: "Measured") -> float:
        """Return what a study minimises: the mean of both divergences, each as a share of the base plan's."""
        floor = 1e-9  # of a base that is dense
        return (self.kl / max(base.kl, floor) + self.recall / max(base.recall, floor)) / 2


Evaluate = Callable[[Plan], Iterator[Measured]]
"""Measures a plan: means so far, sample by sample, the last over all of them."""


@dataclass(frozen=True)
class Best:
    """The best plan of a study.

    Attributes:
        plan: The plan.
        mix: The mix that gave it.
        measured: Its figures.
        base: The figures of the plan of the plain mix, which is the single exact solve.
        trials: Numbers of finished trials: measured to the end, and stopped early (a trial whose plan an earlier one
            measured counts as measured).
    """

    plan: Plan
    mix: Mix
    measured: Measured
    base: Measured
    trials: tuple[int, int]

    def __str__(self) -> str:
        (whole, stopped), (plain, now) = self.trials, (self.base, self.measured)
        return (
            f"{whole + stopped} trials, {stopped} stopped early: KL {now.kl:.4f} (plain mix {plain.kl:.4f}), answers' "
            f"KL {now.recall:.4f} ({plain.recall:.4f}), answer tokens right {now.right:.0%} ({plain.right:.0%})"
        )


MEDIAN = optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=0)
"""Stops trials behind the median of the others."""


def open_study(name: str, storage: str | None, pruner: optuna.pruners.BasePruner = MEDIAN) -> optuna.Study:
    """Return the study of that name, new or as it was left."""
    return optuna.create_study(study_name=name, storage=open_storage(storage), load_if_exists=True, pruner=pruner)


def measure(shared: optuna.Study, trial: optuna.Trial, plan: Plan, evaluate: Evaluate, base: Measured) -> str:
    """Measure a trial's plan and end the trial, early where the pruner says so; return how it ended."""
    for step, measured in enumerate(evaluate(plan)):
        trial.report(measured.score(base), step)
        if trial.should_prune():
            shared.tell(trial, state=TrialState.PRUNED)
            return f"trial {trial.number}: stopped at {measured.score(base):.3f}"
    return _finish(shared, trial, measured, base)


def _finish(shared: optuna.Study, trial: optuna.Trial, measured: Measured, base: Measured) -> str:
    trial.set_user_attr("measured", asdict(measured))
    shared.tell(trial, measured.score(base))
    return f"trial {trial.number}: {measured.score(base):.3f}"


def tpe(seed: int) -> BaseSampler:
    """Return Optuna's TPE sampler, used from the first trial on: the plain mix is a better start than random ones."""
    return TPESampler(seed=seed, n_startup_trials=1)


def study(
    profile: Profile, solve: Callable[[Mix], Plan], evaluate: Evaluate, *, trials: int, lengths: Sequence[int],
    name: str, plain: Mix = PLAIN, storage: str | None = None, seed: int = 0,
    sampler: Callable[[int], BaseSampler] = tpe, pruner: optuna.pruners.BasePruner = MEDIAN,
    found: Callable[[Best], None] = lambda _best: None,
    progress: Callable[[int, int, str], None] = lambda _done, _total, _what: None,
) -> Best:  # fmt: skip
    """Try mixes until the study has `trials` finished trials, the plain mix first; return the best.

    Args:
        profile: The profile.
        solve: The core: returns the plan of a mix, within the budgets.
        evaluate: Measures a plan.
        trials: Finished trials to stop at, including those of other workers and earlier runs.
        lengths: Lengths that the plan is for.
        name: Identifies all that figures depend on; workers with the same name and storage share one study.
        plain: The mix that the first trial has.
        storage: Database URL or path of a journal file; None keeps the study in memory.
        seed: Seed of the sampler.
        sampler: Returns the sampler for a seed.
        pruner: Stops trials early.
        found: Called with the best so far whenever this worker improves on it, and at the end.
        progress: Called after each trial.

    Returns:
        The best of all trials.

    Raises:
        BudgetInfeasible: No plan keeps the budgets.
        MoaError: The storage cannot be opened, or its best trial measured another plan than its mix gives here.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    shared = open_study(name, storage, pruner)
    solved: dict[str, Plan] = {}

    def once(mix: Mix) -> Plan:  # solved again when time runs out, it may be another plan
        if (key := repr(mix)) not in solved:
            solved[key] = solve(mix)
        return solved[key]

    base = _base(shared, once(plain), _place(plain, profile, lengths), evaluate)

    def best() -> Best:
        frozen = shared.best_trial
        mix = plain if "plain" in frozen.user_attrs else mix_of(FixedTrial(frozen.params), profile, lengths)
        plan = once(mix)
        if plan.fingerprint() != frozen.user_attrs["rules"]:
            raise MoaError(
                f"the best trial, {frozen.number}, measured another plan than its mix gives here: go on with the "
                "versions and the --time-limit of that run, or name another --storage"
            )
        ended = [t.state for t in _done(shared)]
        counts = ended.count(TrialState.COMPLETE), len(ended) - ended.count(TrialState.COMPLETE)
        return Best(plan, mix, Measured(**frozen.user_attrs["measured"]), base, counts)

    found(best())
    while (count := len(_done(shared))) < trials:
        trial = shared.ask()
        # Seeded by the trial, so that workers draw different ones and a resumed run does not draw an earlier one again.
        shared.sampler = sampler(seed * 1_000_003 + trial.number)
        state = _run(shared, trial, profile, once, evaluate, base, lengths)
        progress(count + 1, trials, state)
        if shared.best_trial.number == trial.number:
            found(best())
    last = best()
    found(last)
    return last


def mix_of(trial: optuna.trial.BaseTrial, profile: Profile, lengths: Sequence[int]) -> Mix:
    """Return the mix that a trial suggests: weights are relative, so the first of each kind stays 1."""

    def weights(kind: str, named: Sequence[str | int], most: float) -> list[float]:
        return [1.0, *(trial.suggest_float(f"{kind}.{x}", 1 / most, most, log=True) for x in named[1:])]

    sources = dict(zip(profile.sources, weights("source", profile.sources, 4), strict=True))
    effect = any(profile.estimator(source) == "effect" for source in profile.sources)
    sizes = list(dict.fromkeys(size for _, size in profile.variants))
    sink = trial.suggest_categorical("sink", [ALL, *sizes]) if len(sizes) > 1 else ALL
    return Mix(
        sources=sources,
        lengths=dict(zip(lengths, weights("length", lengths, 4), strict=True)),
        layers=tuple(weights("band", _bands(profile), 2)),
        power=trial.suggest_float("power", 0.5, 1),
        own=trial.suggest_float("own", 0, 1) if effect else 0.0,
        sinks=None if sink == ALL else (int(sink),),
    )


def _bands(profile: Profile) -> range:
    return range(min(BANDS, len(profile.model.ruled_layers)))


def _place(mix: Mix, profile: Profile, lengths: Sequence[int]) -> FixedTrial | None:
    """Return the trial that suggests `mix`, None where a study does not try it. Weights of layers are not read."""
    params: dict[str, Any] = {f"band.{i}": 1.0 for i in _bands(profile)[1:]}
    weighed: list[tuple[str, Sequence[Any], Mapping[Any, float]]]
    weighed = [("source", profile.sources, mix.sources), ("length", lengths, mix.lengths)]
    for kind, named, given in weighed:
        first, *rest = (given.get(x, 1.0) for x in named)
        if not first or not all(0.25 <= weight / first <= 4 for weight in rest):
            return None
        params |= {f"{kind}.{x}": weight / first for x, weight in zip(named[1:], rest, strict=True)}
    params |= {"power": mix.power, "own": mix.own, "sink": ALL if mix.sinks is None else mix.sinks[0]}
    trial = FixedTrial(params)
    mix_of(trial, profile, lengths)
    return trial


def _base(shared: optuna.Study, plan: Plan, place: FixedTrial | None, evaluate: Evaluate) -> Measured:
    """Return what the first trial, the plain mix, measured, and run it if need be; all scores are relative to it."""
    if "base" not in shared.user_attrs:
        *_, plain = evaluate(plan)
        if "base" not in shared.user_attrs:  # another worker may have been faster, with the same figures
            attrs = {"measured": asdict(plain), "rules": plan.fingerprint(), "plain": True}
            known: dict[str, Any] = {}
            if place is not None:
                known = {"params": place.params, "distributions": place.distributions}
            shared.add_trial(optuna.create_trial(value=plain.score(plain), user_attrs=attrs, **known))
            shared.set_user_attr("base", asdict(plain))
    return Measured(**shared.user_attrs["base"])


def _run(
    shared: optuna.Study, trial: optuna.Trial, profile: Profile, solve: Callable[[Mix], Plan],
    evaluate: Evaluate, base: Measured, lengths: Sequence[int],
) -> str:  # fmt: skip
    """Run one trial, from its mix to the figures of its plan."""
    try:
        plan = solve(mix_of(trial, profile, lengths))
    except BudgetInfeasible:  # with these sinks
        shared.tell(trial, state=TrialState.FAIL)
        return f"trial {trial.number}: infeasible"
    same = plan.fingerprint()
    trial.set_user_attr("rules", same)
    earlier = [t for t in _done(shared) if t.user_attrs.get("rules") == same and t.state == TrialState.COMPLETE]
    if not earlier:
        return measure(shared, trial, plan, evaluate, base)
    return _finish(shared, trial, Measured(**earlier[0].user_attrs["measured"]), base)


def _done(shared: optuna.Study) -> list[FrozenTrial]:
    done: list[FrozenTrial] = shared.get_trials(deepcopy=False, states=DONE)
    return done
