"""Plans that read less than they keep: which tokens read, and that all else stays as it was."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from feeding import feed, padded, run
from transformers import DynamicCache

import moa
from moa import KVCache, Plan, Unsupported
from moa.kernels.registry import BACKENDS, TORCH
from moa.plans.patterns import KeyDiffWindow, Rule

WHOLE = Rule(alpha=0, beta=1, read=1 / 4)
MOVING = KeyDiffWindow(sink=128, alpha=200, beta=0.25, read=3 / 8)
READS = [spec.name for spec in BACKENDS if "read" in spec.can and spec.takes("cpu")]
each = pytest.mark.parametrize("backend", READS)


def same(found, expected):
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


def newest(n, *calls):
    """Which of `n` tokens read, the last of which come in `calls` of so many tokens."""
    short = np.concatenate([np.zeros(n - sum(calls), bool), *(np.full(c, c <= 16) for c in calls)])
    return short.astype(bool)


@pytest.fixture
def plan(model):
    """Each layer has a group that reads beside one that does not, or whose sink moves."""
    return Plan.from_rules(model, {0: [WHOLE, Rule(alpha=0, beta=1)], 1: [MOVING, WHOLE]})


@each
@torch.no_grad()
@pytest.mark.parametrize("calls", [(16,), (17,), (1,), (16, 1, 17, 5)])
def test_up_to_16_new_tokens_read(model, plan, oracle, tokens, backend, calls):
    ids = tokens(1, 380 + sum(calls))
    expected = oracle(model, plan, ids[0], newest(ids.shape[1], *calls))[380:]
    with moa.apply(model, plan, backend):
        found = feed(model, KVCache(plan), ids, [380, *calls])[0, 380:]
    same(found, expected)
    whole = oracle(model, plan, ids[0])[380:]
    assert ((found - whole).abs().amax(1) > 1e-3).any() == any(c <= 16 for c in calls)


@each
@torch.no_grad()
def test_a_prompt_of_16_tokens_reads_all_it_has(model, plan, tokens, backend):
    ids, kept = tokens(2, 17), without_reads(plan)
    for n in (16, 17):
        with moa.apply(model, plan, backend):
            found = run(model, KVCache(plan), ids[:, :n])
        with moa.apply(model, kept, backend):
            assert torch.equal(found, run(model, KVCache(kept), ids[:, :n]))


@each
@torch.no_grad()
def test_a_batch_may_begin_with_padding_alone(model, plan, oracle, tokens, backend):
    """The store has no slot then, and grows at the next call."""
    ids = tokens(1, 330)
    mask = padded(ids, [(2, 330)])
    with moa.apply(model, plan, backend):
        found = feed(model, KVCache(plan), ids, [2, 327, 1], mask)
    same(found[0, 2:], oracle(model, plan, ids[0, 2:], newest(328, 1)))


@each
@torch.no_grad()
def test_the_last_token_of_a_text_reads_if_it_comes_alone(model, plan, oracle, tokens, backend):
    ids = tokens(1, 301)
    with moa.apply(model, plan, backend):
        at_once = run(model, KVCache(plan), ids)[0]
        in_chunks = feed(model, KVCache(plan), ids, [100, 100, 100, 1])[0]
    same(at_once, oracle(model, plan, ids[0]))
    same(in_chunks, oracle(model, plan, ids[0], newest(301, 1)))
    assert (at_once[-1] - in_chunks[-1]).abs().max() > 1e-3


@each
@torch.no_grad()
def test_each_sequence_of_a_batch_reads_by_its_own_new_tokens(model, plan, oracle, tokens, backend):
    """Of 40 columns one sequence fills all, one 16, one none, and one crosses into the next block with 10."""
    ids = tokens(4, 420)
    mask = padded(ids, [(0, 420), (0, 396), (0, 380), (64, 390)])
    with moa.apply(model, plan, backend):
        found = feed(model, KVCache(plan), ids, [380, 40], mask)
    for row, (begin, end) in enumerate([(0, 420), (0, 396), (0, 380), (64, 390)]):
        n = end - begin
        same(found[row, begin:end], oracle(model, plan, ids[row, begin:end], newest(n, *[end - 380] * (end > 380))))


@each
@torch.no_grad()
def test_stock_caches_give_the_same(model, plan, oracle, tokens, backend):
    ids = tokens(1, 401)
    with moa.apply(model, plan, backend):
        found = feed(model, DynamicCache(config=model.config), ids, [387, 1, 12, 1])[0, 387:]
    same(found, oracle(model, plan, ids[0], newest(401, 1, 12, 1))[387:])


@each
@torch.no_grad()
@pytest.mark.parametrize("max_length", [None, 460])
def test_copies_of_a_prefix_are_independent(model, plan, oracle, tokens, backend, max_length):
    """They go on with other tokens, in turns, which fill pages and blocks whose summaries each must have for itself."""
    prefix, calls = tokens(1, 387), (1, 12, 1, 40, 5, 1)
    texts = [torch.cat([prefix, tokens(1, 60, seed)], 1) for seed in (1, 2)]
    with moa.apply(model, plan, backend):
        first = KVCache(plan, max_length)
        run(model, first, prefix)
        caches, parts = (first, copy.deepcopy(first)), ([], [])
        for call in calls:
            for ids, cache, found in zip(texts, caches, parts, strict=True):
                found.append(feed(model, cache, ids, [call])[0])
    for ids, found in zip(texts, parts, strict=True):
        same(torch.cat(found), oracle(model, plan, ids[0], newest(447, *calls))[387:])


@each
@torch.no_grad()
@pytest.mark.parametrize("max_length", [None, 460])
def test_beams_repeats_and_selections_are_independent(model, plan, oracle, tokens, backend, max_length):
    """Rows that were one text go on with tokens of their own, and change places between the calls."""
    ids, calls = tokens(3, 380), (12, 40, 1)
    with moa.apply(model, plan, backend):
        cache = KVCache(plan, max_length)
        run(model, cache, ids)
        cache.reorder_cache(torch.tensor([2, 0, 0]))
        whole = torch.cat([ids[[2, 0, 0]], tokens(3, 12, seed=5)], 1)
        found = [feed(model, cache, whole, [12])]
        cache.batch_select_indices(torch.tensor([1, 2]))
        cache.batch_repeat_interleave(2)
        order = torch.tensor([1, 1, 2, 2])
        whole = torch.cat([whole[order], tokens(4, 41, seed=6)], 1)
        found = torch.cat([found[0][order], feed(model, cache, whole, [40, 1])], 1)
    for row in range(4):
        same(found[row], oracle(model, plan, whole[row], newest(433, *calls))[380:])


@each
@torch.no_grad()
@pytest.mark.parametrize("max_length", [None, 460])
def test_beam_search_scores_texts_as_each_alone(model, plan, oracle, tokens, backend, max_length):
    """Scores are those of the texts that were found, each by itself."""
    ids, new = tokens(2, 400), 12
    options = {
        "max_new_tokens": new, "min_new_tokens": new, "do_sample": False, "num_beams": 3, "num_return_sequences": 3,
        "length_penalty": 0.0, "return_dict_in_generate": True, "output_scores": True, "pad_token_id": 0,
    }  # fmt: skip
    with moa.apply(model, plan, backend):
        out = model.generate(ids, past_key_values=KVCache(plan, max_length), **options)
    assert len({tuple(text) for text in out.sequences.tolist()}) == 6
    for text, score in zip(out.sequences, out.sequences_scores, strict=True):
        logits = oracle(model, plan, text[:-1], newest(399 + new, *[1] * (new - 1)))
        expected = logits.log_softmax(-1)[range(399, 399 + new), text[400:]].sum()
        torch.testing.assert_close(score.double(), expected, rtol=0, atol=1e-4)  # the search adds up in float32


@each
@torch.no_grad()
def test_drafts_are_refused_since_the_first_come_in_the_call_of_the_prompt(model, plan, tokens, backend):
    """That call reads all that is kept, so other tokens could come than without drafts."""
    ids, found = tokens(1, 30).repeat(1, 12), []
    options = {"max_new_tokens": 20, "do_sample": False}
    for drafts in ({"prompt_lookup_num_tokens": 5}, {"assistant_model": copy.deepcopy(model)}):
        with moa.apply(model, plan, backend), pytest.raises(Unsupported, match=r"drafts .* leave the drafts out"):
            model.generate(ids, **drafts, **options)
        with moa.apply(model, plan.whole, backend):
            found += [model.generate(ids, **drafts, **options), model.generate(ids, **options)]
    assert all(torch.equal(found[0], each) for each in found[1:])


@each
@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_plans_that_read_all_they_keep_run_as_without_reads(fresh, tokens, backend, dtype):
    """Bit for bit: at 700 tokens the windows fit into what is read, and the other group's keys lie in its floor."""
    model = fresh(dtype=dtype)
    few, floor = Rule(alpha=128, beta=0, read=1 / 2), KeyDiffWindow(sink=704, alpha=0, beta=0, read=1 / 256)
    plan = Plan.from_rules(model, {0: [few, few], 1: [floor, few]})
    ids, kept = tokens(2, 720), without_reads(plan)
    results = []
    for of in (plan, kept):
        with moa.apply(model, of, backend):
            results.append(feed(model, KVCache(of), ids, [700, 1, 1, 9, 1, 8]))
    assert torch.equal(*results)


@torch.no_grad()
def test_bytes_predicted_are_those_allocated(model, plan, tokens):
    with moa.apply(model, plan, backend="reference"):
        fixed, growing = KVCache(plan, max_length=420), KVCache(plan)
        for cache in (fixed, growing):
            run(model, cache, tokens(3, 420))
    assert fixed.nbytes == plan.kv_bytes(420, 3, "float64")
    assert plan.kv_bytes(420, 3, "float64") <= growing.nbytes <= 9 / 8 * plan.kv_bytes(420, 3, "float64")
    assert growing.live_bytes <= growing.nbytes
    for layer in plan.model.ruled_layers:
        rules = [rule.model_copy(update={"read": 1 if layer else rule.read}) for rule in plan.groups[0]]
        assert KVCache(Plan.from_rules(model, {0: rules, 1: rules})).layers[layer].rules.reads == (rules[0].read < 1)


def test_a_back_end_that_cannot_read_pages_is_refused_at_once(model, plan, monkeypatch):
    less = replace(TORCH, can=tuple(ability for ability in TORCH.can if ability != "read"))
    monkeypatch.setattr("moa.runtime.attention.find", lambda name: less)
    refused = rf"^back-end torch cannot read less than a plan keeps: choose .*{READS[0]}"
    with pytest.raises(Unsupported, match=refused):
        moa.apply(model, plan, "torch")
    with pytest.raises(Unsupported, match=refused):
        moa.evaluate_plans((model, None), {"reading": plan}, lengths=(256,), backend="torch")
    moa.apply(model, without_reads(plan), "torch").remove()


def test_head_sizes_without_summaries_are_refused(fresh):
    model = fresh(head_dim=6)
    with pytest.raises(Unsupported, match=r"^rules with read need .* a multiple of 4, found 6: leave read out$"):
        moa.apply(model, Plan.from_rules(model, {0: [WHOLE] * 2, 1: [WHOLE] * 2}))


def test_compiled_graphs_are_refused(model, plan, tokens):
    cache = KVCache(plan, max_length=64)
    assert not cache.is_compileable
    with moa.apply(model, plan, "reference"), torch.no_grad():
        run(model, cache, tokens(1, 20))
        step = torch.compile(model, backend="eager", fullgraph=True)
        with pytest.raises(Exception, match="inside a compiled graph of back-end reference: run the model uncompiled"):
            step(tokens(1, 1), past_key_values=cache)


def test_a_fixed_cache_compiles_where_the_back_end_reads_in_graphs(model, plan):
    """It learns of the back-end when a model generates with it, or by the first call."""
    fixed, growing = KVCache(plan, max_length=64), KVCache(plan)
    for backends, compiles in ((["triton"], True), (["torch", "triton"], False), (["numba"], False)):
        for cache in (fixed, growing):
            cache.serve(backends)
        assert (fixed.is_compileable, growing.is_compileable) == (compiles, False)


def without_reads(plan):
    groups = {layer: [rule.model_copy(update={"read": 1.0}) for rule in rules] for layer, rules in plan.groups.items()}
    return Plan.from_rules(plan.model, groups)
