"""Read and write the plan file, YAML text on disk. Callers use `Plan.load` and `Plan.save`."""

import re
from collections.abc import Sequence
from importlib import resources
from importlib.resources.abc import Traversable
from itertools import chain
from os import PathLike
from pathlib import Path
from typing import Any

import yaml

from moa.plans.content import Content
from moa.plans.document import build, to_document
from moa.plans.errors import PlanError, shortened
from moa.plans.replace import read, replace
from moa.plans.schema import ProblemError

_PLAIN = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_KEYS = "str", "int", "merge"
"""Kinds of keys: of others, as `yes`, YAML makes values that may equal a number."""
MOST_PARTS = 1_000_000
"""Keys and values of a plan: many times those of the largest model, few enough to check and to quote."""


def load(source: str | PathLike[str]) -> Content:
    """Return the content of the plan in a file; see `Plan.load`."""
    path, ours = Path(source), shipped()
    if not path.exists() and str(source) in ours:
        return parse(ours[str(source)].read_text(encoding="utf-8"), f"shipped plan {source}")
    try:
        text = read(path).decode()
    except FileNotFoundError:
        names = ", ".join(sorted(ours)) or "none"
        raise PlanError(f"no plan file {path} and no shipped plan of that name (shipped: {names})") from None
    except OSError as error:
        raise PlanError(f"cannot read plan {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise PlanError(f"{path}: not UTF-8 text") from None
    return parse(text, str(path))


def title(source: str | PathLike[str]) -> str:
    """Return a plan's name in tables: its file's name without `.yaml`, or the name of a shipped plan."""
    return Path(source).name.removesuffix(".yaml")


def save(plan: Content, path: str | PathLike[str]) -> None:
    """Write a plan to a file; see `Plan.save`."""
    try:
        replace(path, render(plan).encode())
    except OSError as error:
        raise PlanError(f"cannot write plan {path}: {error.strerror}") from None


def parse(text: str, where: str) -> Content:
    """Return the content of the plan in `text`; errors begin with `where` and the line."""
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        _refuse_misread(root, set())
        if root is not None and _parts(root, {}) > MOST_PARTS:
            raise ValueError(f"with its aliases written out it has more than {MOST_PARTS} parts")
        document = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise PlanError(f"{where}{line}: not valid YAML: {shortened(str(error.problem), 200)}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise PlanError(f"{where}: not valid YAML: {shortened(str(error), 200)}") from None
    try:
        return build(document)
    except ProblemError as error:
        raise PlanError(f"{where}, line {_line(root, error.place)}: {error}") from None


def render(plan: Content) -> str:
    """Return the file's text: one line per part and per layer."""
    document = to_document(plan)
    if plan.provenance and plan.provenance.date:
        document["provenance"]["date"] = plan.provenance.date  # a YAML date, unquoted
    lines = [f"version: {document.pop('version')}"]
    for key, part in document.items():
        if key == "layers":
            lines += ["layers:", *(f"  {layer}: {_one_line(entry)}" for layer, entry in part.items())]
        else:
            lines.append(f"{key}: {part if isinstance(part, str) else _one_line(part)}")
    return "\n".join(lines) + "\n"


def _one_line(part: dict[str, Any]) -> str:
    def dump(as_is: bool) -> str:
        return str(yaml.safe_dump(part, default_flow_style=True, sort_keys=False, allow_unicode=as_is, width=2**31))

    text = dump(as_is=True)
    # Where PyYAML writes Unicode's line breaks unescaped, it folds them, and would read other text back.
    return (dump(as_is=False) if any(c in text for c in "\x85\u2028\u2029") else text).strip()


def shipped() -> dict[str, Traversable]:
    """Return the files of shipped plans by their names."""
    folder = resources.files("moa.plans.library")
    return {file.name.removesuffix(".yaml"): file for file in folder.iterdir() if file.name.endswith(".yaml")}


def _line(root: yaml.Node | None, place: Sequence[Any]) -> int:
    """Return the line of the deepest part of `place` that the document has, counted from 1."""
    node, line = root, root.start_mark.line if root else 0
    for key in place:
        found: tuple[yaml.Node, yaml.Node] | None = None
        if isinstance(node, yaml.MappingNode):
            found = next(((name, value) for name, value in node.value if name.value == str(key)), None)
        elif isinstance(node, yaml.SequenceNode) and isinstance(key, int) and key < len(node.value):
            found = (node.value[key], node.value[key])
        if found is None:
            break
        line, node = found[0].start_mark.line, found[1]
    return line + 1


def _parts(node: yaml.Node, known: dict[int, int]) -> int:
    """Count the parts of a document with every alias written out; a node that contains itself counts once there."""
    if id(node) not in known:
        known[id(node)] = 1
        if isinstance(node, yaml.CollectionNode):
            children = chain(*node.value) if isinstance(node, yaml.MappingNode) else node.value
            known[id(node)] += sum(_parts(child, known) for child in children)
    return known[id(node)]


def _refuse_misread(node: yaml.Node | None, seen: set[int]) -> None:
    """Refuse what YAML would read otherwise than it looks: a key that is there twice (it keeps the last), and 010."""
    if isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:int" and not _PLAIN.fullmatch(node.value):
        raise yaml.MarkedYAMLError(
            problem=f"YAML reads {node.value} as {yaml.safe_load(node.value)}; write numbers as plain decimals",
            problem_mark=node.start_mark,
        )
    if id(node) in seen or not isinstance(node, yaml.CollectionNode):
        return
    seen.add(id(node))  # aliases may make a document a graph
    if isinstance(node, yaml.SequenceNode):
        children = node.value
    else:
        names: set[str] = set()
        for name, _ in node.value:
            if isinstance(name, yaml.ScalarNode) and name.tag.rpartition(":")[2] not in _KEYS:
                problem = f"a key is a name, or the number of a layer, found {shortened(name.value)}"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=name.start_mark)
            if str(name.value) in names:
                raise yaml.MarkedYAMLError(problem=f"the key {name.value} is there twice", problem_mark=name.start_mark)
            names.add(str(name.value))
        children = [*chain(*node.value)]
    for child in children:
        _refuse_misread(child, seen)
