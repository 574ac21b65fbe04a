"""Measure what trials on the model add to one exact solve, and what the exact core adds to trials alone.

Every plan is what `moa search PROFILE --max-density D --max-length LONGEST` finds, at densities 0.25 and 0.125; a study
tries mixes of the same search, which keep no more than it does at the length where trials are measured either. Two
studies (seeds 4, 5) take short trials on validation text and tasks, as `moa refine` does. What they chose is reported
on what no study saw: tasks of another seed, evaluation text, and needles of formats by which no choice of this project
was made, beside the single exact solve. At the first density studies with random mixes, none of which is stopped early,
are compared with the default sampler; since they are measured to the end, pruners are replayed on them. And 60 trials
of Optuna alone, over the window and the sink of every group, at density 0.25 of 1,024 tokens, are scored like a study's
trials beside the exact solve for that length. Writes study.json and study.md to `--results`. If it is stopped, the same
command continues from study.partial and study-trials.partial. Several processes may measure a seed each, and one then
combines all seeds. The model reads about 0.8 million tokens, which takes half an hour on one core that computes in
bfloat16.

    python benchmarks/study.py .model/SmolLM2-135M-Instruct profile.safetensors
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from held_out import TASKS
from provenance import about, provenance, said, write

from moa.evaluation.comparison import compare
from moa.evaluation.journal import Journal, key
from moa.evaluation.samples import Part
from moa.hf.fingerprint import fingerprint
from moa.hf.load import load_model
from moa.plans.errors import MoaError
from moa.plans.patterns import PATTERNS
from moa.plans.plan import FULL, Plan
from moa.profiler.profile import Profile, describe, digest
from moa.search.question import Question
from moa.search.study import MEDIAN, Best, Evaluate, measure, open_study, study
from moa.validation import Validation

CHECKED = Part(2048, {"single": 8, "text": 2}, TASKS), Part(4096, {"text": 1}), Part(8192, {"text": 1})
"""How winners are measured, besides the tasks of another seed."""
DENSITIES = "0.25", "0.125"
ALONE = 0.25, 1024
"""Density and length of the trials of Optuna alone."""
ENDED = optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED
PRUNERS = {
    "median of the others (default)": MEDIAN,
    "best quarter of the others": optuna.pruners.PercentilePruner(25, n_startup_trials=4),
    "successive halving": optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=2),
    "none": optuna.pruners.NopPruner(),
}
WINDOWS = (64, 128, 256, 512)
"""Windows that Optuna alone chooses from, besides everything."""


def alone(
    profile: Profile, evaluate: Evaluate, density: float, length: int, trials: int, name: str, storage: str
) -> list[float]:  # fmt: skip
    """Return Optuna's scores by trial, over each group's rule; groups drawn last shrink to keep the budget."""
    sinks = [(PATTERNS[name], size) for name, size in profile.variants]
    kinds = [*(kind(sink=s, alpha=s + window, beta=0) for window in WINDOWS for kind, s in sinks), FULL]
    groups = [(layer, head) for layer in profile.model.ruled_layers for head in range(profile.model.kv_heads)]

    def plan_of(trial: optuna.Trial) -> Plan:
        chosen = {g: trial.suggest_int(f"{g[0]}.{g[1]}", 0, len(kinds) - 1) for g in groups}
        for i in np.random.default_rng(trial.number).permutation(len(groups) * (len(kinds) - 1)):
            plan = Plan.from_rules(
                profile.model,
                {
                    layer: [kinds[chosen[layer, head]] for head in range(profile.model.kv_heads)]
                    for layer in profile.model.ruled_layers
                },
            )
            if plan.density(length) <= density:
                return plan
            group = groups[i % len(groups)]
            chosen[group] = max(0, chosen[group] - 1)
        return plan

    one = Question.of(profile, {"density": density}, "study", lengths=[length], max_length=length)
    *_, base = evaluate(one.solve()[0])
    raw, say = open_study(name, storage), said("Optuna alone")
    while (done := len(raw.get_trials(deepcopy=False, states=ENDED))) < trials:
        trial = raw.ask()
        raw.sampler = optuna.samplers.TPESampler(seed=trial.number)
        say(done + 1, trials, measure(raw, trial, plan_of(trial), evaluate, base))
    return [t.value for t in raw.trials if t.state == ENDED[0] and t.value is not None]


def trials_of(name: str, storage: str) -> list[optuna.trial.FrozenTrial]:
    """Return a study's trials that were measured to the end, sample by sample, without copies of repeated plans."""
    return [t for t in open_study(name, storage).trials if t.state == ENDED[0] and t.intermediate_values]


def replay(trials: list[optuna.trial.FrozenTrial], pruner: optuna.pruners.BasePruner) -> tuple[float, float]:
    """Return the share of samples that a pruner lets be measured, and the best score it lets through."""
    again, measured = optuna.create_study(pruner=pruner), 0
    for recorded in trials:
        trial, stopped = again.ask(), False
        for step, value in sorted(recorded.intermediate_values.items()):
            trial.report(value, step)
            measured += 1
            if stopped := trial.should_prune():
                break
        again.tell(trial, state=ENDED[1]) if stopped else again.tell(trial, recorded.value)
    return measured / sum(len(t.intermediate_values) for t in trials), again.best_value


def unseen(plans: Sequence[tuple[str, Plan]], check: Validation, journal: Journal, **what: Any) -> dict[str, Any]:
    """Return what plans measure on tasks of a seed that no study saw, by name."""
    found, say = {}, said("unseen tasks")
    for i, (name, plan) in enumerate(plans):
        place = key(plan=plan.fingerprint(), length=check.length, **what)
        if journal.get(place) is None:
            *_, measured = check(plan)
            journal.put(place, asdict(measured), plan=name)
        found[name] = journal.get(place)
        say(i + 1, len(plans), name)
    return found


def markdown(found: dict[str, Any]) -> str:
    lines = [
        f"{found['model']['name']}; {about(found['run'])}",
        "",
        "On validation text, which the studies go by:",
        "",
        "| density | seed | trials (stopped early) | KL, exact | KL, study | answers' KL, exact | study |",
        "|---|---|---|---|---|---|---|",
    ]
    for s in found["studies"]:
        whole, stopped = s["trials"]
        lines.append(
            f"| {s['density']} | {s['seed']} | {whole + stopped} ({stopped}) | {s['base']['kl']:.4f} | "
            f"{s['measured']['kl']:.4f} | {s['base']['recall']:.3f} | {s['measured']['recall']:.3f} |"
        )
    lines += ["", "On tasks of another seed, which no study saw:", ""]
    lines += ["| plan | answers' KL | answer tokens right |", "|---|---|---|"]
    lines += [f"| {name} | {m['recall']:.3f} | {m['right']:.1%} |" for name, m in found["unseen"].items()]
    lines += ["", "On evaluation text and needles, which no study saw:", ""]
    lines += ["| tokens | plan | KL | perplexity against dense | needles found |", "|---|---|---|---|---|"]
    for row in found["rows"]:
        text, one = row["text"], row.get("single")
        needles = f"{one['right']} of {one['questions']}" if one else "-"
        lines.append(
            f"| {row['length']:,} | {row['row']} | {text['kl']:.4f} | {text['perplexity_against_dense']:.3f} | "
            f"{needles} |"
        )
    if any(r["replays"] for r in found["random"]):
        lines += ["", f"Best score at density {DENSITIES[0]}, where the plain mix is 1 (lower is better):", ""]
        lines += ["| seed | TPE, median pruner | random mixes, none stopped |", "|---|---|---|"]
        lines += [f"| {r['seed']} | {r['tpe']:.3f} | {r['best']:.3f} |" for r in found["random"]]
        lines += ["", "Pruners, replayed on the random mixes; means over seeds:", ""]
        lines += ["| pruner | samples measured | best score |", "|---|---|---|"]
        for name in PRUNERS:
            share, best = np.mean([r["replays"][name] for r in found["random"] if r["replays"]], axis=0)
            lines.append(f"| {name} | {share:.0%} | {best:.3f} |")
    raw = found["alone"]
    if raw["scores"]:
        lines += [
            "",
            f"Optuna alone, {raw['trials']} trials at density {raw['density']} of {raw['length']:,} tokens: best score "
            f"{min(raw['scores']):.2f}, where the single exact solve is 1 (lower is better).",
        ]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("profile", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[4, 5], help="of studies and of their tasks")
    parser.add_argument("--unseen", type=int, default=11, help="seed of the tasks and needles that are reported")
    parser.add_argument("--longest", type=int, default=8192, help="longest intended length, where densities hold")
    parser.add_argument(
        "--validate-length", type=int,
        help="tokens of what trials are measured on. Default, as of moa refine: the shortest profiled length",
    )  # fmt: skip
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--alone", type=int, default=60, help="trials of Optuna alone; 0: not now")
    parser.add_argument("--no-check", action="store_true", help="studies only")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    try:
        profile = Profile.load(options.profile)
        questions = {d: Question.of(profile, {"density": d}, "study", max_length=options.longest) for d in DENSITIES}
        lengths = questions[DENSITIES[0]].lengths
        options.results.mkdir(parents=True, exist_ok=True)
        storage, journal = str(options.results / "study-trials.partial"), Journal(options.results / "study.partial")
        model, tokenizer = load_model(options.model, dtype=options.dtype)
        length = options.validate_length or lengths.profiled[0]
        identity = {
            "profile": digest(options.profile), "weights": fingerprint(model), "dtype": options.dtype,
            "longest": options.longest,
        }  # fmt: skip
        exact = {density: question.solve()[0] for density, question in questions.items()}
        tried = {density: question.level(exact[density], length) for density, question in questions.items()}
        bests: dict[tuple[str, int], Best] = {}
        drawn: list[dict[str, Any]] = []

        def named(kind: str, **what: Any) -> str:
            return f"{kind} {key(**identity, **what)[:16]}"

        def run(check: Evaluate, density: str, seed: int, kind: str, **how: Any) -> Best:
            name = named(kind, density=density, seed=seed, length=length)
            return study(
                profile, lambda mix: tried[density].solve(mix)[0], check,
                trials=options.trials, lengths=lengths.all, name=name, storage=storage, seed=seed,
                progress=said(f"{kind}, density {density}, seed {seed}"), **how,
            )  # fmt: skip

        for seed in options.seeds:
            check = Validation(model, tokenizer, length, seed=seed)
            for density in DENSITIES:
                bests[density, seed] = run(check, density, seed, "study")
            by_chance = run(check, DENSITIES[0], seed, "random", pruner=PRUNERS["none"],
                            sampler=lambda s: optuna.samplers.RandomSampler(seed=s))  # fmt: skip
            recorded = trials_of(named("random", density=DENSITIES[0], seed=seed, length=length), storage)
            tpe = bests[DENSITIES[0], seed]
            drawn.append({
                "seed": seed, "tpe": tpe.measured.score(tpe.base),
                "best": by_chance.measured.score(by_chance.base),
                "replays": {name: replay(recorded, pruner) for name, pruner in PRUNERS.items() if recorded},
            })  # fmt: skip
        scores = []
        if options.alone:
            check = Validation(model, tokenizer, ALONE[1], texts=2, seed=options.seeds[0])
            scores = alone(profile, check, *ALONE, options.alone, named("alone", seed=options.seeds[0]), storage)
        if options.no_check:
            return 0
        plans = [(f"exact {density}", plan) for density, plan in exact.items()]
        plans += [(f"study {density}, seed {seed}", best.plan) for (density, seed), best in bests.items()]
        check = Validation(model, tokenizer, length, seed=options.unseen)
        tasks = unseen(plans, check, journal, seed=options.unseen, **identity)
        found = compare(
            model, tokenizer, plans, CHECKED, uniform=False, seed=options.unseen, progress=said("evaluation"),
            journal=journal,
        )  # fmt: skip
    except MoaError as error:
        print("error:", error, file=sys.stderr)
        return 2
    studies = [
        {"density": density, "seed": seed, "trials": best.trials, "base": asdict(best.base),
         "measured": asdict(best.measured), "mix": asdict(best.mix)}
        for (density, seed), best in bests.items()
    ]  # fmt: skip
    whole = {
        "run": provenance(model, seed=options.seeds, runs=1) | {"unseen": options.unseen},
        "model": found["model"], "profile": describe(options.profile, profile),
        "validate_length": length, "studies": studies, "unseen": tasks, "rows": found["rows"],
        "random": drawn,
        "alone": {"density": ALONE[0], "length": ALONE[1], "trials": options.alone, "scores": scores},
        "plans": {name: plan.to_dict() for name, plan in plans},
    }  # fmt: skip
    write(options.results, "study", whole, markdown(whole))
    return 0


if __name__ == "__main__":
    sys.exit(main())
