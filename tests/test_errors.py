"""What errors quote is short, whatever was found."""

import ast
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig

from moa.kernels.backend import load
from moa.plans.errors import MoaError, PlanError, brief, shortened
from moa.plans.model import ModelInfo
from moa.plans.plan import Plan, Rule
from moa.search.budget import parse

ROOT = Path(__file__).parents[1]
FOLDERS = "plans", "kernels", "profiler", "search", "moa"
FILES = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
LONG = "secret " * 20_000
RULE = {"pattern": "sink_window", "sink": 64, "alpha": 64, "beta": 0.5}
INFO = ModelInfo.from_config(LlamaConfig(num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=8))


@pytest.mark.parametrize("path", FILES, ids=[str(path.relative_to(ROOT)) for path in FILES])
def test_values_are_quoted_by_the_helper(path: Path) -> None:
    quoted = [n.lineno for n in ast.walk(ast.parse(path.read_text())) if getattr(n, "conversion", -1) == ord("r")]
    assert path.relative_to(ROOT) == Path("moa/__init__.py") or not quoted, "write {brief(value)} for {value!r}"


def test_what_is_quoted() -> None:
    assert brief("a") == "'a'"
    assert brief([1, None]) == "[1, None]"
    assert (len(brief(LONG)), brief(LONG)[-3:]) == (60, "...")
    assert shortened("a\n  b", 3) == "a b"
    assert shortened("x" * 9, 8) == "xxxxx..."


def plan(**changes: Any) -> dict[str, Any]:
    return {
        "version": 1,
        "model": INFO.model_dump(exclude_none=True),
        "defaults": {"pattern": "sink_window"},
        **changes,
    }


@pytest.mark.parametrize(
    "document",
    [
        plan(defaults={"pattern": LONG}), plan(defaults={**RULE, "sink": LONG}),
        plan(defaults={**RULE, "beta": LONG}), plan(defaults={**RULE, LONG: 1}),
        plan(layers={0: {"heads": [LONG]}}), plan(layers={0: {"heads": [LONG] * 2}}), plan(layers={LONG: {}}),
        plan(**{LONG: 1}), plan(version=LONG), plan(model={"name": LONG}), [LONG], LONG,
    ],
)  # fmt: skip
def test_plans_of_long_values(document: Any) -> None:
    with pytest.raises(PlanError) as error:
        Plan.from_dict(document)
    assert len(str(error.value)) < 400


@pytest.mark.parametrize(
    "text", [f"a: {LONG}: b", f"!!{LONG.strip().replace(' ', 'x')} a", f"{LONG}: 1\n{LONG}: 2", f"*{LONG}"]
)
def test_files_of_long_values(text: str, tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text(text)
    with pytest.raises(PlanError) as error:
        Plan.load(path)
    assert len(str(error.value)) < 400 + len(str(path))


def test_calls_of_long_values() -> None:
    whole = Plan.from_rules(INFO, {}, defaults=Rule(alpha=64, beta=0.5))
    for call in (
        lambda: load(LONG), lambda: parse("density", LONG), lambda: whole.kv_bytes([0.5] * 99_999),
        lambda: whole.kv_bytes(64, dtype=LONG),
        lambda: whole.check(INFO.model_copy(update={"architecture": LONG})),
    ):  # fmt: skip
        with pytest.raises(MoaError) as error:
            call()
        assert len(str(error.value)) < 600
