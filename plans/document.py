"""Convert a plan to the plain mapping that its file holds, and back. Precedence is settled here alone."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, TypeAdapter, ValidationError

from moa.plans.content import Content
from moa.plans.errors import PlanError, brief
from moa.plans.model import ModelInfo
from moa.plans.patterns import AnyRule, Rule
from moa.plans.reading import SELECTION, ours
from moa.plans.record import Predicted, Provenance
from moa.plans.schema import ProblemError, Strict, problem

_RULE: TypeAdapter[Rule] = TypeAdapter(AnyRule)


def _by_number(layers: Any) -> Any:
    """Return the entries by numbers of layers; in JSON a number that is a key is text."""
    if not isinstance(layers, Mapping):
        return layers
    found: dict[int, Any] = {}
    for key, entry in layers.items():
        text = str(key)
        if type(key) not in (int, str) or not text.isascii() or not text.isdigit() or text != str(int(text)):
            raise ValueError(f"a layer is named by its number, found {brief(key)}")
        if int(text) in found:
            raise ValueError(f"layer {text} is there twice")
        found[int(text)] = entry
    return found


class _Document(Strict):
    """The top level of a plan file."""  # entries of layers are not checked here: `_rules` merges them first

    version: Literal[1]
    """The version of this format."""
    model: ModelInfo
    """The model that the plan is for."""
    selection: Annotated[str, BeforeValidator(ours)] = SELECTION
    """How rules with `read` below 1 choose what they read; `save` writes it into plans that have such rules."""
    defaults: AnyRule
    """The rule of all layers and heads that are not named below; all its keys."""
    layers: Annotated[dict[int, dict[str, Any]], BeforeValidator(_by_number)] = Field(default_factory=dict)
    """By layer, counted from 0: the keys of its rule that differ from the defaults, and `heads`, a list with an entry
    per KV head: `default`, or the keys that differ from the layer's rule."""
    predicted: Predicted | None = None
    """What the plan was predicted to keep and cost."""
    provenance: Provenance | None = None
    """Where the plan came from."""


def schema() -> dict[str, Any]:
    """Return the JSON schema of a plan's document; its `Rule` stands for a rule of any pattern."""
    return _Document.model_json_schema()


def from_document(document: Any) -> Content:
    """Return the content of the plan that a document describes; see `Plan.from_dict`."""
    try:
        return build(document)
    except ProblemError as error:
        raise PlanError(f"plan: {error}") from None


def build(document: Any) -> Content:
    """Return the content that `document` describes, or raise a ProblemError that tells the place."""
    if not isinstance(document, Mapping):
        keys = ", ".join(_Document.model_fields)
        raise ProblemError((), f"a plan is a mapping with the keys {keys}, found {brief(document)}")
    try:
        top = _Document.model_validate(document)
    except ValidationError as error:
        raise problem(error) from None
    groups = dict.fromkeys(top.model.ruled_layers, (top.defaults,) * top.model.kv_heads)
    for layer, entry in top.layers.items():
        if layer not in groups:
            raise ProblemError(("layers", layer), f"takes no rules; the layers that do are {list(groups)}")
        groups[layer] = _rules(top.defaults, entry, top.model.kv_heads, ("layers", layer))
    return Content(
        model=top.model,
        groups=groups,
        defaults=top.defaults,
        predicted=top.predicted,
        provenance=top.provenance,
    )


def to_document(plan: Content, expand: bool = False) -> dict[str, Any]:
    """Return a plan's document (see `Plan.to_dict`) with keys in the file's order, without what equals the defaults.

    With `expand` each layer has the whole rule of every head, so that a reader need not know what comes before what.
    """
    layers = {
        layer: {"heads": [_plain(rule) for rule in rules]} if expand else _entry(rules, plan.defaults)
        for layer, rules in sorted(plan.groups.items())
        if expand or any(rule != plan.defaults for rule in rules)
    }
    document = {
        "version": 1,
        "model": _plain(plan.model),
        "selection": SELECTION if any(rule.read < 1 for of in plan.groups.values() for rule in of) else None,
        "defaults": _without_read_of_1(_plain(plan.defaults)),
        "layers": layers,
        "predicted": _plain(plan.predicted),
        "provenance": _plain(plan.provenance),
    }
    return {key: part for key, part in document.items() if part}


def _plain(part: Strict | None) -> dict[str, Any]:
    return part.model_dump(mode="json", exclude_none=True) if part else {}


def _without_read_of_1(rule: dict[str, Any]) -> dict[str, Any]:
    """Return a rule as files had it before rules could read less than they keep."""
    return {key: value for key, value in rule.items() if (key, value) != ("read", 1)}


def _rules(defaults: Rule, entry: dict[str, Any], kv_heads: int, place: tuple[str | int, ...]) -> tuple[Rule, ...]:
    """Return the rules of a layer's entry; later wins: the defaults, the entry's own keys, then its heads."""
    rule = _override(defaults, {key: value for key, value in entry.items() if key != "heads"}, place)
    heads, place = entry.get("heads", ["default"] * kv_heads), (*place, "heads")
    if not isinstance(heads, list) or len(heads) != kv_heads:
        raise ProblemError(place, f"must be a list of {kv_heads}, one per KV head, found {brief(heads)}")
    return tuple(rule if head == "default" else _override(rule, head, (*place, i)) for i, head in enumerate(heads))


def _override(rule: Rule, changes: Any, place: tuple[str | int, ...]) -> Rule:
    if not isinstance(changes, Mapping):
        raise ProblemError(place, f"must be `default` or a mapping of a rule's keys, found {brief(changes)}")
    try:
        return _RULE.validate_python({**rule.model_dump(), **changes})
    except ValidationError as error:
        raise problem(error, place) from None


def _entry(rules: tuple[Rule, ...], defaults: Rule) -> dict[str, Any]:
    """Return a layer's entry: the rule that most of its heads share, then the heads that differ from it."""
    common = max((defaults, *rules), key=rules.count)  # of rules with equal counts the first, which is the defaults
    if rules.count(common) == 1 < len(rules):
        common = defaults
    entry = _changes(common, defaults)
    if any(rule != common for rule in rules):
        entry["heads"] = ["default" if rule == common else _changes(rule, common) for rule in rules]
    return entry


def _changes(rule: Rule, base: Rule) -> dict[str, Any]:
    before = base.model_dump()
    return {key: value for key, value in rule.model_dump().items() if value != before[key]}
