"""Measure a round of `moa.refine_plan`: the slopes of the divergence from the dense model around a plan."""

import json
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

from moa.hf.fingerprint import fingerprint
from moa.outputs import writable
from moa.plans.errors import MoaError
from moa.plans.plan import Plan
from moa.plans.progress import Progress
from moa.profiler.calibration import Source
from moa.profiler.collect import collect
from moa.profiler.profile import Profile, around
from moa.profiler.settings import Settings, tasks
from moa.profiler.sources import SOURCES
from moa.search.lengths import Lengths
from moa.search.objective import Mix


@dataclass(frozen=True)
class Round:
    """The samples and the file of one round, which profiles the model under the plan of the round before.

    Attributes:
        settings: The settings of its profile.
        sources: The sources of its samples.
        path: The file of its profile.
        start: Special tokens that the samples begin with, None for none.
    """

    settings: Settings
    sources: list[Source]
    path: Path
    start: list[int] | None

    @classmethod
    def of(
        cls, number: int, profile: Profile, mix: Mix, lengths: Lengths, output: Path, *, samples: int, seed: int
    ) -> "Round":
        """Return the round of that number, for a search by `profile` whose plan goes to `output`.

        Raises:
            MoaError: A source cannot be drawn again, or no source of text counts.
        """
        if unknown := [name for name in profile.sources if name not in SOURCES]:
            raise MoaError(f"--rounds draws again from {', '.join(SOURCES)}; this profile has {', '.join(unknown)} too")
        text = [name for name in profile.sources if not SOURCES[name].recalls]
        there = [n for n in lengths.profiled if any((name, n) in profile.cuts for name in text)]
        if not there:
            raise MoaError("--rounds measures text, at the plan's lengths; this profile has none there")
        if not (text := [name for name in text if mix.sources.get(name, 1.0)]):
            raise MoaError("--rounds measures text: its --source-weight must be over 0")
        settings = Settings(
            tuple(there), samples, seed + number, profile.variants, "effect", loss="kl",
            chat=profile.meta.get("chat", True),
        )  # fmt: skip
        path = output.with_suffix(f".round-{number}.safetensors")
        return cls(settings, [SOURCES[name] for name in text], path, profile.meta.get("start"))

    def check(self, plan: Plan | None = None, model: Any = None) -> None:
        """Refuse to replace a file that this round of `model` around `plan` did not write; None means any of them."""
        writable(self.path, "profile of this round", partial(self._check, plan, model))

    def measure(self, plan: Plan, model: Any, tokenizer: Any, progress: Progress, what: str) -> Profile:
        """Return the slopes around `plan`, read from the file where an earlier run measured them."""
        self.check(plan, model)
        if not self.path.exists():
            work = [task.length for task in tasks(self.settings, self.sources)]
            done = accumulate(work)
            collect(
                model, tokenizer, self.settings, self.sources, self.path, plan=plan,
                progress=lambda task, _measured: progress(next(done), sum(work), f"{what}: {task.key}"),
            )  # fmt: skip
        return Profile.load(self.path)

    def _check(self, plan: Plan | None, model: Any, path: Path) -> None:
        found, settings = Profile.load(path), self.settings
        said = {name: getattr(settings, name) for name in ("seed", "samples", "chat", "labels", "loss")}
        said["start"] = self.start
        if model is not None:
            said |= {"weights": fingerprint(model), "dtype": str(model.dtype)}
        same = (
            set(found.variants) >= set(settings.variants)  # older rounds measured first keys besides
            and set(found.cuts) == {(s.name, n) for s in self.sources for n in settings.lengths}
            and set(found.estimators.values()) == {settings.estimator}
            and {name: found.meta.get(name) for name in said} == json.loads(json.dumps(said))
            and (plan is None or around(found.meta) == plan.fingerprint())
        )
        if not same:
            raise MoaError("it has other settings, or is of another model or around another plan")
