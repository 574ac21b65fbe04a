"""The plan file: YAML text to a plan and back. Reached as methods of `Plan`."""

import os
from collections.abc import Mapping, Sequence
from importlib import resources
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, TypeAdapter, ValidationError

from moa.plans.errors import PlanError
from moa.plans.model import ModelInfo, Strict
from moa.plans.plan import Plan, Predicted, Provenance
from moa.plans.rule import Pattern, Rule

_PATTERN: TypeAdapter[Rule] = TypeAdapter(Pattern)


class _File(Strict):
    """The file's top level; layers are merged with the defaults by `_layer` before their rules are checked."""

    version: Literal[1]
    model: ModelInfo
    defaults: Pattern
    layers: dict[int, dict[str, Any]] = Field(default_factory=dict)
    predicted: Predicted | None = None
    provenance: Provenance | None = None


class _BadPlaceError(Exception):
    """A broken part of a document: the keys that lead to it, and what is wrong."""

    def __init__(self, place: Sequence[Any], problem: str) -> None:
        super().__init__(place, problem)
        self.place, self.problem = tuple(place), problem

    def __str__(self) -> str:
        place = ".".join(str(key) for key in self.place)
        return f"{place}: {self.problem}" if place else self.problem


def load(source: str | PathLike[str]) -> Plan:
    """See `Plan.load`."""
    path, shipped = Path(source), _shipped()
    if not path.is_file() and str(source) in shipped:
        return parse(shipped[str(source)].read_text(encoding="utf-8"), f"shipped plan {source}")
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        names = ", ".join(sorted(shipped)) or "none"
        raise PlanError(f"no plan file {path} and no shipped plan of that name (shipped: {names})") from None
    except OSError as error:
        raise PlanError(f"cannot read plan {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise PlanError(f"plan {path} is not UTF-8 text") from None
    return parse(text, str(path))


def parse(text: str, where: str) -> Plan:
    """The plan in `text`; `where` names it in errors."""
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        _refuse_duplicates(root, set())
        document = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise PlanError(f"{where}{line}: not valid YAML: {error.problem}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise PlanError(f"{where}: not valid YAML: {' '.join(str(error).split())}") from None
    try:
        return _build(document)
    except _BadPlaceError as error:
        raise PlanError(f"{where}, line {_line(root, error.place)}: {error}") from None


def from_document(document: Any) -> Plan:
    """See `Plan.from_dict`."""
    try:
        return _build(document)
    except _BadPlaceError as error:
        raise PlanError(f"plan: {error}") from None


def to_document(plan: Plan) -> dict[str, Any]:
    """See `Plan.to_dict`; the keys come in the file's order, and what equals the defaults is left out."""
    document: dict[str, Any] = {"version": 1}
    for key in ("model", "defaults", "layers", "predicted", "provenance"):
        part = _layers(plan) if key == "layers" else getattr(plan, key)
        if part:
            document[key] = part if key == "layers" else part.model_dump(mode="json", exclude_none=True)
    return document


def render(plan: Plan) -> str:
    """The plan file's text: one line per part and per layer."""
    document = to_document(plan)
    if plan.provenance and plan.provenance.date:
        document["provenance"]["date"] = plan.provenance.date  # a YAML date, unquoted
    lines = [f"version: {document.pop('version')}"]
    for key, part in document.items():
        if key == "layers":
            lines += ["layers:", *(f"  {layer}: {_flow(entry)}" for layer, entry in part.items())]
        else:
            lines.append(f"{key}: {_flow(part)}")
    return "\n".join(lines) + "\n"


def save(plan: Plan, path: str | PathLike[str]) -> None:
    """See `Plan.save`."""
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        try:
            temporary.write_text(render(plan), encoding="utf-8", newline="\n")
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise PlanError(f"cannot write plan {target}: {error.strerror}") from None


def first_error(error: ValidationError) -> str:
    """One line for a pydantic error: where, and what is wrong there."""
    return str(_bad_place(error, ()))


def _build(document: Any) -> Plan:
    if not isinstance(document, Mapping):
        raise _BadPlaceError((), f"a plan is a mapping with the keys {', '.join(_File.model_fields)}")
    try:
        file = _File.model_validate(document)
    except ValidationError as error:
        raise _bad_place(error, ()) from None
    groups = dict.fromkeys(file.model.ruled_layers, (file.defaults,) * file.model.kv_heads)
    for layer, entry in file.layers.items():
        if layer not in groups:
            raise _BadPlaceError(("layers", layer), f"takes no rules; the layers that do are {list(groups)}")
        groups[layer] = _rules(file.defaults, entry, file.model.kv_heads, ("layers", layer))
    return Plan(
        model=file.model,
        groups=groups,
        defaults=file.defaults,
        predicted=file.predicted,
        provenance=file.provenance,
    )


def _rules(defaults: Rule, entry: dict[str, Any], kv_heads: int, place: tuple[Any, ...]) -> tuple[Rule, ...]:
    """The rules of a layer's entry; later wins: the defaults, the entry's own keys, then its list of heads."""
    rule = _override(defaults, {key: value for key, value in entry.items() if key != "heads"}, place)
    heads = entry.get("heads", ["default"] * kv_heads)
    place = (*place, "heads")
    if not isinstance(heads, list) or len(heads) != kv_heads:
        raise _BadPlaceError(place, f"must be a list of {kv_heads}, one per KV head, found {_brief(heads)}")
    return tuple(
        rule if head == "default" else _override(rule, head, (*place, i)) for i, head in enumerate(heads)
    )


def _override(rule: Rule, fields: Any, place: tuple[Any, ...]) -> Rule:
    if not isinstance(fields, Mapping):
        raise _BadPlaceError(
            place, f"must be `default` or a mapping of a rule's keys, found {_brief(fields)}"
        )
    try:
        return _PATTERN.validate_python({**rule.model_dump(), **fields})
    except ValidationError as error:
        raise _bad_place(error, place) from None


def _layers(plan: Plan) -> dict[int, dict[str, Any]]:
    """The entries of the layers that differ from the defaults."""
    return {
        layer: _entry(rules, plan.defaults)
        for layer, rules in sorted(plan.groups.items())
        if any(rule != plan.defaults for rule in rules)
    }


def _entry(rules: tuple[Rule, ...], defaults: Rule) -> dict[str, Any]:
    """A layer's entry: the rule that most of its heads share, then the heads that differ from it."""
    common = max((defaults, *rules), key=rules.count)  # of equals the first, so the defaults before any other
    if rules.count(common) == 1 < len(rules):
        common = defaults
    entry = _changes(common, defaults)
    if any(rule != common for rule in rules):
        entry["heads"] = ["default" if rule == common else _changes(rule, common) for rule in rules]
    return entry


def _changes(rule: Rule, base: Rule) -> dict[str, Any]:
    before = base.model_dump()
    return {key: value for key, value in rule.model_dump().items() if value != before[key]}


def _flow(value: Any) -> str:
    """One line of YAML."""
    return yaml.safe_dump(
        value, default_flow_style=True, sort_keys=False, allow_unicode=True, width=2**31
    ).strip()


def _shipped() -> dict[str, Any]:
    folder = resources.files("moa.plans.library")
    return {file.name.removesuffix(".yaml"): file for file in folder.iterdir() if file.name.endswith(".yaml")}


def _bad_place(error: ValidationError, place: tuple[Any, ...]) -> _BadPlaceError:
    """The first problem of a pydantic error, in words of the plan file."""
    first = error.errors(include_url=False)[0]
    kind, found = first["type"], _brief(first["input"])
    if kind == "value_error":
        problem = str(first["ctx"]["error"])
    elif kind == "extra_forbidden":
        problem = "unknown key"
    elif kind == "missing":
        problem = "is missing"
    elif kind.startswith("union_tag"):
        problem = f"pattern must be {first['ctx'].get('expected_tags', 'given')}, found {found}"
    else:
        problem = f"{first['msg'][0].lower()}{first['msg'][1:]}, found {found}"
    patterns = {"sink_window"}  # pydantic names the union's member in the path; the file does not
    return _BadPlaceError((*place, *(key for key in first["loc"] if key not in patterns)), problem)


def _line(root: yaml.Node | None, place: Sequence[Any]) -> int:
    """The line of the deepest part of `place` that the document has, counted from 1."""
    node, line = root, root.start_mark.line if root else 0
    for key in place:
        if isinstance(node, yaml.MappingNode):
            pair = next(((k, v) for k, v in node.value if k.value == str(key)), None)
        elif isinstance(node, yaml.SequenceNode) and isinstance(key, int) and key < len(node.value):
            pair = (node.value[key], node.value[key])
        else:
            pair = None
        if pair is None:
            break
        line, node = pair[0].start_mark.line, pair[1]
    return line + 1


def _refuse_duplicates(node: yaml.Node | None, seen: set[int]) -> None:
    """Refuse a mapping that has a key twice, of which YAML would keep the last without a word."""
    if node is None or id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, yaml.MappingNode):
        keys: set[Any] = set()
        for key, value in node.value:
            if key.value in keys if isinstance(key.value, str) else False:
                raise yaml.MarkedYAMLError(
                    problem=f"the key {key.value} is there twice", problem_mark=key.start_mark
                )
            keys.add(key.value if isinstance(key.value, str) else None)
            _refuse_duplicates(value, seen)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _refuse_duplicates(item, seen)


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
