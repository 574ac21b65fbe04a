from io import StringIO

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from moa.cli import bench, eval
from moa.plans.model import ModelInfo
from moa.plans.patterns import FULL, KeyDiffWindow, Rule
from moa.plans.plan import Plan
from moa.report import front, plan
from moa.report.figures import Figures
from moa.search.budget import Budget
from moa.search.front import Point
from moa.search.solver import Solution

INFO = ModelInfo(
    architecture="LlamaForCausalLM", layers=3, query_heads=4, kv_heads=2, head_size=64, rope={"theta": 1e4}
)
MIXED = Plan.from_rules(
    INFO,
    {0: [Rule(alpha=64 * 2**20, beta=1 / 256), FULL], 1: [KeyDiffWindow(alpha=128, beta=0.25), FULL],
     2: [Rule(sink=192, alpha=-4096, beta=0.6875), Rule(alpha=128, beta=0)]},
)  # fmt: skip
LENGTHS = [1024, 2048, 4096, 16384, 131072, 1048576]
PLANS = {"1 smollm2-135m-instruct-0.25": MIXED, "2 dense": Plan.dense(INFO)}


def drawn(shown: Figures, width: int = 80) -> list[str]:
    out = StringIO()
    Console(width=width, file=out, highlight=False).print(shown)
    return out.getvalue().splitlines()


def check(shown: Figures, width: int = 80) -> None:
    """No line is too wide, and each word of a heading and each line of a figure stands whole in as many lines."""
    lines = drawn(shown, width)
    assert max(map(len, lines)) <= width
    apart = [f" {line} " for line in lines]
    for i, heading in enumerate(shown.headings):
        for word in heading.split():
            assert any(f" {word} " in line for line in apart), (word, lines)
        if i >= shown.names:
            for row in shown.rows:
                for part in row[i].splitlines():
                    assert any(f" {part} " in line for line in apart), (part, lines)


cells = st.text("0123456789.,%()", min_size=1, max_size=14)


@given(
    st.integers(1, 9).flatmap(
        lambda n: st.tuples(
            st.lists(st.text("abc ", min_size=1, max_size=24).map(str.strip).filter(bool), min_size=n, max_size=n),
            st.lists(st.tuples(st.text("xyz-", min_size=1, max_size=40), *[cells] * (n - 1)), min_size=1, max_size=3),
        )
    ),
    st.integers(60, 120),
)
def test_figures_and_headings_stay_whole(table, width):
    headings, rows = table
    check(Figures(["row", *headings[1:]], rows), width)


def test_more_columns_than_fit_go_into_further_tables_with_the_same_names():
    shown = Figures(["tokens", *(f"heading{i}" for i in range(20))], [["1,024", *["0.123"] * 20]])
    starts = [line for line in drawn(shown) if line.startswith("tokens")]
    assert len(starts) == 3
    assert sum(line.count("heading") for line in starts) == 20


def test_headings_take_one_line_where_there_is_room():
    shown = Figures(["tokens", "KV cache, MiB"], [["1,024", "1.0"]])
    assert drawn(shown)[0].split("  ") == ["tokens", "KV cache, MiB"]


def test_a_name_is_folded_only_where_stacked_headings_do_not_suffice():
    shown = Figures(["tokens", "plan", "KV cache, MiB"], [["1,024", "smollm2-135m-instruct-0.25", "1.0"]], names=2)
    assert any("smollm2-135m-instruct-0.25" in line for line in drawn(shown, 42))
    assert any(" smollm2-135m " in f"{line} " for line in drawn(shown, 28))


def test_rows_of_one_first_cell_stand_together():
    shown = Figures(["tokens", "row"], [["1,024", "a"], ["1,024", "b"], ["2,048", "a"]])
    assert [line.strip() for line in drawn(shown)[2:]] == ["1,024   a", "1,024   b", "", "2,048   a", ""]


def times(seconds: float) -> dict[str, float]:
    return {"median": seconds, "iqr": 0.25}


@pytest.mark.parametrize("fits", [True, False])
def test_times_and_bytes_at_80_columns(fits):
    step = {
        "batch": 128, "dense": times(123.456) if fits else None, "plan": times(0.0123456),
        "predicted": 2**40, "predicted_seconds": 0.0123, "read_bytes": 2**37,
        "allocated": {"plan": 2**40, "dense": 2**41 if fits else None},
    }  # fmt: skip
    found = {"model": "a/model", "environment": {"dtype": "bfloat16", "backend": "torch"}, "lengths": [
        {"length": 131072, "prefill_kept": 0.123, "read": 0.1, "prefill": step, "decode": [step, step]}]}  # fmt: skip
    prefill, decode = bench.tables(found)
    check(prefill)
    check(decode)


def test_evaluations_at_80_columns():
    needles, text = {"rate": 0.97, "interval": [0.92, 0.99]}, {"perplexity": 12345.577, "kl": 0.0425}
    row = {"length": 131072, "row": "uniform like a-long-name-0.25", "density": 0.25, "kv_bytes": 2**40, "text": text}
    about = {"dtype": "bfloat16", "device": "CPU", "backend": "numba"}
    rows = [{**row, "single": needles, "four": needles}, row]
    check(eval.table({"model": {"name": "SmolLM2"}, "environment": about, "rows": rows}))


def test_plans_at_80_columns():
    check(plan.costs(PLANS, LENGTHS, "bfloat16"))
    check(plan.rules(MIXED, LENGTHS, "plan"))
    check(plan.differences(*PLANS.values(), LENGTHS))


def test_fronts_at_80_columns(monkeypatch):
    monkeypatch.setattr(front, "figures", lambda *_: {
        "density": 0.1234, "KV cache, MiB": 123456.0, "decode, ms": 123.4, "prefill, ms": 12345.0
    })  # fmt: skip
    budget = Budget("decode_ms", 123.456, 131072, 4)
    point = Point(MIXED, budget, Solution(np.zeros(6, int), 1e-5, 9e-6, 0, (1, 1), 1.0, timed_out=False))
    check(front.table({"decode-ms-123.456.yaml": point}, 131072, None))
