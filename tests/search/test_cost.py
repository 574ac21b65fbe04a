import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moa.plans.errors import BudgetInfeasible, MoaError, ModelMismatch
from moa.plans.patterns import KeyDiffWindow
from moa.plans.plan import Plan, Rule
from moa.plans.reading import choices, read_bytes, summary_bytes, token_bytes
from moa.search.budget import Budget, limit, parse
from moa.search.choose import choose
from moa.search.cost import Costs, Measured, Work
from moa.search.grid import grid


@settings(max_examples=25)
@given(
    st.sampled_from([Rule, KeyDiffWindow]), st.sampled_from([64, 128, 192]), st.integers(-500, 3000),
    st.integers(0, 256), st.integers(1, 2500),
)  # fmt: skip
def test_pairs_are_those_of_the_mask(make_profile, kind, sink, alpha, beta256, n):
    info = make_profile(layers=1).model
    counts = Costs(model=info, environment={}, error={}, measured=(), terms={
        "decode": {"step": 0, "sequence": 0, "block": 1, "keydiff": 1000},
        "prefill": dict.fromkeys(("step", "token", "chunk"), 0) | dict.fromkeys(("whole", "windowed", "keydiff"), 1)
        | {"keydiff_chunk": 1e6},
    })  # fmt: skip
    rule = kind(sink=sink, alpha=alpha, beta=beta256 / 256)
    plan = Plan.from_rules(info, {0: [rule, Rule(alpha=0, beta=1)]})
    moves = kind is KeyDiffWindow
    pairs = plan.reach(0).span(np.arange(1, n + 1)).sum()
    assert counts.predict(plan, Work("prefill", n, 3)) == pytest.approx(3 * (pairs + moves * 1e6 * -(-n // 64)))
    assert counts.predict(plan, Work("decode", n, 3)) == pytest.approx(
        3 * plan.kv_bytes(n) / plan.model.token_bytes("float32") / 64 + moves * 1000
    )


def test_files(info, known, tmp_path):
    path = tmp_path / "costs.json"
    path.write_text(known.model_dump_json())
    assert Costs.load(path) == known
    row = Measured(plan="dense", kind="decode", length=512, batch=1, ms=2.0, iqr=0.125, predicted=1.9)
    known = known.model_copy(update={"measured": (row,)})
    path.write_text(known.model_dump_json().replace('"iqr"', '"spread"'))  # of files from before
    assert Costs.load(path) == known
    for text, says in [
        ("{", "costs.json"),
        ("[]", "moa measure"),
        (known.model_dump_json().replace('"version":1', '"version":2'), "version"),
        (known.model_dump_json().replace('"block"', '"blocks"'), "terms of decode"),
        (known.model_dump_json().replace(',"block":0.02', ""), "found 'step 20, .*measure again with `moa measure`"),
        (known.model_dump_json().replace("0.02", "-0.02"), "0 or more"),
        (known.model_dump_json().replace("0.02", "NaN"), "finite number, found nan"),
        (known.model_dump_json().replace("0.02", "Infinity"), "finite number, found inf"),
        ("", "moa measure"),
        ("\0" * 64, "moa measure"),
        (known.model_copy(update={"environment": {"device": "abacus"}}).model_dump_json(), "threads, .* dtype missing"),
    ]:
        path.write_text(text)
        with pytest.raises(MoaError, match=says) as error:
            Costs.load(path)
        assert "\n" not in str(error.value)
    with pytest.raises(MoaError, match="no-such"):
        Costs.load(tmp_path / "no-such.json")


def test_costs_cut_at_any_byte_are_refused(known, tmp_path):
    whole, path = known.model_dump_json().encode(), tmp_path / "costs.json"
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        with pytest.raises(MoaError, match=r"costs\.json is not a file of costs"):
            Costs.load(path)


@pytest.mark.parametrize("text", ["27@1024", "28.5@2048x3"])
@pytest.mark.parametrize("shared", [None, {"full_attention": (4, 5)}])
def test_time_budgets_are_the_costs_own_predictions(info, known, text, shared):
    info = info.model_copy(update={"layers": 6 if shared else 4, "shared": shared})
    known = known.model_copy(update={"model": info})
    rules, budget = grid((512, 1024), [("sink_window", 64), ("keydiff_window", 64)]), parse("decode_ms", text)
    kept = limit(budget, rules, info, 1024, known)
    assert kept.name == str(budget) == f"decode_ms<={text}"
    choice = np.arange(8) * 3
    assert len({rules.rules[int(r)].pattern for r in choice}) == 2
    plan = Plan.from_rules(info, {i: [rules.rules[int(r)] for r in choice[2 * i : 2 * i + 2]] for i in range(4)})
    found = kept.fixed + kept.cost[np.arange(8), choice].sum()
    work = Work("decode", budget.length, budget.batch)
    assert found == pytest.approx(known.predict(plan, work))
    layers = [known.per_group(work, plan.groups[source]).sum() for source in info.sources.values()]
    assert found == pytest.approx(known.fixed(work) + sum(layers))


def test_a_plan_keeps_its_times(make_profile, known):
    profile = make_profile(layers=4)
    budgets = []
    for kind, share in (("decode", 0.5), ("prefill", 0.75)):
        fixed, dense = known.fixed(Work(kind, 1024)), known.predict(Plan.dense(profile.model), Work(kind, 1024))
        budgets.append(Budget(f"{kind}_ms", fixed + share * (dense - fixed), 1024))
    plan, _ = choose(profile, budgets, costs=known)
    for budget, kind in zip(budgets, known.terms, strict=True):
        assert known.fixed(Work(kind, 1024)) < known.predict(plan, Work(kind, 1024)) <= budget.most * (1 + 1e-8)


def test_files_from_before_a_pattern_price_the_others(make_profile, known, tmp_path):
    terms = {
        kind: {name: ms for name, ms in each.items() if "keydiff" not in name} for kind, each in known.terms.items()
    }
    path = tmp_path / "costs.json"
    path.write_text(known.model_copy(update={"terms": terms}).model_dump_json())
    old, profile = Costs.load(path), make_profile(layers=4)
    plan, _ = choose(profile, [parse("decode_ms", "40@1024")], costs=old)
    assert old.predict(plan, Work("prefill", 1024)) == known.predict(plan, Work("prefill", 1024))
    other = make_profile(layers=4, keydiff=(64,))
    for budget in (parse("decode_ms", "40@1024"), parse("density", "0.5")):
        with pytest.raises(MoaError, match=r"^these costs lack keydiff, decode terms of keydiff_window: measure again"):
            choose(other, [budget], costs=old)
    with pytest.raises(MoaError, match=r"lack keydiff, keydiff_chunk, prefill terms of keydiff_window: measure again"):
        old.per_group(Work("prefill", 1024), [KeyDiffWindow(alpha=128, beta=0)])


@settings(max_examples=40)
@given(st.data(), st.integers(17, 4000), st.integers(1, 4))
def test_a_step_that_reads_less_pays_for_the_bytes_that_it_reads(make_profile, data, n, batch):
    info, token, summary = make_profile(layers=1).model, token_bytes(64), summary_bytes(64)
    terms = {"step": 0, "sequence": 0, "block": 64 * token, "page": 4 * token, "summary": summary}
    known = Costs(model=info, environment={}, error={}, measured=(), terms={"decode": terms})
    rules = [
        Rule(
            alpha=data.draw(st.integers(0, 3000)), beta=data.draw(st.integers(0, 256)) / 256,
            read=data.draw(st.sampled_from([1, 8, 32, 200])) / 256,
        ) for _ in range(2)
    ]  # fmt: skip
    spans = Plan.from_rules(info, {0: rules}).spans(n)[0]
    read = [int(read_bytes(rule.read256, n, kept, rule.given, 64)) for rule, kept in zip(rules, spans, strict=True)]
    each = known.per_group(Work("decode", n, batch), rules)
    for rule, kept, bytes_, found in zip(rules, spans, read, each, strict=True):
        if bytes_ < kept * token and choices(kept, rule.given):
            assert found == pytest.approx(batch * bytes_)
        else:  # all that is kept, in whole blocks
            whole = rule.model_copy(update={"read": 1.0})
            assert found == known.per_group(Work("decode", n, batch), [whole])[0]


def test_costs_without_reads_say_so_and_predict_what_they_did(make_profile, known, reading, tmp_path):
    info, path = known.model, tmp_path / "costs.json"
    assert reading.know_reads
    assert not known.know_reads
    path.write_text(reading.model_dump_json())
    assert Costs.load(path) == reading
    for plan in (Plan.dense(info), Plan.uniform(info, 0.3, at=1024)):
        for work in (Work("decode", 1024, 2), Work("prefill", 1024)):
            assert reading.predict(plan, work) == known.predict(plan, work)
    less = Plan.from_rules(info, {}, defaults=Rule(alpha=0, beta=1, read=1 / 16))
    assert reading.predict(less, Work("decode", 4096)) < known.predict(Plan.dense(info), Work("decode", 4096))
    assert known.predict(less, Work("prefill", 4096)) == known.predict(Plan.dense(info), Work("prefill", 4096))
    says = (
        r"^these costs know nothing of rules that read less than they keep: measure again with `moa measure --reads`$"
    )
    with pytest.raises(MoaError, match=says):
        known.predict(less, Work("decode", 4096))
    with pytest.raises(MoaError, match=says):
        choose(make_profile(layers=4, shares=(64, 16)), [parse("read", "0.5")], costs=known)


def test_refusals(make_profile, known):
    profile = make_profile(layers=4)
    with pytest.raises(MoaError, match=r"decode_ms<=5@1024 needs measured costs: moa measure"):
        choose(profile, [parse("decode_ms", "5@1024")])
    with pytest.raises(ModelMismatch, match=r"costs measured on another model.*layers: 4 against 3"):
        choose(make_profile(layers=3), [parse("decode_ms", "5@1024")], costs=known)
    with pytest.raises(ModelMismatch, match=r"costs measured on another model"):  # whatever the budget
        choose(make_profile(layers=3), [parse("density", "0.5")], costs=known)
    with pytest.raises(BudgetInfeasible, match=r"decode_ms<=5@1024: the smallest feasible value is 22\."):
        choose(profile, [parse("decode_ms", "5@1024")], costs=known)
    decode_only = known.model_copy(update={"terms": {"decode": known.terms["decode"]}})
    with pytest.raises(MoaError, match="know nothing of prefill"):
        choose(profile, [parse("prefill_ms", "500@1024")], costs=decode_only)
