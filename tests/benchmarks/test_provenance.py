"""What result files say of the run that wrote them."""

from provenance import place, provenance


def test_seeds_and_runs_are_said_where_a_script_knows_them():
    assert not {"seed", "seeds", "runs"} & set(provenance())
    found = provenance(seed=11, runs=5)
    assert (found["seed"], found["runs"]) == (11, 5)
    several = provenance(seed=range(2))
    assert several["seeds"] == [0, 1]
    assert "seed" not in several
    assert provenance(seed=0)["seed"] == 0


def test_more_runs_are_measured_in_the_same_place():
    assert place(provenance(seed=3, runs=5)) == place(provenance(seed=3, runs=9))
    assert place(provenance(seed=3)) != place(provenance(seed=4))
