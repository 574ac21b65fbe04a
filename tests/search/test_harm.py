from dataclasses import replace
from math import ceil, floor

import numpy as np
import pytest

from moa.profiler.profile import bin_size
from moa.search.grid import grid
from moa.search.harm import harm, monotone, slope


def slow_harm(profile, cut, group, rule, signed=False):
    """The documented formula, block by block in plain Python, with the window formula of docs/plan.md.

    `signed` is that of a slope: the table as it is, and no row counted twice.
    """
    length = cut[1]
    per_bin = bin_size(length) // 64
    layer, head = divmod(group, profile.model.kv_heads)
    table = profile.cuts[cut][profile.variants.index((rule.pattern, rule.sink)), layer, head]
    blocks = ceil(length / 64)
    total = 0.0
    for row in range(ceil(blocks / per_bin)):
        edges = [0]
        for b in range(row * per_bin, min((row + 1) * per_bin, blocks)):
            n = 64 * b + 1
            window = max(rule.alpha + rule.beta * n - rule.sink, 64)
            first = max(rule.sink // 64, floor((n - window) / 64))
            edges.append(0 if first <= rule.sink // 64 else ceil(first / per_bin))
        if signed:
            total += float(table[row, min(max(edges), row)])
            continue
        narrower = sum(1 for edge in edges if edge > row)
        total += (1 + narrower) * max(float(x) for x in table[row, : min(max(edges), row) + 1])
    return total / (2 * profile.tokens[cut])


@pytest.mark.parametrize(
    ("lengths", "sinks", "keydiff"),
    [
        ((512, 1024), (64,), (64,)),
        ((300,), (64, 128), ()),
        ((9000,), (64,), (64, 128)),
        ((17000,), (64, 192), ()),
        ((33000,), (64,), ()),
    ],
)
def test_harm_is_the_formula(make_profile, lengths, sinks, keydiff):
    profile = make_profile(lengths, sinks=sinks, keydiff=keydiff)
    rules = grid(lengths, profile.variants, levels=6)
    for cut in profile.cuts:
        table = harm(profile, rules, cut)
        assert table.shape == (4, len(rules))
        for i in range(0, len(rules), max(1, len(rules) // 12)):
            for group in (0, 3):
                assert table[group, i] == pytest.approx(slow_harm(profile, cut, group, rules.rules[i]), rel=1e-9)
        slopes = slope(profile, rules, cut)
        i = len(rules) // 3
        assert slopes[0, i] == pytest.approx(slow_harm(profile, cut, 0, rules.rules[i], signed=True), rel=1e-9)


@pytest.mark.parametrize("alike", [False, True])
@pytest.mark.parametrize("length", [9000, 16384, 32768])
def test_bins_of_several_blocks_never_understate(make_profile, length, alike):
    """A truth known per block and first block kept, against harm by the table that sums it over bins.

    Rows of a bin that are alike are never understated. Of rows that are not, no table tells a window within the bin.
    """
    per_bin, blocks = bin_size(length) // 64, ceil(length / 64)
    profile = make_profile((length,), sources=("text",))
    rules = grid((length,), [("sink_window", 64)], levels=8)
    rng = np.random.default_rng(length)
    b, first = np.ogrid[:blocks, :blocks]
    if alike:
        enough = rng.integers(1, 5, blocks)[b // per_bin]  # blocks behind its own that a row needs
        truth = np.where(b - first < enough, rng.exponential(1.0, blocks)[b // per_bin], 0.0)
    else:
        last = b % per_bin == per_bin - 1  # the only block of its bin to lose by a cut, from some edge on
        truth = np.where(last & (first > rng.integers(0, blocks, blocks)[b]), rng.exponential(1.0, blocks)[b], 0.0)
    truth[(first <= 1) | (first > b) | (b < per_bin)] = 0  # in the first bin the table holds nothing
    table = np.add.reduceat(truth[:, ::per_bin], np.arange(0, blocks, per_bin))
    profile.cuts["text", length][:] = table
    found = harm(profile, rules, ("text", length))
    compared = 0
    for i, firsts in enumerate(rules.first(length)):
        if alike or (-(-firsts // per_bin) <= np.arange(blocks) // per_bin)[per_bin:].all():
            true = truth[np.arange(blocks), firsts].sum() / (2 * profile.tokens["text", length])
            assert found[0, i] >= true * (1 - 1e-6)  # tables are float32
            compared += true > 0
    assert compared > len(rules) // 4


def test_what_a_cut_improves_counts_as_no_harm(make_profile):
    profile = replace(make_profile((512,), sources=("facts",)), estimators={"facts": "effect"})
    rules = grid((512,), [("sink_window", 64)])
    before = harm(profile, rules, ("facts", 512))
    squares = harm(replace(profile, estimators={}), rules, ("facts", 512))
    assert np.allclose(before, 2 * squares)  # an effect is per token, half of its square is
    for table in profile.cuts.values():
        np.negative(table, out=table)
    assert (before > 0).any()
    assert (harm(profile, rules, ("facts", 512)) == 0).all()


def test_a_longer_span_never_hurts_more(make_profile):
    profile = make_profile((1024,), sources=("text",))  # its tables rise and fall at random
    rules = grid((1024,), [("sink_window", 64)])
    first = rules.first(1024)
    table = harm(profile, rules, ("text", 1024))
    compared = 0
    for i in range(len(rules)):
        shorter = (first >= first[i]).all(1)
        compared += shorter.sum() - 1
        assert (table[:, shorter] >= table[:, [i]] - 1e-12).all()
    assert compared > 10 * len(rules)
    assert not (np.diff(profile.cuts["text", 1024], axis=-1) >= 0).all()


def test_full_attention_costs_nothing(make_profile):
    profile = make_profile((512, 1024), sinks=(64, 128))
    rules = grid((512, 1024), [("sink_window", 64), ("sink_window", 128)])
    full = rules.spans(1024) == 1024
    for cut in profile.cuts:
        table = harm(profile, rules, cut)
        assert (table[:, full] == 0).all()
        assert (table[:, ~full].max(1) > 0).all()


@pytest.mark.parametrize(("profiled", "length"), [(512, 1024), (1000, 3000), (9000, 20000)])
def test_harm_of_a_longer_text_is_the_formula(make_profile, profiled, length):
    profile = make_profile((profiled,), sinks=(64, 128))
    rules = grid((profiled, length), profile.variants, levels=6)
    cut, per_bin = ("text", profiled), bin_size(profiled) // 64
    table = monotone(profile.cuts[cut])
    bins, blocks = table.shape[3], ceil(length / 64)
    found = harm(profile, rules, cut, length)
    for i in range(0, len(rules), max(1, len(rules) // 15)):
        rule = rules.rules[i]
        mine = table[profile.variants.index((rule.pattern, rule.sink)), 1, 1]
        firsts, total = rules.first(length)[i], 0.0
        for row in range(ceil(blocks / per_bin)):
            here = firsts[row * per_bin : (row + 1) * per_bin]
            edges = [0 if first <= rule.sink // 64 else ceil(first / per_bin) for first in here]
            edge = min(edges[-1], row)
            if row < bins:
                lost = mine[row, edge]
            elif edge == 0:  # full attention
                lost = 0.0
            else:  # what the last quarter of rows loses by hiding the same share
                last = range(3 * bins // 4, bins, max(1, bins // 32))
                lost = sum(mine[other, max(1, round(other * edge / row))] for other in last) / len(last)
            total += lost * (1 + sum(each > row for each in edges))
        assert found[3, i] == pytest.approx(total / (2 * profile.tokens[cut] * length / profiled), rel=1e-9)


def test_a_text_no_longer_than_profiled_costs_what_was_measured(make_profile):
    profile = make_profile((512, 1024), sources=("text",))
    rules = grid((512, 2048), profile.variants)
    assert (harm(profile, rules, ("text", 1024), 1024) == harm(profile, rules, ("text", 1024))).all()


def test_harm_is_per_response_token(make_profile):
    profile = make_profile((512,), sources=("text",))
    rules = grid((512,), [("sink_window", 64)])
    before = harm(profile, rules, ("text", 512))
    profile.tokens["text", 512] *= 4
    assert np.allclose(harm(profile, rules, ("text", 512)), before / 4)


def test_monotone_is_the_least_monotone_table_above():
    table = np.array([[0, 3, 1, 2, 5, -1]], np.float32)
    assert monotone(table).tolist() == [[0, 3, 3, 3, 5, 5]]
    assert monotone(np.array([[-2, -1, 3]], np.float32)).tolist() == [[0, 0, 3]]  # nothing helps
