"""Collect a profile sample by sample; runs resume at any moment, and processes share the samples.

Every finished sample becomes a file in `<output>.partial/`, named by source, length and number; the profile is their
sum in a fixed order. So a killed run continues after the last finished sample, any number of processes may share the
work, and all give the same bytes.
"""

import dataclasses
import hashlib
import json
import logging
import os
import random
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from moa.hf.chat import has_template
from moa.hf.environment import environment
from moa.hf.fingerprint import fingerprint
from moa.hf.tokens import start
from moa.plans.config import longest_text
from moa.plans.errors import MoaError, ProfileError
from moa.plans.model import ModelInfo
from moa.plans.plan import Plan
from moa.plans.replace import replace
from moa.profiler.backward import dense_hidden, run_backward
from moa.profiler.calibration import Sample, Source
from moa.profiler.estimators import ESTIMATORS, fisher
from moa.profiler.profile import Profile
from moa.profiler.read_tables import ReadTables
from moa.profiler.reads import SHARES, Effects
from moa.profiler.recorder import recording
from moa.profiler.retrieval import Copies, scores
from moa.profiler.sealed import seal, unseal
from moa.profiler.settings import Settings, Task, tasks
from moa.profiler.sources import SOURCES

NOTE = "settings.json"
"""The file beside the finished samples that says what they are samples of."""


def sample_file(output: Path, task: Task) -> Path:
    """Return the path of a finished sample, where it stays until the profile at `output` is written."""
    return _folder(output) / f"{task.key}.safetensors"


def _folder(output: Path) -> Path:
    return Path(f"{output}.partial")


def check_run(
    model: PreTrainedModel, tokenizer: Any, settings: Settings, sources: Sequence[Source], output: Path,
    plan: Plan | None = None, add: Profile | None = None,
) -> None:  # fmt: skip
    """Refuse what `collect` would refuse for the same arguments, before anything is measured.

    Raises:
        MoaError: The settings cannot be measured, or not on these sources or under this plan.
        ProfileError: The new profile cannot be added to the earlier one, or another run's samples lie beside `output`.
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
        add.check_plus(_blank(todo, model, tokenizer, settings, plan))
    _refuse_other_run(_folder(output), _described(settings, sources, model, tokenizer, plan))
    for task in todo:
        if task.index == 0:
            _draw(task, tokenizer, settings)  # refuses a length that is too short for the source's questions


def collect(
    model: PreTrainedModel, tokenizer: Any, settings: Settings, sources: Sequence[Source], output: Path,
    *, plan: Plan | None = None, add: Profile | None = None, rank: int = 0, world: int = 1,
    barrier: Callable[[], None] = lambda: None,
    progress: Callable[[Task, bool], None] = lambda _task, _measured: None,
) -> Profile | None:  # fmt: skip
    """Measure every sample that has no file yet, then sum all samples to the profile.

    Args:
        model: The dense model; it is left as it was.
        tokenizer: Its tokenizer.
        settings: The settings of the profile.
        sources: Kinds of calibration text.
        output: The profile's path; finished samples lie in `<output>.partial/` until the profile is written.
        plan: The plan that the model runs under while it is measured; None is dense.
        add: An earlier profile, whose samples join the new ones in the result.
        rank: Number of this process among those that share the work.
        world: Number of processes that share the work, on one file system.
        barrier: Waits for all of them.
        progress: Called after each of this process's samples: (task, measured now or found finished).

    Returns:
        The profile, also saved at `output`; None on ranks other than 0.

    Raises:
        MoaError: The settings cannot be measured, or not on these sources or under this plan.
        ProfileError: `add` cannot be joined, or the folder holds another run's samples, or cannot be written.
    """
    check_run(model, tokenizer, settings, sources, output, plan, add)
    todo = tasks(settings, sources)
    folder = _open_folder(output, settings, sources, model, tokenizer, plan, rank)
    barrier()
    with recording(model, settings.variants, plan=plan) as recorder:
        for task in todo[rank::world]:
            path = sample_file(output, task)
            measured = not _finished(path)
            if measured:
                sample = _draw(task, tokenizer, settings)
                generator = torch.Generator().manual_seed(_seed(settings, task, "labels"))
                labels, loss = settings.labels or task.source.labels, settings.loss or task.source.loss
                recorder.estimator = ESTIMATORS[settings.estimator or task.source.estimator]
                recorder.pulled = read = Effects(sample, settings.variants) if settings.reads else None
                recorder.watch = copies = Copies(sample) if settings.retrieval_score else None
                dense = dense_hidden(model, sample, recorder) if loss == "kl" else None
                run_backward(model, sample, labels, loss, generator, dense)
                table = {"cut": recorder.take().numpy(), "tokens": np.array([len(sample.response)])}
                if copies is not None:
                    table |= {"copied": copies.table(recorder.sources), "copyable": np.array([copies.tokens])}
                if read is not None:
                    table |= {"read": read.table(squared=recorder.estimator is fisher), "rows": np.array([read.rows])}
                replace(path, seal(table, {}))
            progress(task, measured)
    barrier()
    if rank:
        return None
    profile = _sum(output, todo, _blank(todo, model, tokenizer, settings, plan))
    if add is not None:
        profile = add.plus(profile)
    profile.save(output)
    shutil.rmtree(folder)
    return profile


def _finished(path: Path) -> bool:
    """Return whether a sample is there and whole; a damaged file is renamed, and its sample measured again."""
    if not path.exists():
        return False
    try:
        unseal(path)
    except ProfileError:
        aside = path.with_suffix(".damaged")
        os.replace(path, aside)
        logging.getLogger("moa").warning(f"{path}: damaged, so it was set aside as {aside} and is measured again")
        return False
    return True


def _draw(task: Task, tokenizer: Any, settings: Settings) -> Sample:
    """Return the task's sample, of exactly its length."""
    chat = settings.chat and has_template(tokenizer)
    sample = task.source.sample(tokenizer, task.length, random.Random(_seed(settings, task, "text")), chat)
    assert len(sample.ids) == task.length
    return sample


def _seed(settings: Settings, task: Task, use: str) -> int:
    """Return the seed for one use of one sample, the same in whichever process runs it."""
    digest = hashlib.sha256(f"{settings.seed}/{task.key}/{use}".encode()).digest()
    return int.from_bytes(digest[:7], "big")


def _check_retrieval(todo: Sequence[Task], tokenizer: Any, settings: Settings, plan: Plan | None) -> None:
    """Refuse copy scores where no source asks for facts, or the model is not dense."""
    if plan is not None:
        raise MoaError("retrieval scores are measured on the dense model: leave out the plan, or the scores")
    if not any(Copies(_draw(task, tokenizer, settings)).tokens for task in todo if task.index == 0):
        names = ", ".join(dict.fromkeys(task.source.name for task in todo))
        asking = ", ".join(name for name, source in SOURCES.items() if source.recalls)
        raise MoaError(f"retrieval scores need a source that asks for facts, of {asking}; found {names}")


def _open_folder(
    output: Path,
    settings: Settings,
    sources: Sequence[Source],
    model: PreTrainedModel,
    tokenizer: Any,
    plan: Plan | None,
    rank: int,
) -> Path:
    """Return the folder of finished samples, checked to belong to this very run."""
    folder = _folder(output)
    text = _described(settings, sources, model, tokenizer, plan)
    note = folder / NOTE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if rank == 0 and not note.exists():
            replace(note, text)
    except OSError as e:
        raise ProfileError(f"cannot write {folder}: {e.strerror}") from e
    _refuse_other_run(folder, text)
    return folder


def _refuse_other_run(folder: Path, text: bytes) -> None:
    note = folder / NOTE
    try:
        found = note.read_bytes() if note.exists() else text
    except OSError as e:
        raise ProfileError(f"cannot read {note}: {e.strerror}") from e
    if not _is_json(found):
        raise ProfileError(f"{note} is damaged, so nobody knows of which run {folder} is; delete the folder")
    if found != text:
        raise ProfileError(f"{folder} holds samples of another run; delete it or choose another output")


def _described(
    settings: Settings, sources: Sequence[Source], model: PreTrainedModel, tokenizer: Any, plan: Plan | None
) -> bytes:
    """Return all that samples depend on."""
    mine = {
        **asdict(settings), "sources": [[s.name, s.digest] for s in sources],
        "model": ModelInfo.from_config(model.config).model_dump(exclude_none=True),
        "weights": fingerprint(model), "dtype": str(model.dtype),
        "around": None if plan is None else plan.fingerprint(), **_begun(tokenizer),
    }  # fmt: skip
    return json.dumps(mine, sort_keys=True, indent=1).encode()


def _is_json(text: bytes) -> bool:
    try:
        return json.loads(text) is not None
    except (ValueError, RecursionError):
        return False


def _begun(tokenizer: Any) -> dict[str, list[int]]:
    """Return the entry that a run keeps of the tokens that its samples begin with, if there are any."""
    return {"start": first} if (first := start(tokenizer)) else {}


def _blank(
    todo: Sequence[Task], model: PreTrainedModel, tokenizer: Any, settings: Settings, plan: Plan | None
) -> Profile:
    """Return the profile to come, with empty tables."""
    info = ModelInfo.from_config(model.config)
    cuts = dict.fromkeys((task.source.name, task.length) for task in todo)
    apart = ("lengths", "variants", "estimator", "retrieval_score", "reads")  # said elsewhere in the file
    meta = {name: value for name, value in asdict(settings).items() if name not in apart}
    meta |= {} if plan is None else {"around": plan.to_dict()}
    digests = {t.source.name: t.source.digest for t in todo if t.source.digest}
    meta |= ({"documents": digests} if digests else {}) | _begun(tokenizer)
    meta |= {
        "environment": environment(device=model.device),
        "weights": fingerprint(model),
        "dtype": str(model.dtype),
        "max_length": longest_text(model.config),
        "sources": {t.source.name: [t.source.labels, t.source.loss] for t in todo},
    }
    estimators = {t.source.name: settings.estimator or t.source.estimator for t in todo}
    return Profile(
        info, settings.variants, dict.fromkeys(cuts, np.empty(0, np.float32)), dict.fromkeys(cuts, 0),
        dict.fromkeys(cuts, settings.samples), meta, estimators,
    )  # fmt: skip


def _sum(output: Path, todo: Sequence[Task], blank: Profile) -> Profile:
    """Return tables and token counts summed over samples, in order, in float64."""
    cuts: dict[tuple[str, int], Any] = {}
    tokens: dict[tuple[str, int], int] = {}
    reads: dict[tuple[str, int], Any] = {}
    rows: dict[tuple[str, int], int] = {}
    copies: list[tuple[Any, int]] = []
    for task in todo:
        (part, _), key = unseal(sample_file(output, task)), (task.source.name, task.length)
        cuts[key] = cuts.get(key, 0) + part["cut"].astype(np.float64)
        tokens[key] = tokens.get(key, 0) + int(part["tokens"][0])
        if "read" in part:
            reads[key] = reads.get(key, 0) + part["read"].astype(np.float64)
            rows[key] = rows.get(key, 0) + int(part["rows"][0])
        if "copied" in part:
            copies.append((part["copied"], int(part["copyable"][0])))
    retrieval, copyable = scores(copies, blank.model.kv_heads) if copies else (None, 0)
    read = ReadTables(SHARES, {k: v.astype(np.float32) for k, v in reads.items()}, rows) if reads else None
    return dataclasses.replace(
        blank, cuts={k: v.astype(np.float32) for k, v in cuts.items()}, tokens=tokens, retrieval=retrieval,
        retrieval_tokens=copyable, reads=read,
    )  # fmt: skip
