"""`moa search --validate MODEL`: the parts of a search that run the model."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moa.plans.errors import MoaError

if TYPE_CHECKING:
    from rich.console import Console

    from moa.plans.plan import Plan
    from moa.profiler.calibration import Source
    from moa.profiler.collect import Settings
    from moa.profiler.profile import Profile
    from moa.search.calibrate import Scale
    from moa.search.objective import Mix
    from moa.search.study import Best
    from moa.validation import Validation


@dataclass(frozen=True)
class Study:
    """What the user asked of it.

    Attributes:
        trials: Finished trials, all workers together, in every round.
        rounds: Times to profile again around the best plan, and to go on with both profiles.
        storage: Database URL or journal file, None for memory.
        seed: Of the sampler and of validation's tasks.
    """

    trials: int
    rounds: int
    storage: str | None
    seed: int

    def check(self) -> None:
        """Raise MoaError for numbers out of range."""
        if self.trials < 1 or self.rounds < 0:
            raise MoaError(f"trials must be 1 or more and rounds 0 or more, found {self.trials} and {self.rounds}")

    def ready(self, profile: "Profile", lengths: Sequence[int], output: Path) -> None:
        """Raise MoaError, before the model loads, where trials cannot be stored or rounds cannot be profiled."""
        from moa.search.study import open_storage

        open_storage(self.storage)
        for round_ in range(1, self.rounds + 1):
            for part in parts(profile, lengths, self.seed + round_, round_, output):
                part.check(None)


def validation(profile: "Profile", name: str, length: int, seed: int) -> tuple[Any, Any, "Validation"]:
    """The model, its tokenizer and its validation; refuses another model than was profiled."""
    from moa.load import load_model
    from moa.plans.errors import ModelMismatch
    from moa.plans.model import ModelInfo
    from moa.validation import Validation

    model, tokenizer = load_model(name)
    if differences := profile.model.differences(ModelInfo.of(model)):
        raise ModelMismatch(f"the profile is of another model than {name} (profile against it): {differences[0]}")
    return model, tokenizer, Validation(model, tokenizer, length, seed=seed)


def run(
    profile: "Profile", solve: Callable[["Profile", "Mix"], "Plan"], plain: "Mix", options: Study,
    model: Any, tokenizer: Any, check: "Validation", lengths: Sequence[int], about: dict[str, Any], output: Path,
    console: "Console",
) -> "Best":  # fmt: skip
    """A study, then one more after every round; the best plan so far is always at `output`.

    Args:
        profile: The profile.
        solve: The core: the plan of a mix.
        plain: The mix of the first trial, which the others are compared with.
        options: Trials, rounds, storage, seed.
        model: The model, for profiling again.
        tokenizer: Its tokenizer.
        check: Measures a plan on it.
        lengths: Lengths the plan is for.
        about: All that figures depend on, the profile aside; workers agree in it.
        output: Where the plan goes.
        console: Where progress goes.
    """
    from moa.cli.common import Bar
    from moa.search.study import study

    best: Best | None = None
    before = (0, 0)

    def keep(found: "Best") -> None:
        nonlocal best
        better = best is None or found.measured.score(found.base) < best.measured.score(best.base)
        whole, stopped = (a + b for a, b in zip(before, found.trials, strict=True))
        best = replace(found if best is None or better else best, trials=(whole, stopped))
        origin = best.plan.provenance
        if origin is not None:
            note = f"best of {whole + stopped} trials at {check.length} tokens: {best.mix}"
            origin = origin.model_copy(update={"note": note})
        best.plan.model_copy(update={"provenance": origin}).save(output)
        if better:
            console.print(f"  {summary(best)}")

    first = profile
    for round_ in range(options.rounds + 1):
        named = json.dumps({**about, "round": round_, "tables": _digest(profile)}, sort_keys=True)
        name = sha256(named.encode()).hexdigest()[:16]
        with Bar(f"study {round_ + 1} of {options.rounds + 1}", console) as bar:
            study(
                profile, solve, check, trials=options.trials, lengths=lengths, name=name, plain=plain,
                base=None if best is None else best.base, storage=options.storage, seed=options.seed, found=keep,
                progress=bar,
            )  # fmt: skip
        assert best is not None
        before = best.trials
        if round_ < options.rounds:
            todo = parts(first, lengths, options.seed + round_ + 1, round_ + 1, output)
            for new in _again(todo, best.plan, model, tokenizer, console):
                profile = profile.plus(new)
    assert best is not None
    return best


def summary(best: "Best") -> str:
    """The best so far beside the plan of the plain mix."""
    (whole, stopped), (plain, now) = best.trials, (best.base, best.measured)
    return (
        f"{whole + stopped} trials, {stopped} stopped early: KL {now.kl:.4f} (plain mix {plain.kl:.4f}), answers' KL "
        f"{now.recall:.4f} ({plain.recall:.4f}), answer tokens right {now.right:.0%} ({plain.right:.0%})"
    )


@dataclass(frozen=True)
class Part:
    """Sources that a round draws again, at the same lengths.

    Attributes:
        settings: As the profile was made, as far as it says.
        sources: The sources.
        path: The profile of them.
    """

    settings: "Settings"
    sources: list["Source"]
    path: Path

    def check(self, plan: "Plan | None") -> None:
        """Refuse to replace a file that this part, around `plan`, did not write; None is any plan."""
        from moa.cli.common import writable

        writable(self.path, "profile of this round", partial(self._check, plan))

    def _check(self, plan: "Plan | None", path: Path) -> None:
        from moa.profiler.profile import Profile

        found, settings = Profile.load(path), self.settings
        said = {
            "seed": settings.seed, "samples": settings.samples, "chat": settings.chat, "labels": settings.labels,
            "loss": settings.loss, "sources": {s.name: [s.labels, s.loss] for s in self.sources},
        }  # fmt: skip
        if plan is not None:
            said["around"] = plan.to_dict()
        same = (
            found.sinks == settings.sinks
            and set(found.cuts) == {(s.name, n) for s in self.sources for n in settings.lengths}
            and dict(found.estimators) == {s.name: s.estimator for s in self.sources}
            and {name: found.meta.get(name) for name in said} == json.loads(json.dumps(said))
        )
        if not same:
            raise MoaError("it has other settings, or is around another plan")


def parts(profile: "Profile", lengths: Sequence[int], seed: int, round_: int, output: Path) -> list[Part]:
    """What a round measures: every source as the profile has it, at the lengths that the objective reads it at.

    Raises:
        MoaError: A source that cannot be drawn again.
    """
    from moa.profiler.calibration import SOURCES
    from moa.profiler.collect import Settings

    if unknown := [name for name in profile.sources if name not in SOURCES]:
        raise MoaError(f"--rounds draws again from {', '.join(SOURCES)}; this profile has {', '.join(unknown)} too")
    meta = profile.meta
    by_lengths: dict[tuple[int, ...], list[Source]] = {}
    for name in profile.sources:
        source, there = SOURCES[name], [n for other, n in profile.cuts if other == name]
        labels, loss = meta.get("sources", {}).get(name, (source.labels, source.loss))
        source = replace(source, estimator=profile.estimator(name), labels=labels, loss=loss)
        read = (min(there),) if source.estimator == "effect" else tuple(n for n in lengths if n in there)
        if read:
            by_lengths.setdefault(read, []).append(source)
    samples = max(profile.samples.values())
    return [
        Part(
            Settings(
                at, samples, seed, profile.sinks, labels=meta.get("labels"), loss=meta.get("loss"),
                chat=meta.get("chat", True),
            ),
            sources,
            output.with_suffix(f".round-{round_}.{'-'.join(map(str, at))}.safetensors"),
        )
        for at, sources in by_lengths.items()
    ]  # fmt: skip


def _again(todo: Sequence[Part], plan: "Plan", model: Any, tokenizer: Any, console: "Console") -> list["Profile"]:
    """New samples, of the model under `plan`; parts that an earlier run finished are read."""
    from moa.cli.common import Bar
    from moa.profiler.collect import collect, tasks
    from moa.profiler.profile import Profile

    plan = plan.model_copy(update={"predicted": None, "provenance": None})  # another day gives another date
    for part in todo:
        part.check(plan)
    missing = [part for part in todo if not part.path.exists()]
    work = [task.length for part in missing for task in tasks(part.settings, part.sources)]
    done = accumulate(work)
    with Bar("profiling around the best plan", console) as bar:
        for part in missing:
            collect(
                model, tokenizer, part.settings, part.sources, part.path, plan=plan,
                progress=lambda task, _measured: bar(next(done), sum(work), task.key),
            )  # fmt: skip
    return [Profile.load(part.path) for part in todo]


def _digest(profile: "Profile") -> str:
    """Names what the profile says of every rule."""
    told = sha256(repr((profile.sinks, sorted(profile.tokens.items()), sorted(profile.estimators.items()))).encode())
    for cut in sorted(profile.cuts):
        told.update(profile.cuts[cut].tobytes())
    return told.hexdigest()


def calibrated(
    profile: "Profile", mix: "Mix", check: "Validation", count: int, lengths: Sequence[int], console: "Console"
) -> "Scale":
    """Solve for `count` densities between the least and dense, measure each plan's KL, and fit the scale."""
    import numpy as np

    from moa.cli.common import Bar
    from moa.search.budget import Budget
    from moa.search.calibrate import fit
    from moa.search.choose import choose
    from moa.search.grid import grid

    if count < 2:
        raise MoaError(f"calibrate takes 2 plans or more, found {count}")
    rules = grid(tuple(lengths), mix.sinks or profile.sinks)
    least = max(float(rules.spans(n).min()) / n for n in lengths)
    points = []
    with Bar("calibrating", console) as bar:
        for i, density in enumerate(np.geomspace(least * 1.05, 0.8, count)):
            plan, solution = choose(profile, [Budget("density", float(density))], mix=mix, lengths=lengths)
            *_, measured = check(plan)
            points.append((solution.value, measured.kl))
            bar(i + 1, count, f"density {density:.2f}: objective {solution.value:.3g}, KL {measured.kl:.4f}")
    scale = fit(points)
    console.print(
        f"KL = {scale.factor:.3g} * objective^{scale.power:.2f} nats per token at {check.length} tokens, "
        f"median error {scale.error:.0%} on {count} plans"
    )
    return scale
