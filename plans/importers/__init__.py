"""Import what other tools found: one file per format, and a line in this list. Callers use `Plan.import_from`."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from moa.plans.errors import PlanError, brief
from moa.plans.importers import duo_attention, kvzip, moa_json
from moa.plans.model import ModelInfo
from moa.plans.patterns import Rule

IMPORTERS: dict[str, Callable[..., dict[int, Sequence[Rule]]]] = {
    "moa": moa_json.read, "duo_attention": duo_attention.read, "kvzip": kvzip.read,
}  # fmt: skip
"""By the name of the format, the function from a source, a model and the format's own options to rules by layer."""


def import_rules(form: str, source: Any, info: ModelInfo, options: dict[str, Any]) -> dict[int, Sequence[Rule]]:
    """Return the rules of each layer; see `Plan.import_from`."""
    if form not in IMPORTERS:
        raise PlanError(f"the format must be one of {', '.join(IMPORTERS)}, found {brief(form)}")
    read = IMPORTERS[form]
    takes = {name: of for name, of in inspect.signature(read).parameters.items() if of.kind is of.KEYWORD_ONLY}
    if unknown := sorted(options.keys() - takes.keys()):
        raise PlanError(f"options of the format {form} are {', '.join(takes) or 'none'}; found {', '.join(unknown)}")
    if lacking := [name for name, of in takes.items() if of.default is of.empty and name not in options]:
        raise PlanError(f"the format {form} needs the option {', '.join(lacking)}")
    return read(source, info, **options)
