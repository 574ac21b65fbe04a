"""What trials against the model add to one exact solve, and what the exact core adds to trials alone.

Three studies (seeds 0, 1, 2) at densities 0.25 and 0.125 of 1,024 to 4,096 tokens (the second 0.2 at 1,024, where sink
and smallest window leave no plan of 0.125), short trials on validation text of 1,024; then each winner beside the
single exact solve on evaluation text and needles at 2,048 and 4,096 tokens, which no study saw. At the first density
the same again with random mixes, none stopped early: what the default sampler is compared with, and, as they are
measured to the end, what pruners are replayed on. And 200 trials of Optuna alone, over the window of every group, at
density 0.25 of 1,024 tokens, scored as a study's trials. Writes study.json and study.md to
`--results`. Stopped at any moment, the same command goes on from study.partial and study-trials.partial; several
processes may take a seed each, then one takes all.

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

from moa.cli.common import Bar, numbers
from moa.evaluation.comparison import Part, compare
from moa.evaluation.journal import Journal, replace_json
from moa.evaluation.validation import Validation
from moa.load import load_model
from moa.plans.errors import MoaError
from moa.plans.plan import FULL, Plan, Rule
from moa.plans.replace import replace, replace_json
from moa.profiler.profile import Profile
from moa.search.budget import parse
from moa.search.choose import choose
from moa.search.lengths import Lengths
from moa.search.objective import Mix
from moa.search.study import MEDIAN, Best, Evaluate, measure, open_study, study

VALIDATED = 1024
"""Tokens of the samples that trials are measured on. Plans have a budget there too: else wide constant windows win."""
CHECKED = Part(2048, {"single": 8, "text": 2}), Part(4096, {"single": 4, "text": 1})
"""How winners are measured."""
BUDGETS = {"0.25": ("0.25",), "0.125": ("0.2@1024", "0.125@2048", "0.125@4096")}
DENSITIES = tuple(BUDGETS)
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


def searched(profile: Profile, budgets: Sequence[str], mix: Mix, lengths: Sequence[int]) -> Plan:
    kept = [parse("density", budget) for budget in budgets]
    return choose(profile, kept, mix=mix, lengths=Lengths(tuple(lengths)))[0]


def alone(
    profile: Profile, evaluate: Evaluate, density: float, length: int, trials: int, name: str, storage: str
) -> list[float]:  # fmt: skip
    """Optuna over the rule of every group; groups drawn last shrink until the budget is kept. The score by trial."""
    kinds = [*(Rule(alpha=64 + window, beta=0) for window in WINDOWS), FULL]
    groups = [(layer, head) for layer in profile.model.ruled_layers for head in range(profile.model.kv_heads)]

    def plan_of(trial: optuna.Trial) -> Plan:
        chosen = {g: trial.suggest_int(f"{g[0]}.{g[1]}", 0, len(WINDOWS)) for g in groups}
        for i in np.random.default_rng(trial.number).permutation(len(groups) * len(WINDOWS)):
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

    *_, base = evaluate(searched(profile, [str(density)], Mix(), [length]))
    raw = open_study(name, storage)
    with Bar("Optuna alone") as bar:
        while (done := len(raw.get_trials(deepcopy=False, states=ENDED))) < trials:
            trial = raw.ask()
            raw.sampler = optuna.samplers.TPESampler(seed=trial.number)
            bar(done + 1, trials, measure(raw, trial, plan_of(trial), evaluate, base))
    return [t.value for t in raw.trials if t.state == ENDED[0] and t.value is not None]


def trials_of(name: str, storage: str) -> list[optuna.trial.FrozenTrial]:
    """A study's trials that were measured to the end, sample by sample; repeated plans, copied, are not among them."""
    return [t for t in open_study(name, storage).trials if t.state == ENDED[0] and t.intermediate_values]


def replay(trials: list[optuna.trial.FrozenTrial], pruner: optuna.pruners.BasePruner) -> tuple[float, float]:
    """The share of samples that a pruner lets be measured, and the best score it lets through."""
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


def markdown(found: dict[str, Any]) -> str:
    about = ", ".join(f"{name} {value}" for name, value in found["environment"].items())
    lines = [
        f"{found['model']['name']}: {about}",
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
    lines += ["", "On evaluation text and needles, which no study saw:", ""]
    lines += ["| tokens | plan | KL | perplexity against dense | needles found |", "|---|---|---|---|---|"]
    for row in found["rows"]:
        text = row["text"]
        lines.append(
            f"| {row['length']:,} | {row['row']} | {text['kl']:.4f} | {text['perplexity_against_dense']:.3f} | "
            f"{row['single']['right']} of {row['single']['questions']} |"
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
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--alone", type=int, default=200, help="trials of Optuna alone; 0: not now")
    parser.add_argument("--no-check", action="store_true", help="studies only")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    try:
        seeds, lengths = numbers("seeds", options.seeds), sorted({VALIDATED, *(part.length for part in CHECKED)})
        profile = Profile.load(options.profile)
        options.results.mkdir(parents=True, exist_ok=True)
        storage = str(options.results / "study-trials.partial")
        model, tokenizer = load_model(options.model, dtype=options.dtype)
        bests: dict[tuple[str, int], Best] = {}
        drawn: list[dict[str, Any]] = []

        def run(check: Evaluate, density: str, seed: int, name: str, **how: Any) -> Best:
            with Bar(f"density {density}, seed {seed}") as bar:
                return study(
                    profile, lambda mix: searched(profile, BUDGETS[density], mix, lengths), check,
                    trials=options.trials, lengths=lengths, name=f"{name}{density} {seed} {options.dtype}",
                    storage=storage, seed=seed, progress=bar, **how,
                )  # fmt: skip

        for seed in seeds:
            check = Validation(model, tokenizer, VALIDATED, seed=seed)
            for density in DENSITIES:
                bests[density, seed] = run(check, density, seed, "")
            by_chance = run(check, DENSITIES[0], seed, "random ", pruner=PRUNERS["none"],
                            sampler=lambda s: optuna.samplers.RandomSampler(seed=s))  # fmt: skip
            recorded = trials_of(f"random {DENSITIES[0]} {seed} {options.dtype}", storage)
            tpe = bests[DENSITIES[0], seed]
            drawn.append({
                "seed": seed, "tpe": tpe.measured.score(tpe.base),
                "best": by_chance.measured.score(by_chance.base),
                "replays": {name: replay(recorded, pruner) for name, pruner in PRUNERS.items() if recorded},
            })  # fmt: skip
        scores = []
        if options.alone:
            check = Validation(model, tokenizer, ALONE[1], texts=2)
            scores = alone(profile, check, *ALONE, options.alone, f"alone {options.dtype}", storage)
        if options.no_check:
            return 0
        plans = [(f"exact {density}", searched(profile, BUDGETS[density], Mix(), lengths)) for density in DENSITIES]
        plans += [(f"study {density}, seed {seed}", best.plan) for (density, seed), best in bests.items()]
        with Bar("checking") as bar:
            found = compare(
                model, tokenizer, plans, CHECKED, uniform=False, progress=bar,
                journal=Journal(options.results / "study.partial"),
            )  # fmt: skip
    except MoaError as error:
        print("error:", error, file=sys.stderr)
        return 2
    found["studies"] = [
        {"density": density, "seed": seed, "trials": best.trials, "base": asdict(best.base),
         "measured": asdict(best.measured), "mix": asdict(best.mix)}
        for (density, seed), best in bests.items()
    ]  # fmt: skip
    found["random"] = drawn
    found["alone"] = {"density": ALONE[0], "length": ALONE[1], "trials": options.alone, "scores": scores}
    replace_json(options.results / "study.json", found)
    replace(options.results / "study.md", markdown(found).encode())
    print(markdown(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
