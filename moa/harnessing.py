"""Provide `moa.evaluate_harness`: tasks of the lm-evaluation-harness, dense and under plans."""

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from moa.evaluating import Source, named_plans
from moa.evaluation.rows import Row
from moa.hf.environment import environment
from moa.hf.load import Given, check_options, loaded
from moa.kernels import backend as backends
from moa.outputs import results, writable
from moa.plans.errors import MoaError, brief, shortened
from moa.plans.plan import Plan
from moa.plans.progress import Progress, silent
from moa.plans.replace import replace_json
from moa.plans.span import LONGEST

STDERR = "_stderr"
"""In the harness's name of a metric's standard error."""


def evaluate_harness(
    model: Given, plans: Mapping[str, Plan | Source] | Sequence[Source], tasks: Sequence[str], *,
    folder: str | PathLike[str] | None = None, limit: int | None = None, lengths: Sequence[int] | None = None,
    backend: str | None = None, dtype: str = "auto", output: str | PathLike[str] | None = None,
    progress: Progress = silent,
) -> dict[str, Any]:  # fmt: skip
    """Run tasks of the lm-evaluation-harness (`lm_eval`) on the dense model and under each plan.

    The harness's own `HFLM` is handed the loaded model, under the plan for as long as the tasks run.

    Args:
        model: The model: its name, or what `moa.load_model` returned; it is left as it was.
        plans: As for `moa.evaluate_plans`.
        tasks: Tasks or groups of the harness, by name.
        folder: Folder with more tasks, in the harness's YAML.
        limit: Samples of each task at most; None for all.
        lengths: Lengths in tokens of tasks that are written to a length, as RULER's; None for the harness's own, 4,096.
        backend: Back-end of the plans, None for the device's own.
        dtype: Dtype to load a named model in, as for `moa.load_model`.
        output: Results to write (.json).
        progress: Called after each row.

    Returns:
        JSON types: `model`, `environment`, `tasks` (versions) and `rows`, each with the metrics of every task.

    Raises:
        MoaError: `lm_eval` is not installed, or it cannot run the tasks.
        ModelMismatch: A plan was made for another model.
    """
    try:
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager
    except ImportError:
        raise MoaError("tasks of the harness need lm_eval: pip install 'moa-attention[harness]'") from None
    if limit is not None and not 1 <= limit <= LONGEST:
        raise MoaError(f"limit must be from 1 to {LONGEST}, found {limit}")
    if lengths is not None and not (lengths and all(1 <= n <= LONGEST for n in lengths)):
        raise MoaError(f"lengths must be one or more numbers from 1 to {LONGEST}, found {brief(list(lengths))}")
    if folder is not None and not Path(folder).is_dir():
        raise MoaError(f"no folder of tasks at {folder}")
    path = None if output is None else Path(output)
    if path is not None:
        writable(path, "result of `moa eval --harness`", results("tasks", "rows"))
    include = None if folder is None else str(folder)
    known = TaskManager(include_path=include)
    if unknown := [name for name in tasks if not known.match_tasks([name])]:
        raise MoaError(f"lm_eval has no task {', '.join(map(brief, unknown))}; lm-eval ls tasks lists all")
    named, files = named_plans(plans)
    check_options(model, files, lengths=lengths or (), backend=backend)
    network, tokenizer = loaded(model, dtype=dtype)
    found: list[dict[str, Any]] = []
    versions: dict[str, Any] = {}
    rows = [Row("dense", None), *(Row(name, plan, backend) for name, plan in named)]
    with TemporaryDirectory() as place:
        tokenizer.save_pretrained(place)  # tasks that write their own texts load it by name
        about_texts = {"tokenizer": place} | ({} if lengths is None else {"max_seq_lengths": list(lengths)})
        known = TaskManager(include_path=include, metadata=about_texts)
        for i, row in enumerate(rows):
            progress(i, len(rows), row.name)
            with row.variant.on(network):
                try:
                    said = simple_evaluate(
                        HFLM(pretrained=network, tokenizer=tokenizer, batch_size=1), tasks=list(tasks), limit=limit,
                        task_manager=known, log_samples=False, bootstrap_iters=1000,
                    )  # fmt: skip
                except MoaError:
                    raise
                except Exception as error:  # data sets and tasks have errors of their own
                    reason = str(error).strip() or type(error).__name__
                    raise MoaError(f"lm_eval cannot run {', '.join(tasks)}: {shortened(reason, 200)}") from error
            versions = said["versions"]
            found.append({"row": row.name, "tasks": {task: _metrics(of) for task, of in said["results"].items()}})
    progress(len(rows), len(rows), rows[-1].name)
    about = environment(network, backend or backends.pick(network.device))
    answer = {"model": network.config.name_or_path, "environment": about, "tasks": versions, "rows": found}
    if path is not None:
        replace_json(path, answer)
    return answer


def _metrics(of: Mapping[str, Any]) -> dict[str, dict[str, float | None]]:
    """Return value and standard error of each metric; the harness's names are `acc,none` and `acc_stderr,none`.

    RULER's tasks have a metric for each length, and -1 for one that they had no samples of.
    """
    found: dict[str, dict[str, float | None]] = {}
    for name, value in of.items():
        metric, comma, kind = name.partition(",")
        if metric.isdigit() and value == -1:
            continue
        if comma and not metric.endswith(STDERR) and isinstance(value, int | float):
            error = of.get(f"{metric}{STDERR},{kind}")
            plain = metric if kind == "none" else name
            found[plain] = {"value": float(value), "stderr": error if isinstance(error, float) else None}
    return found
