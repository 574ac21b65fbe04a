"""Provide `moa.compress`, which goes from a model to a measured plan in the minutes that the user gives."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf
from os import PathLike
from pathlib import Path
from typing import Any

from moa.diagnosing import diagnose
from moa.evaluation.samples import Part
from moa.evaluation.tasks.needles import check_answers
from moa.feasibility import aimed_lengths, check_budgets
from moa.hf.fingerprint import fingerprint
from moa.hf.load import Given, check_options, loaded
from moa.plans.config import longest_text
from moa.plans.errors import MoaError, Unsupported, brief
from moa.plans.model import ModelInfo
from moa.plans.plan import Plan
from moa.plans.progress import Note, Progress, silent
from moa.resuming import Job, check_folder, compress_folder
from moa.search.question import Figures
from moa.stages import Stages
from moa.version import __version__


@dataclass(frozen=True)
class Compressed:
    """The result of `compress`; it stands for its plan's file wherever a function takes one, as `moa.apply` does.

    Attributes:
        plan: The plan, which is in `folder / "plan.yaml"` too.
        figures: All figures in JSON types, as in `folder / "figures.json"`; `docs/compress.md` describes them.
        folder: The folder of everything.
    """

    plan: Plan
    figures: dict[str, Any]
    folder: Path

    def __fspath__(self) -> str:
        """Return the path of the plan's file."""
        return str(self.folder / "plan.yaml")


def compress(
    model: Any, tokenizer: Any = None, *, output: str | PathLike[str] | None = None,
    budget: float | Mapping[str, Figures] = 0.25, minutes: float = 15.0, lengths: Sequence[int] | None = None,
    max_length: int | None = None, dtype: str = "auto", seed: int = 0, progress: Progress = silent, note: Note = silent,
) -> Compressed:  # fmt: skip
    """Profile a model, search a plan for it and evaluate the plan, all of it sized to fit some minutes.

    If it is stopped, the same call goes on where it was. The profile is as large as `moa.profile_model` makes it by
    default, or as half of the minutes allow by the pace of two short passes; the evaluation takes what is left. On a
    slow machine the least of both may take longer.

    Args:
        model: The model: its name, or as `moa.load_model` loaded it.
        tokenizer: The tokenizer of a loaded model; left out with a name, or with the pair of both.
        output: The folder for everything, made if it is not there; None for one of this question in the user's cache
            folder, which the result names.
        budget: Largest density at the longest text that the plan is for, or budgets as `moa.find_plan` takes them. For
            budgets in milliseconds, costs are measured first. Within budgets of what steps read or take, rules may read
            less than they keep, if the model can.
        minutes: What all of it may take.
        lengths: Lengths to profile and evaluate at, tokens; None for 1,024, 2,048 and 4,096, as far as model and
            minutes allow.
        max_length: The longest text that the plan is for, tokens; None as for `moa.find_plan`.
        dtype: Dtype to load a named model in, as for `moa.load_model`.
        seed: Seed of the calibration texts and of the evaluation's samples.
        progress: Called with tenths of a second: those done and those expected in all.
        note: Called with lines about what was found and decided on the way.

    Returns:
        The plan, its folder and every figure.

    Raises:
        BudgetInfeasible: No plan keeps the budgets.
        MoaError: An option is invalid, or the folder holds something else.
        Unsupported: The model takes no rules, or no back-end computes right here.
    """
    given, folder = _given(model, tokenizer), None if output is None else Path(output)
    if not 0 < minutes < inf:
        raise MoaError(f"minutes must be over 0, found {minutes:g}")
    if folder is not None:
        check_folder(folder)
    budgets = {"density": budget} if isinstance(budget, int | float) else dict(budget)
    config = check_options(given, {}, lengths=lengths or ()).config
    aimed = aimed_lengths(lengths, longest_text(config))
    stored = given[0].dtype if isinstance(given, tuple) else dtype
    limits = check_budgets(budgets, ModelInfo.of(config), aimed, longest_text(config), max_length, stored)
    if not (backend := diagnose().backend).right:
        raise Unsupported(f"no back-end computes right here ({backend.why or backend.name}); moa doctor says more")
    network, tokenizer = loaded(given, dtype=dtype)
    for sample in (sample for n in aimed for sample in Part(n, {"text": 1, "four": 1}).samples(tokenizer, seed)):
        if sample.task == "four":  # what cannot be asked is refused before work that takes long
            check_answers(network, sample.content)
    asked = {
        "moa": __version__, "weights": fingerprint(network), "dtype": str(network.dtype).removeprefix("torch."),
        "device": network.device.type, "budgets": budgets, "minutes": minutes, "lengths": lengths and aimed,
        "max_length": max_length, "seed": seed,
    }  # fmt: skip
    if folder is None:
        folder = compress_folder(asked)
        folder.parent.mkdir(parents=True, exist_ok=True)
    named = str(network.config.name_or_path if isinstance(given, tuple) else given)
    job = Job(folder, asked, named)
    stages = Stages(network, tokenizer, budgets, limits, max_length, seed, 60 * minutes, job, progress, note)
    return Compressed(*stages.all(aimed, fixed=lengths is not None), folder)


def _given(model: Any, tokenizer: Any) -> Given:
    """Return the model as public functions take it.

    Raises:
        MoaError: A loaded model lacks its tokenizer, or something else is given in its place.
    """
    whole = isinstance(model, str | Path | tuple)
    if isinstance(tokenizer, str | PathLike):
        raise MoaError(
            f"the second value is a loaded model's tokenizer; name a folder with output={brief(str(tokenizer))}"
        )
    if whole and tokenizer is not None:
        raise MoaError("a tokenizer goes with a loaded model; a name or a pair has its own")
    if not whole and tokenizer is None:
        raise MoaError("a loaded model needs its tokenizer: moa.compress(model, tokenizer)")
    return model if whole else (model, tokenizer)
