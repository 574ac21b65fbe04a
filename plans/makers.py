"""Plans made from rules, densities and other projects' formats; reached as methods of `Plan`."""

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from moa.plans.errors import BudgetInfeasible, PlanError, Unsupported
from moa.plans.file import first_error
from moa.plans.model import ModelInfo
from moa.plans.plan import Plan, Predicted, Provenance
from moa.plans.rule import FULL, Rule
from moa.plans.span import BETA_STEPS, BLOCK, span


def from_rules(
    model: Any,
    rules: Mapping[int, Sequence[Rule]],
    *,
    defaults: Rule | None = None,
    predicted: Predicted | None = None,
    provenance: Provenance | None = None,
) -> Plan:
    """See `Plan.from_rules`."""
    info = ModelInfo.of(model)
    groups = {layer: tuple(heads) for layer, heads in rules.items()}
    if defaults is None:
        given = Counter(rule for layer in sorted(groups) for rule in groups[layer])
        if not given:
            raise PlanError("a plan needs rules for every layer, or defaults; found neither")
        defaults = given.most_common(1)[0][0]
    else:
        groups = dict.fromkeys(info.ruled_layers, (defaults,) * info.kv_heads) | groups
    try:
        return Plan(
            model=info, groups=dict(sorted(groups.items())), defaults=defaults, predicted=predicted,
            provenance=provenance,
        )  # fmt: skip
    except ValidationError as error:
        raise PlanError(first_error(error)) from None


def uniform(model: Any, density: float, *, at: int) -> Plan:
    """See `Plan.uniform`."""
    if not 0 < density <= 1:
        raise PlanError(f"density must be over 0 and at most 1, found {density}")
    if at < 1:
        raise PlanError(f"length must be 1 or more, found {at}")
    alphas = np.arange(2 * BLOCK, max(at, BLOCK) + 2 * BLOCK, BLOCK)  # the last one covers all of `at`
    spans = span(BLOCK, alphas, 0, at)
    fitting = alphas[spans <= density * at + 1e-9]  # 1e-9: 0.29 * 100 is just under 29 in floating point
    if not fitting.size:
        raise BudgetInfeasible(
            f"density {density} at {at} tokens is out of reach: the narrowest window keeps {spans[0] / at:.4g}"
        )
    return from_rules(model, {}, defaults=Rule(alpha=int(fitting[-1]), beta=0))


def two_group(model: Any, full_heads: Iterable[tuple[int, int]], window: int) -> Plan:
    """See `Plan.two_group`."""
    info = ModelInfo.of(model)
    if window < 1:
        raise PlanError(f"window must be 1 token or more, found {window}")
    narrow = Rule(alpha=BLOCK + window, beta=0)
    groups = {layer: [narrow] * info.kv_heads for layer in info.ruled_layers}
    for layer, head in full_heads:
        if layer not in groups or not 0 <= head < info.kv_heads:
            raise PlanError(
                f"full_heads names layer {layer}, KV head {head}; the model has rules for layers "
                f"{list(groups)} and KV heads 0 to {info.kv_heads - 1}"
            )
        groups[layer][head] = FULL
    return from_rules(info, groups, defaults=narrow)


def from_moa_json(source: str | PathLike[str] | Mapping[str, Any], model: Any) -> Plan:
    """See `Plan.from_moa_json`."""
    info = ModelInfo.of(model)
    if info.group_size != 1:
        raise Unsupported(
            f"MoA's JSON has one rule per query head, and {info.architecture} shares each KV head between "
            f"{info.group_size} query heads: which of their rules the shared keys should follow is not defined"
        )
    if info.sliding:
        raise Unsupported(
            f"MoA's JSON rules every layer, and {info.architecture} has sliding layers without rules"
        )
    document = source if isinstance(source, Mapping) else _read_json(Path(source))
    alphas, betas = (_table(document, key, info) for key in ("alphas", "betas"))
    if betas.min() < 0 or betas.max() > 1:
        raise PlanError(f"betas must be from 0 to 1, found {betas.min():g} to {betas.max():g}")
    rules = {
        layer: [
            Rule(alpha=math.floor(a + 0.5), beta=math.floor(b * BETA_STEPS + 0.5) / BETA_STEPS)
            for a, b in zip(alphas[layer], betas[layer], strict=True)
        ]
        for layer in range(info.layers)
    }
    return from_rules(info, rules, provenance=Provenance(note="imported from MoA JSON"))


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise PlanError(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise PlanError(f"{path} is not JSON: {error}") from None


def _table(document: Any, key: str, info: ModelInfo) -> Any:
    try:
        table = np.array(document[key], np.float64)
    except (KeyError, TypeError, ValueError):
        raise PlanError(f"MoA's JSON needs {key!r}: a table of numbers [layers][heads]") from None
    if table.shape != (info.layers, info.query_heads) or not np.isfinite(table).all():
        raise PlanError(
            f"{key} must hold {info.layers} layers of {info.query_heads} finite numbers, found shape {table.shape}"
        )
    return table
