"""Rules that read less than they keep: in the grid, in harm, in budgets, in the plan."""

from dataclasses import replace

import numpy as np
import pytest

import moa
from moa.plans.errors import MoaError
from moa.plans.plan import FULL, Plan
from moa.plans.reading import read_bytes, token_bytes
from moa.search.budget import Budget, cost, limit, parse
from moa.search.choose import choose
from moa.search.cost import Work
from moa.search.descent import _of
from moa.search.front import front
from moa.search.grid import Grid
from moa.search.harm import harm
from moa.search.lengths import Lengths
from moa.search.objective import PLAIN, READ_TEXT, Mix, candidates, objective
from moa.search.reads import finer, read_harm, reads_all, with_reads

SHARES = (128, 32, 8)


@pytest.fixture
def profile(make_profile):
    made = make_profile(layers=3, keydiff=(64,), shares=SHARES)
    return replace(made, estimators={"text": "fisher", "facts": "effect"})


@pytest.fixture
def rules(profile):
    """All candidates."""
    return candidates(profile, PLAIN, Lengths.of(profile), reads=True)


def test_the_grid_has_every_rule_at_every_share_that_changes_what_it_reads(profile, rules):
    lengths = Lengths.of(profile)
    plain = candidates(profile, PLAIN, lengths)
    assert rules.rules[: len(plain)] == plain.rules
    behaves = set()
    for rule, kept in zip(rules.rules, rules.keeping[1], strict=True):
        figures = [int(read_bytes(rule.read256, n, Plan.from_rules(profile.model, {}, defaults=rule).spans(n)[0, 0],
                                  rule.given, 64)) for n in lengths.all]  # fmt: skip
        behaves.add((int(kept), *figures, rule.read256 if rule.read < 1 else 256))
        assert rules.keeping[0].rules[kept] == rule.model_copy(update={"read": 1.0})
    assert len(behaves) == len(rules)
    for share in finer(SHARES):
        tried = Grid(rule.model_copy(update={"read": share / 256}) for rule in plain.rules)
        less = {rule for i, rule in enumerate(tried.rules) if not all(reads_all(tried, n, 64)[i] for n in lengths.all)}
        assert {rule for rule in rules.rules if rule.read256 == share} == less
        assert len(less) > len(plain) // 4


def test_harm_of_reads_is_the_formula(profile, rules):
    for cut, half in ((("text", 512), 2), (("text", 1024), 2), (("facts", 1024), 1)):
        table, found = profile.reads.tables[cut], read_harm(profile, rules, cut)
        for i in range(0, len(rules), 17):
            rule = rules.rules[i]
            kept, n = int(rules.spans(cut[1])[i]), cut[1]
            variant = profile.variants.index((rule.pattern, rule.sink))
            for group in range(found.shape[0]):
                layer, head = divmod(group, 2)
                wanted = 0.0
                if rule.read < 1 and read_bytes(rule.read256, n, kept, rule.given, 64) < kept * token_bytes(64):
                    at = {share: max(float(x) for x in table[variant, : j + 1, layer, head])
                          for j, share in enumerate(SHARES)}  # fmt: skip
                    wanted = at.get(rule.read256) or (at[128] * at[32] if rule.read256 == 64 else at[32] * at[8]) ** 0.5
                assert found[group, i] == pytest.approx(wanted / (half * profile.reads.rows[cut]))


def test_between_two_shares_stands_their_geometric_mean_and_its_harm(profile):
    assert finer((128, 64, 32, 16, 8)) == (128, 91, 64, 45, 32, 23, 16, 11, 8)
    assert finer((128,)) == (128,)
    assert finer((3, 2)) == (3, 2)  # no whole number lies between
    cut = "facts", 1024
    table = profile.reads.tables[cut]
    table[0, :, 0, 0], table[0, :, 0, 1] = (1.0, 4.0, 25.0), (-1.0, 6.0, 6.0)
    rules = Grid(FULL.reading(share) for share in finer(SHARES))
    found = read_harm(profile, rules, cut) * profile.reads.rows[cut]
    assert found[0] == pytest.approx([1.0, 2.0, 4.0, 10.0, 25.0])
    assert found[1] == pytest.approx([0.0, 6.0, 6.0, 6.0, 6.0])  # a mean with no harm would be none
    for share in (200, 100, 4):
        with pytest.raises(MoaError, match=f"rules must read one of 128, 64, 32, 16, 8 in 256, found {share}"):
            read_harm(profile, Grid([FULL.reading(share)]), cut)


def test_to_read_more_never_costs_more(profile, rules):
    keeping, which = rules.keeping
    for cut in profile.cuts:
        found = read_harm(profile, rules, cut)
        for kept in range(0, len(keeping), 5):
            mine = np.flatnonzero(which == kept)
            order = mine[np.argsort(-rules.read256[mine])]
            assert (np.diff(found[:, order], axis=1) >= 0).all()
            assert (found[:, order[0]] == 0).all()


def test_what_reading_improves_counts_as_no_harm(profile, rules):
    for table in profile.reads.tables.values():
        np.negative(table, out=table)
    assert not read_harm(profile, rules, ("facts", 1024)).any()


def test_the_objective_adds_reads_to_what_a_rule_costs_and_leaves_the_scale(profile, rules):
    lengths, plain = Lengths.of(profile), candidates(profile, PLAIN, Lengths.of(profile))
    keeping, which = rules.keeping
    before, found = objective(profile, plain, PLAIN, lengths), objective(profile, rules, PLAIN, lengths)
    assert np.array_equal(found[:, : len(plain)], before)
    added = found - before[:, [plain.rules.index(keeping.rules[i]) for i in which]]
    text = np.zeros_like(found)
    for n in lengths.all:
        own = harm(profile, plain, ("text", min(n, 1024)), n) if n > 1024 else harm(profile, plain, ("text", n))
        text += READ_TEXT * read_harm(profile, rules, ("text", 1024), n) / own.max(1).sum() / len(lengths.all)
    alone = harm(profile, plain, ("facts", 512))
    hidden = np.max([(1 - plain.spans(n) / n) ** 0.25 for n in lengths.all], axis=0)
    narrowest = (0.7 * alone.max(1)[:, None] * hidden + 0.3 * alone).max(1).sum()
    assert np.allclose(added, text + read_harm(profile, rules, ("facts", 1024), lengths.longest) / narrowest)


@pytest.mark.parametrize("length", [500, 1024, 3000])
def test_the_cost_is_the_plans_own_and_memory_is_never_understated(profile, rules, length):
    rng, info = np.random.default_rng(length), profile.model
    for _ in range(20):
        choice = rng.integers(0, len(rules), (3, 2))
        plan = Plan.from_rules(info, {i: [rules.rules[j] for j in row] for i, row in enumerate(choice)})
        read = limit(Budget("read", 1.0, length), rules, info, 1024)
        assert read.cost[np.arange(6), choice.ravel()].sum() == pytest.approx(plan.read_density(length))
        kept = limit(Budget("kv_gb", 1.0, length, 2), rules, info, 1024)
        counted, takes = kept.cost[np.arange(6), choice.ravel()].sum(), plan.kv_bytes(length, 2, dtype="bfloat16") / 1e9
        if all(plan.reads(layer) for layer in range(3)):
            assert counted == pytest.approx(takes)
        assert counted >= takes * (1 - 1e-12)


def test_budgets_of_reads_are_kept_beside_others(profile):
    budgets = [parse("density", "0.6"), parse("read", "0.2"), parse("read", "0.3@1024")]
    plan, solution = choose(profile, budgets)
    assert plan.density(4096) <= 0.6
    assert plan.read_density(4096) <= 0.2
    assert plan.read_density(1024) <= 0.3
    assert solution.gap <= 1.1e-4
    lengths = plan.predicted.lengths
    assert plan.predicted.read_density == pytest.approx([plan.read_density(n) for n in lengths], abs=1e-4)
    assert np.mean(plan.predicted.harm) == pytest.approx(solution.value, rel=0.5)
    _, without = choose(profile, [parse("density", "0.2")])  # which reads all it keeps
    assert solution.value < without.value
    assert Plan.from_dict(plan.to_dict()) == plan


def test_everything_kept_where_only_reading_is_limited(profile):
    for table in profile.reads.tables.values():
        table *= 1e-9
    plan, _ = choose(profile, [parse("read", "0.2")])
    assert plan.density(4096) == 1
    assert plan.read_density(4096) <= 0.2
    least, solution = choose(profile, [parse("harm", "0.3")], minimise=cost("read@1024"))
    assert solution.value == pytest.approx(least.read_density(1024))


def test_everything_is_kept_where_that_is_asked_for(profile, reading):
    for table in profile.reads.tables.values():
        table *= 100  # so that windows, of which all is read, are better than to read little
    budgets = [parse("read", "0.2"), parse("read", "0.3@1024")]
    free, _ = choose(profile, budgets)
    plan, solution = choose(profile, budgets, keep_all=True)
    assert any(rule.whole != FULL for rules in free.groups.values() for rule in rules)  # a window, all of it read
    assert {rule.whole for rules in plan.groups.values() for rule in rules} == {FULL}
    assert [plan.density(n) for n in (512, 4096, 10**6)] == [1, 1, 1]
    assert plan.read_density(4096) <= 0.2
    assert plan.read_density(1024) <= 0.3
    rules = candidates(profile, PLAIN, Lengths.of(profile), reads=True)
    harms = objective(profile, rules, PLAIN, Lengths.of(profile))  # on the scale of all rules
    assert _of(plan, harms, rules).sum() == pytest.approx(solution.value)
    assert solution.value > 0
    least, _ = choose(profile, [parse("harm", str(solution.value))], minimise=cost("read@4096"), keep_all=True)
    assert least.density(4096) == 1
    assert least.read_density(4096) <= plan.read_density(4096) * 1.001
    found = moa.find_plan(profile, {"read": 0.2}, keep_all=True)
    assert found.plan.density(4096) == 1
    assert found.plan.provenance.budget == "read<=0.2@4096, keeping everything"
    row = moa.find_front(profile, 3, keep_all=True)
    assert row.axis.kind == "read"
    ends = [point.plan for point in row]
    assert [end.density(4096) for end in ends] == [1] * len(ends)
    assert ends[0].read_density(4096) < 0.1
    assert ends[0].provenance.budget.endswith(", keeping everything")
    reading = reading.model_copy(update={"model": profile.model})
    timed, _ = choose(profile, [Budget("decode_ms", 1e9, 4096)], costs=reading, keep_all=True)
    assert timed.density(4096) == 1


def test_where_everything_is_kept_nothing_else_may_be_limited(profile, known):
    for kind, text in (("density", "1"), ("kv_gb", "9@512"), ("prefill_ms", "9@512")):
        with pytest.raises(MoaError, match=f"no limit of what is kept goes with it, found {kind}"):
            choose(profile, [parse("read", "0.2"), parse(kind, text)], keep_all=True)
    with pytest.raises(MoaError, match="no limit of what is kept goes with it, found density"):
        choose(profile, [parse("harm", "0.3")], minimise=cost("density@1024"), keep_all=True)
    known = known.model_copy(update={"model": profile.model})
    with pytest.raises(MoaError, match="--keep-all chooses only what steps read: give --max-read"):
        choose(profile, [parse("decode_ms", "9e9")], costs=known, keep_all=True)
    with pytest.raises(MoaError, match=r"no plan keeps read<=0.01@4096: the smallest feasible value is 0.03"):
        choose(profile, [parse("read", "0.01")], keep_all=True)


def test_without_a_budget_of_reads_the_same_bytes_are_written(profile, tmp_path):
    for name, known in (("with", profile), ("without", replace(profile, reads=None))):
        for i, budgets in enumerate(
            ([parse("density", "0.4")], [parse("kv_gb", "0.0005@1024"), parse("density", "0.9")])
        ):
            choose(known, budgets)[0].save(tmp_path / f"{name}-{i}.yaml")
    for i in range(2):
        assert (tmp_path / f"with-{i}.yaml").read_bytes() == (tmp_path / f"without-{i}.yaml").read_bytes()
        assert "read" not in (tmp_path / f"with-{i}.yaml").read_text()


def test_a_budget_of_time_chooses_reads_where_costs_and_profile_know_them(profile, known, reading, tmp_path):
    known, reading = (each.model_copy(update={"model": profile.model}) for each in (known, reading))
    work = Work("decode", 4096)
    most = reading.fixed(work) + 0.2 * (reading.predict(Plan.dense(profile.model), work) - reading.fixed(work))
    budgets = [Budget("decode_ms", most, 4096)]
    plan, solution = choose(profile, budgets, costs=reading)
    assert plan.reads()
    assert reading.predict(plan, work) <= most * (1 + 1e-8)
    assert plan.predicted.decode_ms[-1] == pytest.approx(reading.predict(plan, work), abs=0.01)
    plain, without = choose(profile, budgets, costs=known)
    assert solution.value < without.value
    for known_of, costs in ((replace(profile, reads=None), reading), (profile, known)):
        other, _ = choose(known_of, budgets, costs=costs)
        assert not other.reads()
        assert other.groups == plain.groups
    least, _ = choose(profile, [parse("harm", "0.3")], minimise=cost("decode_ms@4096"), costs=reading)
    assert least.reads()
    assert not choose(profile, [parse("prefill_ms", "9e9")], costs=reading)[0].reads()
    ends = [point.plan for point in front(profile, 3, Budget("decode_ms", 1, 4096), costs=reading)]
    assert any(found.reads() for found in ends)
    floor = limit(budgets[0], candidates(profile, PLAIN, Lengths.of(profile), reads=True), profile.model, 4096, reading)
    assert reading.predict(ends[0], work) == pytest.approx(floor.fixed + floor.cost.min(1).sum(), rel=1e-4)
    says = "every rule reads all that it keeps: reads need {} that know them"
    for known_of, costs, line in (
        (profile, reading, ""),
        (profile, known, says.format("costs (moa measure --reads)")),
        (replace(profile, reads=None), reading, says.format("profile (moa profile --reads)")),
    ):
        question = moa.find_plan(known_of, {"decode_ms": f"{most}@4096"}, costs=costs).question
        assert question.left_out() == line
        row = moa.find_front(known_of, 2, costs=costs)
        assert row.question.left_out(row.axis) == line
    assert moa.find_plan(profile, {"density": 0.5}, costs=known).question.left_out() == ""


def test_a_descent_tells_rules_apart_by_what_they_read(profile, rules):
    plan, solution = choose(profile, [parse("read", "0.1")])
    harms = objective(profile, rules, PLAIN, Lengths.of(profile))
    assert _of(plan, harms, rules).sum() == pytest.approx(solution.value)


def test_a_profile_without_reads_is_refused(profile):
    says = "need a profile that has measured them, found none of {}: measure with moa profile --reads"
    with pytest.raises(MoaError, match=says.format("text, facts")):
        choose(replace(profile, reads=None), [parse("read", "0.2")])
    some = replace(profile.reads, tables={c: t for c, t in profile.reads.tables.items() if c[0] == "text"})
    with pytest.raises(MoaError, match=says.format("facts")):
        choose(replace(profile, reads=some), [parse("density", "0.5"), parse("read", "0.2")])


def test_from_python(profile):
    found = moa.find_plan(profile, {"density": 0.5, "read": ["0.2", "0.4@512"]}, patterns=["sink_window"])
    assert found.plan.read_density(512) <= 0.4
    assert {rule.pattern for layer in found.plan.groups.values() for rule in layer} == {"sink_window"}
    assert any(", reads 0." in line for line in found.question.kept(found.plan))


def test_other_mixes_have_reads_too(profile, rules):
    for mix in (Mix(power=0.5), Mix({"facts": 0.0}), Mix(lengths={512: 0.0})):
        assert (objective(profile, rules, mix, Lengths.of(profile))[:, rules.read256 < 256] > 0).any()
    assert len(with_reads(profile, Grid(rules.rules[:1]), Lengths((512,)))) <= 1 + len(finer(SHARES))
