"""Collects a profile: sample by sample, resumable at any moment, sharded over processes.

Every finished sample becomes a file in `<output>.partial/`, named by what it is; the profile is their sum in a fixed
order. So a killed run goes on from the last finished sample, any number of processes may share the work, and all give
the same bytes.
"""

import dataclasses
import hashlib
import json
import random
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file, save
from torch import Tensor, nn
from transformers import PreTrainedModel

from moa.plans.errors import MoaError, ProfileError
from moa.plans.model import ModelInfo
from moa.plans.plan import Plan
from moa.plans.replace import replace
from moa.profiler.calibration import Labels, Loss, Sample, Source
from moa.profiler.chat import has_template
from moa.profiler.estimators import ESTIMATORS
from moa.profiler.fingerprint import fingerprint
from moa.profiler.head import HEAD_CHUNK, logits_of
from moa.profiler.profile import Profile
from moa.profiler.recorder import Recorder, recording
from moa.profiler.retrieval import Copies, scores

SHORTEST = 256
"""Tokens; shorter texts have no cut worth measuring."""


def check_length(model: PreTrainedModel, length: int) -> None:
    """Refuse a length that nothing can be measured at.

    Raises:
        MoaError: Too short, or over the model's maximum.
    """
    longest = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if length < SHORTEST:
        raise MoaError(f"lengths must be at least {SHORTEST} tokens, found {length}")
    if longest is not None and length > longest:
        raise MoaError(f"length {length} is over the model's maximum of {longest} tokens")


@dataclass(frozen=True)
class Settings:
    """What is measured, and how; a change starts a new profile.

    Attributes:
        lengths: Profiled lengths, tokens.
        samples: Samples per source and length.
        seed: Seed of texts and sampled labels.
        sinks: Sink sizes measured, tokens.
        estimator: Estimator of every source, a name in `ESTIMATORS`; None for each source's own.
        labels: Labels of every source, None for each source's own.
        loss: Loss of every source, None for each source's own.
        chat: Whether tasks are rendered with the tokenizer's chat template.
        retrieval_score: Whether copy scores are measured besides, on the samples that ask for facts.
    """

    lengths: tuple[int, ...]
    samples: int = 8
    seed: int = 0
    sinks: tuple[int, ...] = (64,)
    estimator: str | None = None
    labels: Labels | None = None
    loss: Loss | None = None
    chat: bool = True
    retrieval_score: bool = False

    def check(self, model: PreTrainedModel) -> None:
        """Refuse what cannot be measured.

        Raises:
            MoaError: Naming the rule, the value and the valid choices.
        """
        if not self.lengths:
            raise MoaError("give at least one length")
        for length in self.lengths:
            check_length(model, length)
        if self.samples < 1:
            raise MoaError(f"samples must be at least 1, found {self.samples}")
        if any(s < 64 or s % 64 for s in self.sinks) or not self.sinks:
            raise MoaError(f"sinks must be positive multiples of 64, found {list(self.sinks)}")
        if self.estimator is not None and self.estimator not in ESTIMATORS:
            raise MoaError(f"estimator must be one of {', '.join(ESTIMATORS)}, found {self.estimator!r}")


@dataclass(frozen=True)
class Task:
    """One sample to measure."""

    source: Source
    length: int
    index: int

    @property
    def key(self) -> str:
        """File name of the sample's table."""
        return f"{self.source.name}.{self.length}.{self.index}"


def tasks(settings: Settings, sources: Sequence[Source]) -> list[Task]:
    """All samples, shortest length first, in the order in which they are summed.

    With the estimator `effect`, which tasks that ask for facts have, only the shortest length is measured: which groups
    recall does not depend on it. How a plan of some length departs from the dense model, the loss `kl`, does.
    """
    shortest, *longer = sorted(settings.lengths)
    every = [s for s in sources if "kl" in (s.loss, settings.loss) or (settings.estimator or s.estimator) != "effect"]
    pairs = [(s, shortest) for s in sources] + [(s, n) for n in longer for s in every]
    return [Task(s, n, i) for s, n in pairs for i in range(settings.samples)]


def sample_file(output: Path, task: Task) -> Path:
    """Where a finished sample lies until the profile at `output` is written."""
    return _folder(output) / f"{task.key}.safetensors"


def _folder(output: Path) -> Path:
    return Path(f"{output}.partial")


def check_run(
    model: PreTrainedModel, tokenizer: Any, settings: Settings, sources: Sequence[Source], plan: Plan | None = None,
    add: Profile | None = None,
) -> None:  # fmt: skip
    """Refuse what `collect` would refuse of the same arguments, before anything is measured.

    Raises:
        MoaError: Settings that cannot be measured, or not on these sources or under this plan.
        ProfileError: An earlier profile that the new one cannot join.
    """
    settings.check(model)
    if plan is not None:
        plan.check(model)
    todo = tasks(settings, sources)
    if settings.retrieval_score:
        _check_retrieval(todo, tokenizer, settings, plan)
    if plan is None and "kl" in (settings.loss, *(s.loss for s in sources)):
        raise MoaError("the loss kl is the divergence of a plan from the dense model: give --around PLAN")
    if add is not None:
        add.check_plus(_blank(todo, model, settings, plan))


def collect(
    model: PreTrainedModel, tokenizer: Any, settings: Settings, sources: Sequence[Source], output: Path,
    *, plan: Plan | None = None, add: Profile | None = None, rank: int = 0, world: int = 1,
    barrier: Callable[[], None] = lambda: None,
    progress: Callable[[Task, bool], None] = lambda _task, _measured: None,
) -> Profile | None:  # fmt: skip
    """Measure every sample that has no file yet, then sum.

    Args:
        model: The dense model; it is left as it was.
        tokenizer: Its tokenizer.
        settings: What is measured.
        sources: Kinds of calibration text.
        output: The profile's path; finished samples lie in `<output>.partial/` until the profile is written.
        plan: What the model runs under while it is measured; None is dense.
        add: An earlier profile, whose samples join the new ones in the result.
        rank: This process among those that share the work.
        world: How many processes share the work, on one file system.
        barrier: Waits for all of them.
        progress: Called after each of this process's samples: (task, measured now or found finished).

    Returns:
        The profile, also saved at `output`; None on ranks other than 0.

    Raises:
        MoaError: Settings that cannot be measured, or not on these sources or under this plan.
        ProfileError: `add` cannot be joined, or the folder holds another run's samples, or cannot be written.
    """
    check_run(model, tokenizer, settings, sources, plan, add)
    todo = tasks(settings, sources)
    folder = _open_folder(output, settings, sources, model, plan, rank)
    barrier()
    with recording(model, settings.sinks, plan=plan) as recorder:
        for task in todo[rank::world]:
            path = sample_file(output, task)
            measured = not path.exists()
            if measured:
                sample = _draw(task, tokenizer, settings)
                generator = torch.Generator().manual_seed(_seed(settings, task, "labels"))
                labels, loss = settings.labels or task.source.labels, settings.loss or task.source.loss
                recorder.estimator = ESTIMATORS[settings.estimator or task.source.estimator]
                recorder.watch = copies = Copies(sample) if settings.retrieval_score else None
                dense = dense_hidden(model, sample, recorder) if loss == "kl" else None
                run_backward(model, sample, labels, loss, generator, dense)
                table = {"cut": recorder.take().numpy(), "tokens": np.array([len(sample.response)])}
                if copies is not None:
                    table |= {"copied": copies.table(), "copyable": np.array([copies.tokens])}
                replace(path, save(table))
            progress(task, measured)
    barrier()
    if rank:
        return None
    profile = _sum(output, todo, _blank(todo, model, settings, plan))
    if add is not None:
        profile = add.plus(profile)
    profile.save(output)
    shutil.rmtree(folder)
    return profile


def response_hidden(model: PreTrainedModel, sample: Sample) -> Tensor:
    """Last hidden states [response tokens, d] from which the sample's response is predicted."""
    ids = torch.tensor([sample.ids], device=model.device)
    hidden: Tensor = model.base_model(input_ids=ids, use_cache=False).last_hidden_state[0]
    return hidden[torch.tensor(sample.response, device=hidden.device) - 1]


def dense_hidden(model: PreTrainedModel, sample: Sample, recorder: Recorder) -> Tensor:
    """The same of the dense model, whatever plan is recorded under."""
    with recorder.dense(), torch.no_grad():
        return response_hidden(model, sample)


def run_backward(
    model: PreTrainedModel, sample: Sample, labels: Labels, loss: Loss, generator: torch.Generator,
    dense: Tensor | None = None,
) -> None:  # fmt: skip
    """Backward pass of the loss summed over the sample's response tokens; logits are held a chunk at a time.

    Args:
        model: A model within `recording`.
        sample: The sequence.
        labels: `sampled` draws each label from the model's own distribution, `greedy` takes its argmax, `given` the
            text's own token.
        loss: `nll` is -log p(label); `margin` is the best other logit minus the label's, of the tokens that the model
            gets right: what it gets wrong says nothing of where it finds what it knows. `kl` is the divergence from
            the dense model's distribution, and takes no labels.
        generator: Random state of sampled labels, on the CPU.
        dense: The dense model's `response_hidden`, for the loss `kl`.
    """
    hidden = response_hidden(model, sample)
    given = torch.tensor(sample.ids, device=hidden.device)[list(sample.response)]
    cut = hidden.detach().requires_grad_(True)
    for i in range(0, len(cut), HEAD_CHUNK):
        at = slice(i, i + HEAD_CHUNK)
        logits = logits_of(model, cut[at])
        if loss == "kl":
            assert dense is not None
            with torch.no_grad():
                wanted = logits_of(model, dense[at]).log_softmax(-1)
            nn.functional.kl_div(logits.log_softmax(-1), wanted, log_target=True, reduction="sum").backward()
            continue
        label = _label(logits.detach(), given[at].to(logits.device), labels, generator)[:, None]
        wanted = logits.gather(1, label)
        if loss == "nll":
            lost = logits.logsumexp(-1, keepdim=True) - wanted
        else:
            lost = logits.scatter(1, label, -torch.inf).amax(-1, keepdim=True) - wanted
            lost = lost[lost < 0]
        lost.sum().backward()
    hidden.backward(cut.grad)


def _label(logits: Tensor, given: Tensor, labels: Labels, generator: torch.Generator) -> Tensor:
    """Label of each row [rows]."""
    if labels == "given":
        return given
    if labels == "greedy":
        return logits.argmax(-1)
    return torch.multinomial(logits.softmax(-1).cpu(), 1, generator=generator)[:, 0].to(logits.device)


def _draw(task: Task, tokenizer: Any, settings: Settings) -> Sample:
    """The task's sample, of exactly its length."""
    chat = settings.chat and has_template(tokenizer)
    sample = task.source.sample(tokenizer, task.length, random.Random(_seed(settings, task, "text")), chat)
    assert len(sample.ids) == task.length
    return sample


def _seed(settings: Settings, task: Task, use: str) -> int:
    """A seed that belongs to one sample and one use, whichever process runs it."""
    digest = hashlib.sha256(f"{settings.seed}/{task.key}/{use}".encode()).digest()
    return int.from_bytes(digest[:7], "big")


def _check_retrieval(todo: Sequence[Task], tokenizer: Any, settings: Settings, plan: Plan | None) -> None:
    """Refuse copy scores where nothing can be copied, or the model is not whole."""
    if plan is not None:
        raise MoaError("retrieval scores are measured on the dense model: leave out the plan, or the scores")
    if not any(Copies(_draw(task, tokenizer, settings)).tokens for task in todo if task.index == 0):
        names = ", ".join(dict.fromkeys(task.source.name for task in todo))
        raise MoaError(f"retrieval scores need a source that asks for facts: facts, pairs or lines; found {names}")


def _open_folder(
    output: Path,
    settings: Settings,
    sources: Sequence[Source],
    model: PreTrainedModel,
    plan: Plan | None,
    rank: int,
) -> Path:
    """The folder of finished samples, checked to belong to this very run."""
    folder = _folder(output)
    mine = {
        **asdict(settings), "sources": [[s.name, s.digest] for s in sources],
        "model": ModelInfo.from_config(model.config).model_dump(exclude_none=True),
        "weights": fingerprint(model), "dtype": str(model.dtype),
        "around": None if plan is None else plan.to_dict(),
    }  # fmt: skip
    text = json.dumps(mine, sort_keys=True, indent=1)
    note = folder / "settings.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if rank == 0 and not note.exists():
            replace(note, text.encode())
        if note.exists() and note.read_text() != text:
            raise ProfileError(f"{folder} holds samples of another run; delete it or choose another output")
    except OSError as e:
        raise ProfileError(f"cannot write {folder}: {e.strerror}") from e
    return folder


def _blank(todo: Sequence[Task], model: PreTrainedModel, settings: Settings, plan: Plan | None) -> Profile:
    """The profile to come, its tables empty."""
    info = ModelInfo.from_config(model.config)
    cuts = dict.fromkeys((task.source.name, task.length) for task in todo)
    apart = ("lengths", "sinks", "estimator", "retrieval_score")  # said elsewhere in the file
    meta = {name: value for name, value in asdict(settings).items() if name not in apart}
    meta |= {} if plan is None else {"around": plan.to_dict()}
    meta |= {
        "torch": torch.__version__,
        "weights": fingerprint(model),
        "dtype": str(model.dtype),
        "sources": {t.source.name: [t.source.labels, t.source.loss] for t in todo},
    }
    estimators = {t.source.name: settings.estimator or t.source.estimator for t in todo}
    return Profile(
        info, settings.sinks, dict.fromkeys(cuts, np.empty(0, np.float32)), dict.fromkeys(cuts, 0),
        dict.fromkeys(cuts, settings.samples), meta, estimators,
    )  # fmt: skip


def _sum(output: Path, todo: Sequence[Task], blank: Profile) -> Profile:
    """Tables and token counts summed over samples, in order, in float64."""
    cuts: dict[tuple[str, int], Any] = {}
    tokens: dict[tuple[str, int], int] = {}
    copies: list[tuple[Any, int]] = []
    for task in todo:
        part, key = load_file(sample_file(output, task)), (task.source.name, task.length)
        cuts[key] = cuts.get(key, 0) + part["cut"].astype(np.float64)
        tokens[key] = tokens.get(key, 0) + int(part["tokens"][0])
        if "copied" in part:
            copies.append((part["copied"], int(part["copyable"][0])))
    retrieval, copyable = scores(copies, blank.model.kv_heads) if copies else (None, 0)
    return dataclasses.replace(
        blank, cuts={k: v.astype(np.float32) for k, v in cuts.items()}, tokens=tokens, retrieval=retrieval,
        retrieval_tokens=copyable,
    )  # fmt: skip
