"""benchmarks/reads.py: the plans of each row, and what is claimed of what was measured."""

from dataclasses import replace
from importlib import import_module

import numpy as np
import pytest


@pytest.fixture
def script():
    return import_module("reads")


@pytest.fixture
def profile(make_profile):
    made = make_profile((512, 1024), shares=(128, 64, 32, 16, 8))
    return replace(made, estimators={"text": "fisher", "facts": "effect"})


def test_plans_keep_the_budgets_of_their_rows_at_every_length(script, profile):
    found = script.plans(profile, [4096, 8192])
    assert list(found) == [row.name for row in script.BUDGETS]
    for row in script.BUDGETS:
        for n in set(row.lengths) & {4096, 8192}:
            assert found[row.name].read_density(n) <= row.read * (1 + 1e-9)
            assert found[row.name].density(n) <= row.kept * (1 + 1e-9)
        whole = found[row.name].whole
        assert not whole.reads()
        assert np.array_equal(whole.spans(4096), found[row.name].spans(4096))
    assert list(script.plans(profile, [2048])) == ["everything, 1/8 read"]
    rows = {name: plan for _, name, plan in script.rows_at(found, 4096)}
    for name in ("everything, 1/16 read", "1/4 kept, 1/16 read"):
        twin = rows[f"uniform like {name}"]
        assert rows[name].read_density(4096) <= twin.read_density(4096) <= rows[name].read_density(4096) + 0.01
        assert len({rule for rules in twin.groups.values() for rule in rules}) == 1
    assert rows["uniform like everything, 1/16 read"].density(4096) == 1
    assert twin.density(4096) <= rows["1/4 kept, 1/16 read"].density(4096)
    names = list(rows)
    assert names == [
        "everything, 1/8 read", "uniform like everything, 1/8 read", "everything, 1/16 read",
        "uniform like everything, 1/16 read", "1/4 kept, 1/16 read", "uniform like 1/4 kept, 1/16 read",
        "1/4 kept, 1/16 read: all of it",
    ]  # fmt: skip


def row(name, single, four, perplexity):
    return {
        "row": name, "length": 4096, "single": {"rate": single}, "four": {"rate": four},
        "decoded": {"perplexity": perplexity},
    }  # fmt: skip


def test_claims_compare_with_dense_or_the_plan_that_reads_all_and_with_uniform_reads(script):
    eighth, quarter = script.BUDGETS[0], script.BUDGETS[3]
    rows = [
        row("dense", 1.0, 0.8, 10.0),
        row(eighth.name, 0.98, 0.7, 10.1),
        row(f"uniform like {eighth.name}", 0.9, 0.75, 10.0),
        row(quarter.name, 0.5, 0.3, 12.0),
        row(f"{quarter.name}: all of it", 0.5, 0.3, 11.0),
        row(f"uniform like {quarter.name}", 0.1, 0.3, 13.0),
    ]
    made = {each["claim"]: each for each in script.claims(rows, [eighth, quarter])}
    assert len(made) == 2 * 5  # four needles, of which the dense model finds too few, are only compared with uniform
    values = {name.partition("4,096 tokens: ")[2]: round(each["measured"], 4) for name, each in made.items()
              if name.startswith(eighth.name)}  # fmt: skip
    assert values == {
        "single, of dense, at least": 0.98, "single, ahead of uniform reads": 0.08,
        "four, ahead of uniform reads": -0.05, "perplexity decoded, over dense": 1.01,
        "perplexity decoded, over uniform reads": 1.01,
    }  # fmt: skip
    failed = [name for name, each in made.items() if not each["holds"]]
    assert failed == [
        f"{eighth.name}, 4,096 tokens: four, ahead of uniform reads",
        f"{eighth.name}, 4,096 tokens: perplexity decoded, over uniform reads",
        f"{quarter.name}, 4,096 tokens: perplexity decoded, over {quarter.name}: all of it",
    ]
