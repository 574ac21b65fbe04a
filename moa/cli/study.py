"""`moa search --validate MODEL`: the parts of a search that run the model."""

import json
from collections.abc import Callable
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
    from moa.profiler.profile import Profile
    from moa.profiler.settings import Settings
    from moa.search.calibrate import Scale
    from moa.search.lengths import Lengths
    from moa.search.objective import Mix
    from moa.search.study import Best, Measured
    from moa.validation import Validation


@dataclass(frozen=True)
class Study:
    """What the user asked of it.

    Attributes:
        trials: Finished trials, all workers together.
        rounds: Times to measure around the best plan so far, and to go on from there.
        samples: Samples per source and length in every round.
        storage: Database URL or journal file, None for memory.
        seed: Of the sampler, of validation's tasks, and of the rounds' samples.
    """

    trials: int
    rounds: int
    samples: int
    storage: str | None
    seed: int

    def check(self) -> None:
        """Raise MoaError for numbers out of range."""
        if self.trials < 1 or self.rounds < 0 or self.samples < 1:
            raise MoaError(
                "trials must be 1 or more, rounds 0 or more and round-samples 1 or more, found "
                f"{self.trials}, {self.rounds} and {self.samples}"
            )

    def ready(self, profile: "Profile", mix: "Mix", lengths: "Lengths", output: Path) -> None:
        """Raise MoaError, before the model loads, where trials cannot be stored or rounds cannot be profiled."""
        from moa.search.storage import open_storage

        open_storage(self.storage)
        for round_ in range(1, self.rounds + 1):
            self.round(round_, profile, mix, lengths, output).check()

    def round(self, number: int, profile: "Profile", mix: "Mix", lengths: "Lengths", output: Path) -> "Round":
        """What a round measures.

        Raises:
            MoaError: A source that cannot be drawn again, or no text that counts.
        """
        from moa.plans.span import BLOCK
        from moa.profiler.calibration import SOURCES
        from moa.profiler.settings import Settings

        if unknown := [name for name in profile.sources if name not in SOURCES]:
            raise MoaError(f"--rounds draws again from {', '.join(SOURCES)}; this profile has {', '.join(unknown)} too")
        text = [name for name in profile.sources if SOURCES[name].estimator != "effect"]
        there = [n for n in lengths.profiled if any((name, n) in profile.cuts for name in text)]
        if not there:
            raise MoaError("--rounds measures text, at the plan's lengths; this profile has none there")
        if not (text := [name for name in text if mix.sources.get(name, 1.0)]):
            raise MoaError("--rounds measures text: its --source-weight must be over 0")
        settings = Settings(  # a profile has a table of a sink of first keys, also where the search leaves those out
            tuple(there), self.samples, self.seed + number, profile.sinks or (BLOCK,), profile.keydiff, "effect",
            loss="kl", chat=profile.meta.get("chat", True),
        )  # fmt: skip
        path = output.with_suffix(f".round-{number}.safetensors")
        return Round(settings, [SOURCES[name] for name in text], path, profile.meta.get("start"))


def validation(profile: "Profile", name: str, dtype: str, length: int, seed: int) -> tuple[Any, Any, "Validation"]:
    """The model, its tokenizer and its validation; refuses another model than was profiled."""
    from moa.load import check_options, load_model
    from moa.plans.errors import ModelMismatch
    from moa.plans.model import ModelInfo
    from moa.profiler.tokens import start
    from moa.validation import Validation

    check_options(name, {"the profile": profile.model}, lengths=[length])
    model, tokenizer = load_model(name, dtype=dtype)
    if (mine := profile.meta.get("start", [])) != (its := start(tokenizer)):
        raise ModelMismatch(
            f"the profile's samples begin with the tokens {mine}, but texts of {name} with {its}: measure it again"
        )
    if differences := profile.model.differences(ModelInfo.of(model)):
        raise ModelMismatch(f"the profile is of another model than {name} (profile against it): {differences[0]}")
    return model, tokenizer, Validation(model, tokenizer, length, seed=seed)


def run(
    profile: "Profile", solve: Callable[..., "Plan"], plain: "Mix", options: Study, model: Any, tokenizer: Any,
    check: "Validation", lengths: "Lengths", about: dict[str, Any], output: Path, console: "Console",
) -> "Best":  # fmt: skip
    """A study of mixes, then rounds from its best plan; the best plan so far is always at `output`.

    Args:
        profile: The profile.
        solve: The core: the plan of a mix, or with a descent the next plan.
        plain: The mix of the first trial, which the others are compared with.
        options: Trials, rounds, storage, seed.
        model: The model, for profiling around plans.
        tokenizer: Its tokenizer.
        check: Measures a plan on it.
        lengths: Lengths the plan is for.
        about: All that figures depend on, the profile aside; workers agree in it.
        output: Where the plan goes.
        console: Where progress goes.
    """
    from moa.cli.common import Bar
    from moa.search.descent import TRIES, Descent
    from moa.search.objective import candidates, parts
    from moa.search.study import study

    shown: Measured | None = None

    def keep(found: "Best", round_: int = 0) -> None:
        nonlocal shown
        origin = found.plan.provenance
        if origin is not None:
            note = f"best of {sum(found.trials)} trials at {check.length} tokens: {found.mix}"
            note += f"; then round {round_}" if round_ else ""
            origin = origin.model_copy(update={"note": note})
        found.plan.model_copy(update={"provenance": origin}).save(output)
        if found.measured != shown:  # a study reports its best once more at its end
            shown = found.measured
            console.print(f"  {summary(found)}")

    named = json.dumps({**about, "tables": _digest(profile)}, sort_keys=True)
    with Bar("study", console) as bar:
        best = study(
            profile, solve, check, trials=options.trials, lengths=lengths.all, plain=plain,
            name=sha256(named.encode()).hexdigest()[:16], storage=options.storage, seed=options.seed, found=keep,
            progress=bar,
        )  # fmt: skip
    if not options.rounds:
        return best
    rules = candidates(profile, best.mix, lengths)
    harms = parts(profile, rules, best.mix, lengths)
    descent = Descent(best.plan, best.plan, (), max(best.measured.kl, 1e-9))
    for number in range(1, options.rounds + 1):
        todo = options.round(number, profile, best.mix, lengths, output)
        around = todo.measure(best.plan, model, tokenizer, f"round {number} of {options.rounds}", console)
        descent = replace(descent, plan=best.plan, rounds=(*descent.rounds, around), damping=1.0)
        now = descent.merit(*harms, rules, best.plan, best.measured.kl)
        for _ in range(TRIES):
            plan = solve(best.mix, descent)
            if plan.groups == best.plan.groups:  # with more damping all the more
                console.print(f"  round {number}: the plan stays")
                break
            *_, measured = check(plan)
            new = descent.merit(*harms, rules, plan, measured.kl)
            console.print(
                f"  round {number}: objective {now:.4g} to {new:.4g}, KL {measured.kl:.4f}, answers' KL "
                f"{measured.recall:.4f}"
            )
            if new < now:
                best = replace(best, plan=plan, measured=measured)
                keep(best, number)
                break
            descent = descent.damped
    return best


def summary(best: "Best") -> str:
    """The best so far beside the plan of the plain mix."""
    (whole, stopped), (plain, now) = best.trials, (best.base, best.measured)
    return (
        f"{whole + stopped} trials, {stopped} stopped early: KL {now.kl:.4f} (plain mix {plain.kl:.4f}), answers' KL "
        f"{now.recall:.4f} ({plain.recall:.4f}), answer tokens right {now.right:.0%} ({plain.right:.0%})"
    )


@dataclass(frozen=True)
class Round:
    """The slopes of the divergence from the dense model around a plan.

    Attributes:
        settings: What is measured.
        sources: Of what.
        path: Where it is kept.
        start: Tokens that the samples begin with, None for no special ones.
    """

    settings: "Settings"
    sources: list["Source"]
    path: Path
    start: list[int] | None

    def check(self, plan: "Plan | None" = None, model: Any = None) -> None:
        """Refuse to replace a file that this round, of `model` around `plan`, did not write; None is any of them."""
        from moa.cli.common import writable

        writable(self.path, "profile of this round", partial(self._check, plan, model))

    def measure(self, plan: "Plan", model: Any, tokenizer: Any, what: str, console: "Console") -> "Profile":
        """The slopes around `plan`; read, where an earlier run measured them."""
        from moa.cli.common import Bar
        from moa.profiler.collect import collect
        from moa.profiler.profile import Profile
        from moa.profiler.settings import tasks

        plan = plan.model_copy(update={"predicted": None, "provenance": None})  # another day gives another date
        self.check(plan, model)
        if not self.path.exists():
            work = [task.length for task in tasks(self.settings, self.sources)]
            done = accumulate(work)
            with Bar(what, console) as bar:
                collect(
                    model, tokenizer, self.settings, self.sources, self.path, plan=plan,
                    progress=lambda task, _measured: bar(next(done), sum(work), task.key),
                )  # fmt: skip
        return Profile.load(self.path)

    def _check(self, plan: "Plan | None", model: Any, path: Path) -> None:
        from moa.profiler.fingerprint import fingerprint
        from moa.profiler.profile import Profile

        found, settings = Profile.load(path), self.settings
        said = {name: getattr(settings, name) for name in ("seed", "samples", "chat", "labels", "loss")}
        said["start"] = self.start
        if plan is not None:
            said["around"] = plan.to_dict()
        if model is not None:
            said |= {"weights": fingerprint(model), "dtype": str(model.dtype)}
        same = (
            (found.sinks, found.keydiff) == (settings.sinks, settings.keydiff)
            and set(found.cuts) == {(s.name, n) for s in self.sources for n in settings.lengths}
            and set(found.estimators.values()) == {settings.estimator}
            and {name: found.meta.get(name) for name in said} == json.loads(json.dumps(said))
        )
        if not same:
            raise MoaError("it has other settings, or is of another model or around another plan")


def _digest(profile: "Profile") -> str:
    """Names what the profile says of every rule."""
    told = sha256(repr((profile.patterns, sorted(profile.tokens.items()), sorted(profile.estimators.items()))).encode())
    for cut in sorted(profile.cuts):
        told.update(profile.cuts[cut].tobytes())
    return told.hexdigest()


def calibrated(
    profile: "Profile", mix: "Mix", check: "Validation", count: int, lengths: "Lengths", console: "Console"
) -> "Scale":
    """Solve for `count` densities between the least and dense, measure each plan's KL, and fit the scale."""
    import numpy as np

    from moa.cli.common import Bar
    from moa.search.budget import Budget
    from moa.search.calibrate import fit
    from moa.search.choose import choose
    from moa.search.objective import candidates

    rules = candidates(profile, mix, lengths)
    least = float(rules.spans(lengths.longest).min()) / lengths.longest
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
