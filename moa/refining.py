"""Provide `moa.refine_plan`: a search that also runs the model, since sums of harms cannot predict everything."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from math import inf
from os import PathLike
from pathlib import Path
from typing import Any, Unpack

from moa.finding import Timed, runner, timed, timed_by
from moa.hf.environment import environment
from moa.hf.fingerprint import fingerprint
from moa.hf.load import Given, check_options, loaded
from moa.hf.tokens import start
from moa.outputs import writable
from moa.plans.errors import BudgetInfeasible, MoaError, ModelMismatch
from moa.plans.model import ModelInfo
from moa.plans.plan import Plan
from moa.plans.progress import Note, Progress, silent
from moa.profiler.profile import Profile
from moa.rounds import Round
from moa.search.calibrate import Scale, calibrate
from moa.search.objective import Mix
from moa.search.question import Figures, Options, Question
from moa.search.reads import tables_of
from moa.search.rounds import descend
from moa.search.solver import Solution
from moa.search.storage import open_storage, starts_again
from moa.search.study import Best, Measured, study
from moa.validation import Validation
from moa.version import __version__

TRIALS = 12
"""Number of trials by default, unless options fix all that trials could vary."""
SAMPLES = 4
"""Samples per source and length in each round where no other number is asked for."""


@dataclass(frozen=True)
class Refined:
    """The result of a refinement.

    Attributes:
        best: The best plan, its figures on held-out text, and those of the plain mix's plan.
        solution: The single exact solve, which trials and rounds started from.
        question: The completed question.
        length: Tokens of the held-out samples.
        scale: From the objective to nats per token, where plans were measured for it.
        times: Predicted times where costs are known.
    """

    best: Best
    solution: Solution
    question: Question
    length: int
    scale: Scale | None
    times: tuple[Timed, ...]

    @property
    def plan(self) -> Plan:
        """The best plan."""
        return self.best.plan


def refine_plan(
    profile: Profile | str | PathLike[str], model: Given, output: str | PathLike[str],
    budgets: Mapping[str, Figures], *,
    trials: int | None = None, rounds: int = 0, round_samples: int | None = None, calibration: int | None = None,
    validate_length: int | None = None, storage: str | None = None, seed: int = 0, dtype: str = "auto",
    measure: bool = False, progress: Progress = silent, note: Note = silent, **options: Unpack[Options],
) -> Refined:  # fmt: skip
    """Find a plan as `moa.find_plan` does, then better ones by measuring plans on the model.

    Args:
        profile: A profile, or its file.
        model: The model that was profiled: its name, or what `moa.load_model` returned.
        output: File of the best plan so far (.yaml); what rounds measure is kept beside it.
        budgets: As for `moa.find_plan`.
        trials: Mixes of sources, lengths and layers to try, including the plain one. By default `TRIALS`, and 1 where
            weights of sources or a budget on harm are given.
        rounds: How often to measure around the best plan and go on from there.
        round_samples: Samples per source and length in each round; None for `SAMPLES`.
        calibration: Number of plans to measure, so that the budget on harm is in nats per token.
        validate_length: Tokens of the held-out samples; None for the shortest length that the plan is for. Where no
            budget holds at that length, plans keep no more there than the single exact solve does.
        storage: Journal file or database URL of the trials, which workers may share. None is memory.
        seed: Seed of the trials, of the held-out tasks and of rounds.
        dtype: Dtype to load a named model in, as for `moa.load_model`.
        measure: Whether to time the plan, to compare with what `costs` predict; a named model gets the costs' dtype.
        progress: Called after every step.
        note: Called with a line about every better plan.
        **options: As for `moa.find_plan`.

    Raises:
        BudgetInfeasible: No plan keeps the budgets; the error names the smallest that some plan keeps.
        ModelMismatch: The model is not the one that was profiled.
        MoaError: An option is invalid, or a file cannot be read or must not be replaced.
    """
    question, output = Question.of(profile, budgets, __version__, **options), Path(output)
    weighed, bounded = bool(question.mix.sources), question.harm is not None
    trials = (1 if weighed or bounded else TRIALS) if trials is None else trials
    round_samples = SAMPLES if round_samples is None else round_samples
    if trials < 1 or rounds < 0 or round_samples < 1:
        raise MoaError(
            "trials must be 1 or more, rounds 0 or more and round-samples 1 or more, found "
            f"{trials}, {rounds} and {round_samples}"
        )
    if calibration is not None and calibration < 2:
        raise MoaError(f"calibrate takes 2 plans or more, found {calibration}")
    if trials > 1 and weighed:
        raise MoaError("trials choose the weights of sources: no --source-weight with them")
    if (trials > 1 or rounds) and bounded:
        raise MoaError("trials and rounds make harm least: no --max-harm with them")
    writable(output, "plan", Plan.load)
    (question if calibration is None or not bounded else question.with_harm(inf)).check()
    open_storage(storage)
    ahead = [
        Round.of(i, question.profile, question.mix, question.lengths, output, samples=round_samples, seed=seed)
        for i in range(1, rounds + 1)
    ]
    for each in ahead:
        each.check()
    length = validate_length or question.lengths.profiled[0]
    if measure:
        _, dtype = timed_by(question, model, dtype)
    network, tokenizer = _loaded(question.profile, model, dtype, length)
    check = Validation(network, tokenizer, length, seed=seed, reads=question.reads)
    run = runner(question, (network, tokenizer)) if measure else None
    scale, asked = None, question
    if calibration is not None:
        scale = calibrate(question, check, calibration, progress)
        note(
            f"KL = {scale.factor:.3g} * objective^{scale.power:.2f} nats per token at {length} tokens, "
            f"median error {scale.error:.0%} on {calibration} plans"
        )
        question = _in_nats(question, scale)
    first, solution = _first(question, asked, scale, length)
    first.save(output)
    note(question.told(solution))
    if scale is not None and question.minimise is None:
        note(f"  about {scale.nats(solution.value):.4f} nats per token of KL by the calibration")
    tried = question.level(first, length) if trials > 1 or rounds else question
    if tried != question:
        note(f"  others keep no more of {length} tokens than this plan does, {first.density(length):.3f} of them")
    shown: Measured | None = None

    def keep(found: Best, round_: int = 0) -> None:
        nonlocal shown
        about = f"best of {sum(found.trials)} trials at {length} tokens: {found.mix}"
        about += f"; then round {round_}" if round_ else ""
        origin = question.origin.model_copy(update={"note": about})
        found.plan.model_copy(update={"provenance": origin}).save(output)
        if found.measured != shown:  # a study reports its best once more at its end
            shown = found.measured
            note(f"  {found}")

    def solve(mix: Mix) -> Plan:
        return first if mix == question.mix else tried.solve(mix)[0]

    name = _name(tried, network, length, seed)
    if said := starts_again(storage, name):
        note(said)
    best = study(
        question.profile, solve, check, trials=trials, lengths=question.lengths.all, plain=question.mix,
        name=name, storage=storage, seed=seed, found=keep, progress=progress,
    )  # fmt: skip

    def slopes(number: int, plan: Plan) -> Profile:
        todo = Round.of(number, question.profile, best.mix, question.lengths, output, samples=round_samples, seed=seed)
        return todo.measure(plan, network, tokenizer, progress, f"round {number} of {rounds}")

    best = descend(tried, best, check, slopes, rounds, found=keep, note=note) if rounds else best
    return Refined(best, solution, question, length, scale, timed(best.plan, question, run))


def _loaded(profile: Profile, model: Given, dtype: str, length: int) -> tuple[Any, Any]:
    """Return the model and its tokenizer; refuse a model other than the profiled one."""
    check_options(model, {"the profile": profile.model}, lengths=[length])
    network, tokenizer = loaded(model, dtype=dtype)
    name = network.name_or_path if isinstance(model, tuple) else model
    if (mine := profile.meta.get("start", [])) != (its := start(tokenizer)):
        raise ModelMismatch(
            f"the profile's samples begin with the tokens {mine}, but texts of {name} with {its}: measure it again"
        )
    if differences := profile.model.differences(ModelInfo.of(network)):
        raise ModelMismatch(f"the profile is of another model than {name} (profile against it): {differences[0]}")
    return network, tokenizer


def _in_nats(question: Question, scale: Scale) -> Question:
    """Return the question with its budget on harm, in nats, converted to the objective."""
    if question.harm is None:
        return question
    said = str(question.origin.budget).replace(str(question.harm), f"{question.harm} nats per token")
    origin = question.origin.model_copy(update={"budget": said})
    return replace(question.with_harm(scale.objective(question.harm.most)), origin=origin)


def _first(question: Question, asked: Question, scale: Scale | None, length: int) -> tuple[Plan, Solution]:
    """Return the single exact solve, in nats where there is a scale."""
    try:
        plan, solution = question.solve()
    except BudgetInfeasible as error:
        if scale is None or question.harm is None:
            raise
        typed = f"{asked.harm} nats per token"
        raise BudgetInfeasible(scale.reword(str(error), str(question.harm), typed)) from None
    said = plan.predicted
    if scale is None or question.lengths.all != (length,):  # the scale is of one length
        return plan, solution
    assert said is not None
    assert said.harm is not None
    said = said.model_copy(update={"kl": (float(f"{scale.nats(said.harm[0]):.4g}"),)})
    return plan.model_copy(update={"predicted": said}), solution


def _name(question: Question, network: Any, length: int, seed: int) -> str:
    """Return a study's name, made of all that its figures depend on; all its workers get the same."""
    here, costs = environment(network), question.costs
    about = {
        "weights": fingerprint(network), "backend": here["backend"], "dtype": here["dtype"],
        "budgets": [*map(repr, question.budgets), repr(question.minimise)],
        "costs": None if costs is None else costs.model_dump(mode="json"), "lengths": question.lengths.all,
        "length": length, "seed": seed, "sources": dict(question.mix.sources), "tables": _tables(question.profile),
    }  # fmt: skip
    if question.keep_all:
        about["keep_all"] = True
    if question.reads:
        about["reads"] = _read_tables(question.profile)
    return sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]


def _read_tables(profile: Profile) -> str:
    """Return a digest of what the profile says of reads."""
    told = sha256(json.dumps(tables_of(profile).header(), sort_keys=True).encode())
    for _, table in sorted(tables_of(profile).tensors().items()):
        told.update(table.tobytes())
    return told.hexdigest()


def _tables(profile: Profile) -> str:
    """Return a digest of what the profile says of every rule."""
    told = sha256(repr((profile.variants, sorted(profile.tokens.items()), sorted(profile.estimators.items()))).encode())
    for cut in sorted(profile.cuts):
        told.update(profile.cuts[cut].tobytes())
    return told.hexdigest()
