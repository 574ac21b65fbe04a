"""The benchmarks of the search, without a model: what they write, and that they go on where they were stopped."""

import json
import sys
from importlib import import_module

import pytest

from moa.plans.plan import Plan, Rule
from moa.search.cost import Costs

PLACE = {"device": "abacus", "threads": 1, "backend": "torch", "dtype": "float32"}


TERMS = {
    "decode": {"step": 20.0, "sequence": 1.5, "block": 0.5, "keydiff": 0.1},
    "prefill": {
        "step": 30.0, "token": 0.1, "whole": 2e-5, "windowed": 4e-5, "chunk": 0.01, "keydiff": 5e-5,
        "keydiff_chunk": 0.02,
    },
}  # fmt: skip
READS = {"page": 0.05, "summary": 0.005}
"""Terms of plans that read less than they keep, which only runs with `--reads` find."""


@pytest.fixture(scope="module")
def searched(make_profile):
    """A profile, and the plans that the cost model is tested on; searching for them takes a while."""
    profile = make_profile(lengths=(2048, 8192), keydiff=(64,))
    return profile, import_module("cost_model").plans(profile)


@pytest.fixture
def cost_model(searched, monkeypatch, tmp_path):
    """Runs benchmarks/cost_model.py on a model whose times a callable makes from those of TERMS; returns calls, output.

    The callable is told which of the plan's runs it is; the plans of the fit take what TERMS say.
    """
    module = import_module("cost_model")
    profile, plans = searched
    profile.save(tmp_path / "p.safetensors")
    terms = {"decode": TERMS["decode"] | READS, "prefill": TERMS["prefill"]}
    costs = Costs(model=profile.model, environment=PLACE, terms=terms, error={}, measured=())
    truth, calls, stop_after, times = {}, [], [10**6], [lambda work, ms, visit: ms]
    fitted = {plan.fingerprint() for plan in module.probes(profile.model, max(module.FIT)).values()}

    def run(plan, work):
        if len(calls) == stop_after[0]:
            raise KeyboardInterrupt
        calls.append((plan.fingerprint(), work))
        known = plan.fingerprint(), work
        ms = truth[known] = truth.get(known) or costs.predict(plan, work)
        return [ms if plan.fingerprint() in fitted else times[0](work, ms, calls.count(calls[-1]))] * 3

    monkeypatch.setattr(module, "plans", lambda _: plans)
    monkeypatch.setattr(module, "load_model", lambda *_, **__: (profile.model, None))
    monkeypatch.setattr(module, "provenance", lambda *_, **__: {"command": "python benchmarks/cost_model.py", **PLACE})
    monkeypatch.setattr(module, "runner", lambda *_: run)

    def main(*args, stop=10**6, timed=times[0]):
        stop_after[0], times[0] = stop, timed
        given = ["model", tmp_path / "p.safetensors", "--output", tmp_path / "out", *args]
        monkeypatch.setattr(sys, "argv", ["cost_model.py", *map(str, given)])
        module.main()
        return json.loads((tmp_path / "out.json").read_text())

    return main, calls, tmp_path / "out"


CELLS = ("--decode-lengths", "2048", "8192", "--prefill-lengths", "2048")
RUNS = 6 * (4 + 2) + 8 * (4 + 1)
"""In a round: of the fit's plans and of the tested ones."""


def test_cost_model(cost_model, capsys):
    main, calls, out = cost_model
    with pytest.raises(KeyboardInterrupt):
        main(*CELLS, stop=150)
    found = main(*CELLS)
    assert len(calls) == 4 * RUNS  # stopped and gone on: nothing twice, and no more rounds where nothing varies
    before = calls.copy()
    assert main(*CELLS) == found
    assert calls == before
    assert len(found["rows"]) == 8 * 5
    assert all(row["predicted"] == pytest.approx(row["ms"], rel=1e-3) for row in found["rows"])
    assert found["terms"]["decode"] == pytest.approx(TERMS["decode"], rel=1e-3)
    assert {claim["holds"] for claim in found["claims"]} == {True}
    assert len(found["claims"]) > 4
    judged = [cell for cell in found["cells"] if cell["span"] >= 0.2]
    assert len(judged) == len(found["claims"]) - 2 * (2 + len(found["cells"]))  # error and bias: of kinds, of cells
    assert [Plan.from_dict(plan).fingerprint() for plan in found["plans"].values()] == [
        call[0] for call in calls if call[0] in {Plan.from_dict(plan).fingerprint() for plan in found["plans"].values()}
    ][:8]
    assert found["profile"]["digest"].startswith("sha256:")
    assert all(cell["resolved"] and cell["rank"] == pytest.approx(1) for cell in judged)
    assert found["run"]["command"] == "python benchmarks/cost_model.py"
    assert "Unresolved, with the largest standard error of a median: none." in capsys.readouterr().out
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_plans_that_read_less_decode_too_where_asked_for(cost_model, make_profile, monkeypatch):
    module, (main, calls, _) = import_module("cost_model"), cost_model
    found = module.reading(make_profile((512, 1024), shares=(32, 16)))
    assert list(found) == ["reading 0.125", "reading 0.0625", "reading 0.125 everywhere"]
    assert all(plan.reads() and plan.read_density(4096) <= 0.125 for plan in found.values())
    model = make_profile(lengths=(2048, 8192), keydiff=(64,)).model
    few = {"reading 0.125 everywhere": Plan.from_rules(model, {}, defaults=Rule(alpha=0, beta=1, read=0.125))}
    monkeypatch.setattr(module, "reading", lambda _: few)
    result = main("--decode-lengths", "8192", "--prefill-lengths", "2048", "--reads")
    assert result["terms"]["decode"] == pytest.approx(TERMS["decode"] | READS, rel=1e-3)
    assert {(row["kind"], row["length"]) for row in result["rows"] if row["plan"] in few} == {("decode", 8192)}
    assert len(calls) == 4 * ((6 + 3) * 4 + 6 * 2 + (8 + 1) * 2 + 8)
    assert all(row["predicted"] == pytest.approx(row["ms"], rel=1e-3) for row in result["rows"])


def test_times_of_another_commit_are_measured_again(cost_model, monkeypatch):
    main, calls, _ = cost_model
    main("--decode-lengths", "2048", "--batches", "1", "--prefill-lengths")
    before = len(calls)
    monkeypatch.setattr(import_module("cost_model"), "provenance", lambda *_, **__: {"commit": "another", **PLACE})
    monkeypatch.setattr(import_module("cost_model"), "about", lambda _: "")
    main("--decode-lengths", "2048", "--batches", "1", "--prefill-lengths")
    assert len(calls) == 2 * before


def test_a_profile_that_is_not_there_is_one_line(cost_model, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["cost_model.py", "model", str(tmp_path / "none.safetensors")])
    assert import_module("cost_model").main() == 2
    assert capsys.readouterr().err.startswith("error: no profile at")


def test_a_model_that_is_slower_than_predicted_misses_error_and_bias(cost_model):
    found = cost_model[0](*CELLS, timed=lambda work, ms, visit: 1.1 * ms)
    missed = {claim["claim"] for claim in found["claims"] if not claim["holds"]}
    where = {"decode", "prefill"} | {
        f"{c['kind']} at {c['length']:,} tokens, batch {c['batch']}" for c in found["cells"]
    }  # fmt: skip
    assert missed == {f"{each}: {what}, at most" for each in where for what in ("median error", "bias either way")}


def test_a_model_that_is_wrong_in_one_cell_alone_misses_its_error_there(cost_model):
    def slower(work, ms, visit):
        return 1.1 * ms if (work.kind, work.length, work.batch) == ("decode", 8192, 4) else ms

    found = cost_model[0](*CELLS, timed=slower)
    missed = {claim["claim"] for claim in found["claims"] if not claim["holds"]}
    where = "decode at 8,192 tokens, batch 4"
    assert missed == {f"{where}: median error, at most", f"{where}: bias either way, at most"}


def test_one_cell_in_the_wrong_order_misses_its_aim_and_no_other(cost_model):
    def turned(work, ms, visit):
        return 1e4 / ms if (work.kind, work.length, work.batch) == ("decode", 8192, 4) else ms

    found = cost_model[0](*CELLS, timed=turned)
    ranks = [claim for claim in found["claims"] if "rank" in claim["claim"]]
    assert [claim["claim"] for claim in ranks if not claim["holds"]] == [
        "decode at 8,192 tokens, batch 4: rank correlation, at least"
    ]
    assert min(claim["measured"] for claim in ranks) == pytest.approx(-1)


def test_a_cell_that_never_settles_is_listed_as_unresolved(cost_model):
    def unsteady(work, ms, visit):
        return ms * (2 if (work.kind, visit % 2) == ("prefill", 1) else 1)

    main, _, out = cost_model
    found = main(*CELLS, "--prefill-rounds", "6", timed=unsteady)
    assert {cell["rounds"] for cell in found["cells"] if cell["kind"] == "prefill"} == {6}
    assert {cell["rounds"] for cell in found["cells"] if cell["kind"] == "decode"} == {4}
    *near, claim = (claim for claim in found["claims"] if claim["claim"].startswith("prefill at 2,048"))
    assert all(each["claim"].endswith("(unresolved)") and each["measured"] > 0 for each in near)
    assert claim["claim"].endswith("(unresolved)")
    assert (claim["measured"], claim["holds"]) == (None, False)
    assert (
        "largest standard error of a median: prefill at 2,048 tokens, batch 1 (" in out.with_suffix(".md").read_text()
    )


def test_only_plans_that_are_predicted_apart_are_ranked():
    module = import_module("cost_model")
    assert module.apart([1.0, 1.02, 1.031, 1.2, 1.21, 0.5]) == [5, 0, 2, 3]
