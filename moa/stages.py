"""Run the stages of `moa.compress`: calibrate, costs, profile, search, front and evaluation."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import ceil
from typing import Any

from moa.alternatives import alternatives
from moa.bench import timing
from moa.benching import bench_plan
from moa.diagnosing import diagnose
from moa.evaluating import evaluate_plans
from moa.feasibility import check_budgets
from moa.finding import find_plan
from moa.hf.known import remember
from moa.hf.limits import SHORTEST
from moa.measuring import measure_costs
from moa.outcome import outcome
from moa.pacing import Pace, Whole, evaluation_counts, pass_pace, profile_seconds, profile_sizes
from moa.plans.config import longest_text
from moa.plans.errors import MoaError
from moa.plans.model import ModelInfo
from moa.plans.plan import Plan
from moa.plans.progress import Note, Progress
from moa.plans.replace import read_json, replace_json
from moa.profiler.settings import no_reads
from moa.profiling import profile_model
from moa.reporting import write_report
from moa.resuming import Chosen, Job, Run, Solved, Time, compress_folder
from moa.search.budget import FORMS, Budget
from moa.search.cost import Costs, Work
from moa.search.fit import probes, reading_probes
from moa.search.question import Figures, Question
from moa.version import __version__

SAMPLES = 4
"""Samples per source and length that are aimed at, as many as `moa.profile_model` takes by default."""
SHARES = {"costs": 0.2, "profile": 0.5, "search": 0.02, "front": 0.02}
"""Largest part of the minutes that each stage is given; the evaluation has the rest."""
STEPS_BEHIND = timing.STEPS + 1
"""Tokens of decode steps that are run behind a text, all of which the model must take."""
FRONT = 15.0
"""Seconds that a front may take in any case."""
ROUNDS, WORKS, STEPS = 8, 3, 2
"""Largest number of rounds in which costs are measured, and what they are measured of at each length, at about the
same time each: decode steps of one and of four sequences, and a prefill; of plans that read little, the steps."""


@dataclass(frozen=True)
class Stages:
    """What is run one after the other; each keeps what it finds in the folder and is skipped where that is there."""

    network: Any
    tokenizer: Any
    budgets: Mapping[str, Figures]
    limits: tuple[Budget, ...]
    max_length: int | None
    seed: int
    room: float  # seconds for everything
    job: Job
    progress: Progress
    note: Note

    def all(self, aimed: Sequence[int], fixed: bool) -> tuple[Plan, dict[str, Any]]:
        """Run those that are left and return plan and figures; with `fixed` all of the lengths are measured at."""
        chosen, folder = self.job.state.profile or self._calibrate(aimed, fixed), self.job.folder
        lengths = chosen.lengths
        timed = any(FORMS[limit.kind].times for limit in self.limits)
        parts = {
            "costs": SHARES["costs"] * self.room * timed, "profile": chosen.seconds,
            "search": SHARES["search"] * self.room, "front": SHARES["front"] * self.room,
        }  # fmt: skip
        parts["evaluation"] = max(self.room - sum(parts.values()), 0.2 * self.room)
        whole = Whole(parts, self.progress)
        costs = self._costs(lengths, Pace(*chosen.pace), parts["costs"], whole) if timed else None
        longest = longest_text(self.network.config)
        check_budgets(
            self.budgets, ModelInfo.of(self.network), lengths, longest, self.max_length, self.network.dtype, costs
        )
        if self.job.state.profile is None:  # nothing is refused from here on, so the folder is made
            self._announce(chosen, aimed)
            self.job.keep(profile=chosen)
        if costs is not None:
            replace_json(folder / "costs.json", costs.model_dump(mode="json"))
        if not (folder / "profile.safetensors").exists():
            with self.job.timed("profile"):
                profile_model(
                    self.pair, folder / "profile.safetensors", lengths=lengths, samples=chosen.samples,
                    reads=self.reads, seed=self.seed, progress=whole.stage("profile"),
                    note=lambda line: self.note(f"profile: {line}"),
                )  # fmt: skip
        plan, solved = self._search(costs, whole)
        self._front(plan, solved, costs, whole)
        try:
            remember(plan, self.network)
        except (OSError, MoaError) as error:
            self.note(f"moa.apply(model, 'auto') will not find the plan: {error}")
        evaluation = self._evaluation(plan, lengths, costs, whole)
        prospect = diagnose(self.pair, plan).prospect
        assert prospect is not None  # a model was given
        figures = outcome(plan, prospect, evaluation, solved, costs) | self.job.state.model_dump(mode="json")
        replace_json(folder / "figures.json", figures)
        write_report(folder)
        whole.stage("evaluation")(1, 1, "all done")
        return plan, figures

    @property
    def reads(self) -> bool:
        """Whether rules may read less than they keep: where what steps read or take is limited."""
        limited = any(limit.kind == "read" or FORMS[limit.kind].times == "decode" for limit in self.limits)
        return limited and not no_reads(ModelInfo.of(self.network))

    @property
    def pair(self) -> tuple[Any, Any]:
        """The model as public functions take it."""
        return self.network, self.tokenizer

    def _calibrate(self, aimed: Sequence[int], fixed: bool) -> Chosen:
        """Return the lengths and number of samples of the profile, which a measured pace lets fit."""
        with self.job.timed("calibrate"):
            pace = pass_pace(self.network, longest_text(self.network.config), self.reads)
        room = SHARES["profile"] * self.room
        sizes = [(*size, profile_seconds(pace, *size, self.reads)) for size in profile_sizes(aimed, SAMPLES, fixed)]
        lengths, samples, seconds = next((size for size in sizes if size[2] <= room), sizes[-1])
        return Chosen(lengths=lengths, samples=samples, seconds=round(seconds, 1), pace=(pace.linear, pace.square))

    def _announce(self, chosen: Chosen, aimed: Sequence[int]) -> None:
        """Say what is profiled, and what more minutes would do."""
        named = ", ".join(f"{n:,}" for n in chosen.lengths)
        minutes = f"about {chosen.seconds / 60:.1f} minutes"
        samples = "1 sample" if chosen.samples == 1 else f"{chosen.samples} samples"
        self.note(f"profile: {samples} per source at {named} tokens, {minutes}")
        if (chosen.lengths, chosen.samples) != (tuple(aimed), SAMPLES):
            seconds = profile_seconds(Pace(*chosen.pace), aimed, SAMPLES, self.reads)
            wanted = ceil(seconds / SHARES["profile"] / 60)
            self.note(f"profile: --minutes {wanted} would do for {SAMPLES} samples of up to {aimed[-1]:,} tokens")

    def _costs(self, lengths: Sequence[int], pace: Pace, room: float, whole: Whole) -> Costs:
        """Return costs, measured at two lengths in as many rounds as there is time for unless the folder has them."""
        path = self.job.folder / "costs.json"
        if path.exists():
            return Costs.load(path)
        ends = sorted({max(SHORTEST, lengths[0] // 2) if len(lengths) == 1 else lengths[0], lengths[-1]})
        each = sum(map(pace, ends)) / 3  # a forward pass, which a third of a profile's is
        plans = probes(ModelInfo.of(self.network), ends[-1])
        runs = WORKS * len(plans) + STEPS * len(reading_probes(plans)) * self.reads
        until = compress_folder(self.job.state.asked)  # the job's own is made once nothing is refused any more
        until.mkdir(parents=True, exist_ok=True)
        with self.job.timed("costs"):
            return measure_costs(
                self.pair, lengths=ends, rounds=min(max(int(room / (runs * each)), 1), ROUNDS), reads=self.reads,
                output=until / path.name, progress=whole.stage("costs"),
            )  # fmt: skip

    def _search(self, costs: Costs | None, whole: Whole) -> tuple[Plan, Solved]:
        """Return the plan, and what the search said of it."""
        path, solved = self.job.folder / "plan.yaml", self.job.state.search
        if solved is None or not path.exists():
            whole.stage("search")(0, 1, "rules")
            with self.job.timed("search"):
                found = find_plan(
                    self.job.folder / "profile.safetensors", self.budgets, costs=costs, max_length=self.max_length,
                    measure=None if costs is None else self.pair,
                )  # fmt: skip
                found.plan.save(path)
            times = tuple(
                Time(**asdict(each.work), predicted=each.predicted, measured=each.measured) for each in found.times
            )
            solved = Solved(harm=found.solution.value, gap=found.solution.gap, times=times)
            self.job.keep(search=solved)
            self.note(f"search: {found.question.told(found.solution)}")
        return Plan.load(path), solved

    def _front(self, plan: Plan, solved: Solved, costs: Costs | None, whole: Whole) -> None:
        """Keep what other budgets would give, unless that is known."""
        if self.job.state.front is not None:
            return
        whole.stage("front")(0, 1, "other budgets")
        room = max(SHARES["front"] * self.room, FRONT)
        with self.job.timed("front"):
            question = Question.of(
                self.job.folder / "profile.safetensors", self.budgets, __version__, costs=costs,
                max_length=self.max_length,
            )  # fmt: skip
            found = alternatives(question, plan, solved.harm, room, self.note)
        self.job.keep(front=found)

    def _runs(self, plan: Plan, length: int, costs: Costs | None) -> tuple[Run, ...]:
        """Return the times of a prefill and of decode steps, dense and under the plan."""
        longest = longest_text(self.network.config)
        length = length if longest is None else min(length, longest - STEPS_BEHIND)
        [found] = bench_plan(self.pair, plan, lengths=[length], repeats=1)["lengths"]
        runs = []
        for work, times in ((Work("prefill", length), found["prefill"]), (Work("decode", length), found["decode"][0])):
            dense, mine = (times[way] and 1e3 * times[way]["median"] for way in ("dense", "plan"))
            predicted = costs.predict(plan, work) if costs is not None and work.kind in costs.terms else None
            runs.append(Run(**asdict(work), dense=dense, plan=mine, predicted=predicted))
        return tuple(runs)

    def _evaluation(self, plan: Plan, lengths: Sequence[int], costs: Costs | None, whole: Whole) -> dict[str, Any]:
        """Return the result of an evaluation of the dense model, the plan and a uniform window, once all are timed."""
        path, counts = self.job.folder / "evaluation.json", self.job.state.evaluation
        if not path.exists():
            stage = whole.stage("evaluation")
            with self.job.timed("evaluation"):
                if self.job.state.runs is None:
                    stage(0, 1, "times")
                    self.job.keep(runs=self._runs(plan, lengths[-1], costs))
                if counts is None:
                    stage(0, 1, "pace")
                    counts = evaluation_counts(self.pair, plan, lengths, self.room - self.job.spent)
                    self.job.keep(evaluation=counts)
                evaluate_plans(
                    self.pair, {"plan": plan}, lengths=lengths, tasks=counts, seed=self.seed, output=path,
                    progress=stage, note=self.note,
                )  # fmt: skip
        found: dict[str, Any] = read_json(path)
        return found
