"""Read options from a YAML file: what the command line does not give, `--config FILE` does."""

from pathlib import Path
from typing import Annotated, Any

import typer

from moa.plans.errors import MoaError, brief, shortened


def _configure(context: typer.Context, path: Path | None) -> Path | None:
    """Make the file's values the defaults of the options that are named as its keys."""
    if path is None:
        return None
    import yaml

    from moa.plans.replace import read

    try:
        found = yaml.safe_load(read(path))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise MoaError(f"{path} is not YAML: {shortened(str(error), 200)}") from None
    if not isinstance(found, dict):
        raise MoaError(f"{path} must map names of options to values, found {brief(found)}")
    options = {
        name.removeprefix("--"): option
        for option in context.command.params
        for name in option.opts
        if name.startswith("--") and name not in ("--config", "--help")
    }
    values: dict[str, Any] = {}
    for key, value in found.items():
        name = str(key).replace("_", "-")
        if name not in options:
            raise MoaError(f"{path}: options are {', '.join(options)}; found {brief(key)}")
        values[str(options[name].name)] = _typed(value, getattr(options[name], "multiple", False))
    context.default_map = values
    return path


def _typed(value: Any, several: bool) -> Any:
    """Return a value as the command line would give it: texts of a repeatable option, or one text."""
    if isinstance(value, bool) or value is None:
        return value
    listed = value if isinstance(value, list) else [value]
    return [str(each) for each in listed] if several else ",".join(map(str, listed))


Config = Annotated[
    Path | None,
    typer.Option(
        help="YAML file of options by their names, such as budget: 0.25; the command line goes before it.",
        callback=_configure,
        is_eager=True,
    ),
]
"""The option `--config`."""
