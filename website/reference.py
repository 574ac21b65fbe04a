"""Write the reference pages of the site: of the commands from the commands, of the plan file from its schema."""

from collections.abc import Iterator, Mapping
from typing import Any

from typer import Context
from typer.cli import get_docs_for_click
from typer.main import get_command


def commands() -> str:
    """Return the page of all commands and their options, as `--help` has them."""
    from moa.cli.main import app

    command = get_command(app)
    return get_docs_for_click(obj=command, ctx=Context(command, info_name="moa"), name="moa", title="Commands")


def plan_file() -> str:
    """Return the page of all keys of a plan file, from the models that read it."""
    from moa.plans.document import schema
    from moa.plans.patterns import PATTERNS

    whole = schema()
    parts = ["# The plan file", "All keys of a plan file. [The plan](../plan.md) says what they mean together."]
    parts += ["## The file", *_table(whole)]
    for name, pattern in PATTERNS.items():
        rule = pattern.model_json_schema()
        rule["properties"]["pattern"]["default"] = next(iter(PATTERNS))
        parts += [f"## A rule: `{name}`", *_table(rule)]
    for name in sorted(set(whole["$defs"]) - {"Rule"}):
        parts += [f"## {name}", *_table(whole["$defs"][name])]
    return "\n\n".join(parts) + "\n"


def _table(schema: Mapping[str, Any]) -> Iterator[str]:
    yield " ".join(schema.get("description", "").split("Attributes:")[0].split())
    needed = schema.get("required", ())
    rows = [
        f"| `{name}` | {_type(about)} | {_default(about) if name not in needed else 'needed'} "
        f"| {' '.join(about.get('description', '').split())} |"
        for name, about in schema["properties"].items()
    ]
    yield "\n".join(["| key | value | if left out | meaning |", "|---|---|---|---|", *rows])


def _default(about: Mapping[str, Any]) -> str:
    default = about.get("default")
    return "" if default in (None, {}) else f"`{default}`"


def _type(about: Mapping[str, Any]) -> str:
    """Return in words what a key's value may be."""
    if "$ref" in about:
        name = about["$ref"].rpartition("/")[2]
        return "a rule" if name == "Rule" else f"[{name}](#{name.lower()})"
    if "anyOf" in about:
        return " or ".join(_type(each) for each in about["anyOf"] if each.get("type") != "null")
    if "const" in about:
        return f"`{about['const']}`"
    if "enum" in about:
        return ", ".join(f"`{each}`" for each in about["enum"])
    kind = about.get("format") or about.get("type", "anything")
    if kind == "array":
        return f"list of {_type(about.get('items', {}))}"
    if kind == "object":
        of = about.get("additionalProperties", {})
        return f"mapping to {_type(of)}" if isinstance(of, dict) else "mapping"
    limits = [f"{sign} {about[key]}" for key, sign in LIMITS.items() if key in about]
    return " ".join([kind, *limits])


LIMITS = {"minimum": "≥", "ge": "≥", "exclusiveMinimum": ">", "gt": ">", "maximum": "≤", "le": "≤"}
