"""Rules whose sinks hold the keys most unlike others, against the masked model over each whole text."""

import copy

import pytest
import torch
from feeding import feed, padded, positions_of
from torch._dynamo.utils import counters
from transformers import CompileConfig, DynamicCache

import moa
from moa import KVCache, Plan, Unsupported
from moa.plans.patterns import KeyDiffWindow, Rule
from moa.plans.span import Reach

BACKENDS = ["reference", "torch", "numba"]


def same(found, expected):
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("seed", range(2))
def test_forward_without_a_cache(model, keydiff_plan, tokens, oracle, backend, seed):
    plan, ids = keydiff_plan(model, seed), tokens(1, 517, seed)
    with moa.apply(model, plan, backend), torch.no_grad():
        found = model(ids, use_cache=False).logits[0]
    same(found, oracle(model, plan, ids[0]))


@pytest.mark.parametrize("max_length", [None, 600])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("news", [[400, *[1] * 150], [190, *[1] * 70], [130, 64, 63, 2, 200, 1, 1, 70], [64] * 7])
def test_a_cache_fed_in_parts(model, keydiff_plan, tokens, oracle, backend, news, max_length):
    plan, ids = keydiff_plan(model, len(news)), tokens(2, sum(news))
    with moa.apply(model, plan, backend), torch.no_grad():
        found = feed(model, KVCache(plan, max_length), ids, news)
    for row in range(2):
        same(found[row], oracle(model, plan, ids[row]))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("cached", [False, True, 460])
def test_padding_on_both_sides(model, keydiff_plan, tokens, oracle, backend, cached):
    plan, ids, spans = keydiff_plan(model, 2), tokens(4, 460), [(37, 460), (0, 401), (64, 130), (0, 460)]
    mask = padded(ids, spans)
    with moa.apply(model, plan, backend), torch.no_grad():
        if cached:
            found = feed(
                model, KVCache(plan, None if cached is True else cached), ids, [300, 1, 1, 100, *[1] * 58], mask
            )
        else:
            positions = positions_of(mask)
            found = model(ids, attention_mask=mask, position_ids=positions, use_cache=False).logits
    for row, (a, b) in enumerate(spans):
        same(found[row, a:b], oracle(model, plan, ids[row, a:b]))


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_users_dynamic_cache(model, keydiff_plan, tokens, oracle, backend):
    plan, ids = keydiff_plan(model, 3), tokens(1, 420)
    with moa.apply(model, plan, backend), torch.no_grad():
        found = feed(model, DynamicCache(config=model.config), ids, [200, 1, 130, *[1] * 20, 69])
    same(found[0], oracle(model, plan, ids[0]))


@pytest.mark.parametrize("max_length", [None, 600])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("back", [1, 30, 64])
def test_tokens_taken_back_leave_the_sinks_as_they_were(model, keydiff_plan, tokens, oracle, backend, back, max_length):
    plan = keydiff_plan(model, 1)
    for n in (257, 300, 320):
        ids, other = tokens(1, n), tokens(1, 140, seed=9)
        whole = torch.cat([ids[:, : n - back], other], 1)
        with moa.apply(model, plan, backend), torch.no_grad():
            cache = KVCache(plan, max_length)
            feed(model, cache, tokens(1, 330), [330])
            cache.reset()
            feed(model, cache, ids, [n - 70, *[1] * 70])
            cache.crop(-back)
            found = [feed(model, cache, whole, [1, 1, 66])[0, :4]]
            cache.crop(-64)  # and again, once as many came
            found.append(feed(model, cache, whole, [100, *[1] * 36])[0])
        same(torch.cat(found), oracle(model, plan, whole[0])[n - back :])


@pytest.mark.parametrize("max_length", [None, 600])
def test_steps_within_a_block_do_not_compute_again_what_leaves(model, keydiff_plan, tokens, monkeypatch, max_length):
    calls, first = [], Reach.first
    monkeypatch.setattr(Reach, "first", lambda self, block: calls.append(block) or first(self, block))
    plan, ids = keydiff_plan(model, 1), tokens(2, 400)
    with moa.apply(model, plan), torch.no_grad():
        cache = KVCache(plan, max_length)
        feed(model, cache, ids, [320, 1, 1])
        calls.clear()
        feed(model, cache, ids, [1] * 62)
        assert not calls
        feed(model, cache, ids, [1])
        assert calls  # a block has begun


@pytest.mark.parametrize("max_length", [None, 600])
def test_steps_enter_a_block_again_after_a_crop_and_a_chunk(model, keydiff_plan, tokens, oracle, max_length):
    plan, ids = keydiff_plan(model, 1), tokens(1, 400)
    with moa.apply(model, plan), torch.no_grad():
        cache = KVCache(plan, max_length)
        feed(model, cache, ids, [374, *[1] * 20])
        cache.crop(-20)
        found = feed(model, cache, ids, [10, 1, 1])[0]
    same(found, oracle(model, plan, ids[0, :386])[374:])


def test_what_left_twice_cannot_come_back(model, tokens):
    """A growing rule's ring may hold blocks that a sink of other keys has taken apart."""
    plan = Plan.from_rules(model, {}, defaults=KeyDiffWindow(alpha=128, beta=0))
    with moa.apply(model, plan), torch.no_grad():
        cache = KVCache(plan)
        feed(model, cache, tokens(1, 300), [300])
        cache.crop(-44)
        cache.crop(-20)
        with pytest.raises(Unsupported, match="up to 64 tokens at a time can always be cropped"):
            cache.crop(-60)
        assert cache.lengths.tolist() == [236]


@pytest.mark.parametrize("max_length", [None, 600])
def test_beams_repeats_and_copies_are_independent(model, keydiff_plan, tokens, oracle, max_length):
    plan, ids = keydiff_plan(model, 1), tokens(3, 400)
    rest = tokens(4, 130, seed=5)
    with moa.apply(model, plan), torch.no_grad():
        cache = KVCache(plan, max_length)
        feed(model, cache, ids, [400])
        cache.reorder_cache(torch.tensor([2, 0, 0]))
        twin = copy.deepcopy(cache)
        twin.batch_select_indices(torch.tensor([1, 2]))
        twin.batch_repeat_interleave(2)
        order = [0, 0, 0, 0]
        whole = torch.cat([ids[order], rest], 1)
        same(feed(model, twin, whole, [1, 60, *[1] * 69])[3], oracle(model, plan, whole[3])[400:])
        whole = torch.cat([ids[[2, 0, 0]], rest[:3]], 1)
        found = feed(model, cache, whole, [*[1] * 70, 60])
    for row in range(3):
        same(found[row], oracle(model, plan, whole[row])[400:])


def test_other_keys_are_held_than_the_first(model, tokens, oracle):
    """The oracle above is of these rules, not of windows with the same numbers."""
    ids = tokens(1, 400)
    plans = [Plan.from_rules(model, {}, defaults=kind(alpha=128, beta=0)) for kind in (KeyDiffWindow, Rule)]
    found = []
    for plan in plans:
        with moa.apply(model, plan), torch.no_grad():
            found.append(model(ids).logits[0])
        assert plan.kv_bytes(400) == plans[0].kv_bytes(400)
        assert plan.density(400) == plans[0].density(400)
    assert torch.equal(found[0][:192], found[1][:192])  # until the second block leaves
    assert (found[0][192:] - found[1][192:]).abs().amax(1).min() > 1e-6


def test_bytes_allocated_are_the_plans(model, keydiff_plan, tokens):
    plan = keydiff_plan(model, 1)
    with moa.apply(model, plan), torch.no_grad():
        cache, ids = KVCache(plan), tokens(2, 600)
        for new, n in ((1, 1), (300, 301), (199, 500), (100, 600)):
            feed(model, cache, ids, [new])
            due = plan.kv_bytes(n, 2, torch.float64)
            assert due <= cache.nbytes <= due * 9 / 8


@pytest.mark.parametrize("compiler", ["aot_eager", pytest.param("inductor", marks=pytest.mark.full)])
def test_a_compiled_step_moves_keys(fresh, keydiff_plan, tokens, compiler):
    """Blocks end at other steps in each row; a crop, a reordering and a reset between steps need no other graph."""
    model = fresh(dtype=torch.float32)
    plan, mask, after = keydiff_plan(model, 1), torch.ones(3, 420, dtype=torch.int64), []
    mask[1, :43], mask[2, 100:120] = 0, 0
    torch._dynamo.reset()
    counters.clear()
    with moa.apply(model, plan), torch.no_grad():
        caches = KVCache(plan, max_length=420), KVCache(plan, max_length=420)
        forwards = model.forward, torch.compile(model.forward, backend=compiler, fullgraph=True)
        assert caches[0].is_compileable
        for forward, cache in zip(forwards, caches, strict=True):
            ids, logits = tokens(3, 420), []

            def step(ids, end, forward=forward, cache=cache):
                inputs = model.prepare_inputs_for_generation(
                    ids[:, :end], next_sequence_length=1, past_key_values=cache, attention_mask=mask[:, :end],
                    position_ids=positions_of(mask)[:, :end], use_cache=True,
                )  # fmt: skip
                return forward(**inputs).logits

            feed(model, cache, ids, [120, 180], mask)
            logits += [step(ids, end) for end in range(301, 371)]
            before = [layer.sinks.folded.tolist() for layer in cache.layers]
            cache.crop(-64)
            assert before != [layer.sinks.folded.tolist() for layer in cache.layers]
            ids[:, 306:] = tokens(3, 114, seed=4)
            logits += [step(ids, end) for end in range(307, 320)]
            cache.reorder_cache(torch.tensor([0, 1, 1]))
            mask[2], ids[2] = mask[1], ids[1]
            logits += [step(ids, end) for end in range(320, 345)]
            cache.reset()
            mask[:] = 1
            feed(model, cache, ids, [190], mask)
            logits += [step(ids, end) for end in range(191, 260)]
            after.append(torch.cat(logits, 1))
            mask[1, :43], mask[2, 100:120] = 0, 0
    torch.testing.assert_close(*after, rtol=0, atol=1e-4)
    for mine, theirs in zip(caches[1].layers, caches[0].layers, strict=True):
        assert torch.equal(mine.sinks.folded, theirs.sinks.folded)
        assert torch.equal(mine.sinks.position, theirs.sinks.position)
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]


def test_generate_compiles_with_a_fixed_cache(fresh, keydiff_plan, tokens):
    model, ids = fresh(dtype=torch.float32), tokens(2, 250)
    plan = keydiff_plan(model, 1)
    torch._dynamo.reset()
    counters.clear()
    with moa.apply(model, plan):
        config = CompileConfig(backend="aot_eager", fullgraph=True, mode=None)
        config._compile_all_devices = True  # transformers compiles for GPUs alone
        found = [
            model.generate(
                ids, past_key_values=KVCache(plan, max_length=400), max_new_tokens=80, do_sample=False, pad_token_id=0,
                eos_token_id=None, **extra,
            )
            for extra in ({"disable_compile": True}, {"compile_config": config})
        ]  # fmt: skip
    assert torch.equal(*found)
    assert counters["stats"]["unique_graphs"] == 1


@pytest.mark.parametrize("family", ["Mistral", "Qwen2", "Qwen3", "Phi3", "Gemma3"])
def test_families(tiny, keydiff_plan, tokens, oracle, family):
    model, ids = tiny(family), tokens(1, 350)
    plan = keydiff_plan(model, 2)
    with moa.apply(model, plan), torch.no_grad():
        found = feed(model, KVCache(plan), ids, [270, *[1] * 80])
    same(found[0], oracle(model, plan, ids[0]))
