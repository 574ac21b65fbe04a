"""Keep plans in a model's folder, or in a repository of the Hugging Face hub; `huggingface_hub` does the transfers."""

import re
from collections.abc import Iterable
from os import PathLike
from pathlib import Path
from typing import Any

from moa.plans.content import Content
from moa.plans.errors import PlanError, brief, shortened
from moa.plans.file import load, parse, render

STEM = "moa-plan"
"""A folder's plan is `moa-plan.yaml`; others beside it have names, as in `moa-plan-0.25.yaml`."""
_NAMED = re.compile(rf"{STEM}(?:-([\w.-]+))?\.yaml", re.ASCII)


def file_name(name: str) -> str:
    """Return the file of the plan of a name, which is empty for the folder's own.

    Raises:
        PlanError: The name cannot be part of a file's.
    """
    found = f"{STEM}-{name}.yaml" if name else f"{STEM}.yaml"
    if not _NAMED.fullmatch(found):
        raise PlanError(f"a plan's name is letters, digits, dots, - and _, found {brief(name)}")
    return found


def get(source: str | PathLike[str], name: str = "", revision: str | None = None) -> Content:
    """Return a plan; see `Plan.from_pretrained`."""
    folder, file = Path(source).expanduser(), file_name(name)
    if folder.is_dir():
        if revision is not None:
            raise PlanError(f"a revision is one of a repository of the hub; {folder} is a folder")
        if not (folder / file).is_file():
            raise PlanError(_missing(file, str(folder), (each.name for each in folder.iterdir())))
        return load(folder / file)
    files = _asked(str(source), "list_repo_files", revision=revision)
    if file not in files:
        raise PlanError(_missing(file, str(source), files))
    return _fetched(str(source), file, revision)


def all_in_repo(repo: str) -> list[Content]:
    """Return all plans in a repository of the hub.

    Raises:
        PlanError: A file is broken, or the hub cannot be asked.
    """
    return [_fetched(repo, file, None) for file in _plans(_asked(repo, "list_repo_files", revision=None))]


def all_in_folder(folder: Path) -> list[Content]:
    """Return all plans in a folder.

    Raises:
        PlanError: A file is broken.
    """
    return [load(folder / name) for name in _plans(path.name for path in folder.iterdir())]


def push(plan: Content, repo: str, name: str = "", *, private: bool | None = None) -> str:
    """Write a plan into a repository of the hub, which is made if it is not there; return where it can be seen.

    Raises:
        PlanError: The name is invalid, or the hub refuses.
    """
    file = file_name(name)
    _asked(repo, "create_repo", private=private, exist_ok=True)
    return str(
        _asked(
            repo, "upload_file", path_or_fileobj=render(plan).encode(), path_in_repo=file,
            commit_message=f"Plan {file} by moa",
        )
    )  # fmt: skip


def is_repo(name: str | PathLike[str]) -> bool:
    """Return whether a name can be that of a repository, and of nothing on this machine."""
    return bool(re.fullmatch(r"[\w.-]+(/[\w.-]+)?", str(name), re.ASCII)) and not Path(name).exists()


def _fetched(repo: str, file: str, revision: str | None) -> Content:
    path = _asked(repo, "hf_hub_download", filename=file, revision=revision)
    return parse(Path(path).read_text(encoding="utf-8"), f"{file} of {repo}")


def _asked(repo: str, call: str, **arguments: Any) -> Any:
    """Return what the hub answers.

    Raises:
        PlanError: Nothing; the error says why.
    """
    from huggingface_hub import HfApi

    try:
        return getattr(HfApi(), call)(repo_id=repo, **arguments)
    except Exception as error:  # its own errors and those of its transport have no base in common
        reason = str(error).strip() or type(error).__name__
        raise PlanError(f"hub, {brief(repo)}: {shortened(reason, 200)}") from error


def _plans(files: Iterable[str]) -> list[str]:
    return sorted(file for file in files if _NAMED.fullmatch(file))


def _missing(file: str, place: str, files: Iterable[str]) -> str:
    return f"no {file} in {place} (plans there: {', '.join(_plans(files)) or 'none'})"
