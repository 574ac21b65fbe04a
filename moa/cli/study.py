"""`moa search --validate MODEL`: the parts of a search that run the model."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moa.plans.errors import MoaError

if TYPE_CHECKING:
    from rich.console import Console

    from moa.plans.plan import Plan
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
        about: All that figures depend on; workers agree in it.
        output: Where the plan goes.
        console: Where progress goes.
    """
    from moa.cli.common import Bar
    from moa.search.study import study

    best: Best | None = None
    samples = max(profile.samples.values())

    def keep(found: "Best") -> None:
        nonlocal best
        if best is None or found.measured.score(found.base) < best.measured.score(best.base):
            best = found
            origin = found.plan.provenance
            if origin is not None:
                note = f"best of {sum(found.trials)} trials at {check.length} tokens: {found.mix}"
                origin = origin.model_copy(update={"note": note})
            found.plan.model_copy(update={"provenance": origin}).save(output)
            console.print(f"  {summary(found)}")

    name = sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]
    for round_ in range(options.rounds + 1):
        with Bar(f"study {round_ + 1} of {options.rounds + 1}", console) as bar:
            study(
                profile, solve, check, trials=options.trials, lengths=lengths, name=f"{name}.{round_}",
                plain=plain, base=None if best is None else best.base, storage=options.storage, seed=options.seed,
                found=keep, progress=bar,
            )  # fmt: skip
        assert best is not None
        if round_ < options.rounds:
            around = output.with_suffix(f".round-{round_ + 1}.safetensors")
            new = _again(
                profile, best.plan, samples, options.seed + round_ + 1, lengths, around, model, tokenizer, console
            )
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


def _again(
    profile: "Profile", plan: "Plan", samples: int, seed: int, lengths: Sequence[int], path: Path, model: Any,
    tokenizer: Any, console: "Console",
) -> "Profile":  # fmt: skip
    """New samples of the profile's sources, of the model under `plan`."""
    from moa.cli.common import Bar
    from moa.profiler.calibration import SOURCES
    from moa.profiler.collect import Settings, collect, tasks

    settings = Settings(tuple(lengths), samples, seed, profile.sinks)
    sources = [SOURCES[source] for source in profile.sources if source in SOURCES]
    todo = tasks(settings, sources)
    done, total = accumulate(task.length for task in todo), sum(task.length for task in todo)
    with Bar("profiling around the best plan", console) as bar:
        found = collect(
            model, tokenizer, settings, sources, path, plan=plan,
            progress=lambda task, _measured: bar(next(done), total, task.key),
        )  # fmt: skip
    assert found is not None  # one process
    return found


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
