"""What a cache allocates, frees, refuses and says of itself."""

import copy
import gc
import weakref
from functools import partial

import numpy as np
import pytest
import torch
from feeding import run
from transformers import DynamicCache

import moa
from moa import KVCache, MoaError, Plan, Unsupported
from moa.kernels.store import Store


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backend", ["reference", "torch", "numba"])
def test_bytes_allocated_are_the_plans(tiny, plan, tokens, dtype, backend):
    model, ids = tiny(dtype=dtype), tokens(2, 700)
    with moa.apply(model, plan, backend), torch.no_grad():
        cache = KVCache(plan)
        assert cache.nbytes == cache.live_bytes == 0
        for n in (1, 64, 65, 200, 201, 400, 600, 700):
            assert run(model, cache, ids[:, :n]).isfinite().all()
            due = plan.kv_bytes(n, 2, dtype)
            assert due <= cache.nbytes <= due * 9 / 8
            assert cache.live_bytes <= due
        fixed = KVCache(plan, max_length=700)
        for n in (1, 400, 700):
            run(model, fixed, ids[:, :n])
            assert fixed.nbytes == plan.kv_bytes(700, 2, dtype)
    dense = DynamicCache(config=model.config)
    with torch.no_grad():
        model(ids, past_key_values=dense)
    assert cache.nbytes < sum(layer.keys.nbytes + layer.values.nbytes for layer in dense.layers)


@pytest.mark.parametrize("max_length", [None, 300])
def test_the_first_layer_allocates_for_all(applied, plan, tokens, max_length):
    cache, held = KVCache(plan, max_length), []
    hook = applied.model.layers[0].mlp.register_forward_hook(lambda *_: held.append(cache.nbytes))
    run(applied, cache, tokens(2, 250))
    hook.remove()
    assert held == [cache.nbytes] != [0]


@pytest.mark.parametrize("max_length", [None, 300])
def test_layers_may_be_on_several_devices(plan, max_length):
    cache, layers = KVCache(plan, max_length), plan.model.ruled_layers
    k = torch.zeros(2, plan.model.kv_heads, 5, plan.model.head_size)
    cache.update(k, k, layers[0])
    for layer in layers[1:]:
        cache.layers[layer].update(k.to("meta"), k.to("meta"))
    here, there = cache.layers[layers[0]], [cache.layers[layer] for layer in layers[1:]]
    assert there
    assert here.batch is not there[0].batch
    assert all(layer.device.type == "meta" and layer.batch is there[0].batch for layer in there)
    if max_length is not None:
        assert all(layer.store.k.device.type == "meta" for layer in there)


@pytest.mark.parametrize("max_length", [None, 300])
def test_a_cache_no_longer_used_is_freed_at_once(applied, plan, tokens, max_length):
    """Not when Python next looks for cycles, and gigabytes later: by hand, copied, and as `generate` makes it."""
    ids = tokens(2, 150)
    gc.collect()
    gc.disable()
    try:
        cache = KVCache(plan, max_length)
        for n in (50, 100, 150):
            run(applied, cache, ids[:, :n])
        cache.crop(-3)
        twin = copy.deepcopy(cache)
        layers = [*cache.layers, *twin.layers]
        kept = [weakref.ref(layer.store.k) for layer in layers if hasattr(layer, "store")]
        del layers
        assert all(x() is not None for x in kept)
        del cache, twin
        assert all(x() is None for x in kept)
        before = sum(type(x) is Store for x in gc.get_objects())
        applied.generate(ids, max_new_tokens=3, do_sample=False)
        assert sum(type(x) is Store for x in gc.get_objects()) == before
    finally:
        gc.enable()


def test_keys_of_another_dtype_are_refused(applied, plan, tokens):
    cache = KVCache(plan)
    run(applied, cache, tokens(1, 5))
    k = torch.zeros(1, plan.model.kv_heads, 1, plan.model.head_size, dtype=torch.bfloat16)
    with pytest.raises(Unsupported, match=r"holds torch\.float64, the model's keys are now torch\.bfloat16"):
        cache.update(k, k, 0)


def test_bytes_follow_true_lengths(applied, plan, tokens):
    ids, mask = tokens(3, 600), torch.ones(3, 600, dtype=torch.int64)
    mask[0, :590], mask[1, :400] = 0, 0
    cache = KVCache(plan)
    run(applied, cache, ids, mask)
    due = plan.kv_bytes([10, 200, 600], dtype=torch.float64)
    assert cache.lengths.tolist() == [10, 200, 600]
    assert due <= cache.nbytes <= due * 9 / 8


def test_sliding_layers_are_counted(tiny, random_plan, tokens):
    model, ids = tiny("Gemma3"), tokens(2, 300)
    plan, cache = random_plan(model, 0), KVCache(random_plan(model, 0))
    with moa.apply(model, plan), torch.no_grad():
        run(model, cache, ids)
    due = plan.kv_bytes(300, 2, torch.float64)
    assert due <= cache.nbytes <= due * 9 / 8


def test_growth_copies_a_constant_share(model, random_plan):
    """Growing one token at a time to n moves O(n) slots in all."""
    rules = KVCache(Plan.dense(model)).layers[0].rules
    room, moved = np.zeros(1, np.int64), 0
    for n in range(1, 20_001):
        if n > room[0]:
            moved += int(room[0])
            room = rules.reserve(np.array([n]))
            assert n <= room[0] <= -(-n // 64) * 64 * 9 / 8
    assert moved < 12 * 20_000


@pytest.mark.parametrize("max_length", [None, 400])
@pytest.mark.parametrize("backend", ["reference", "torch", "numba"])
def test_reset_reuses(tiny, plan, tokens, oracle, max_length, backend):
    model, cache = tiny(), KVCache(plan, max_length)
    for seed in range(2):
        ids = tokens(1, 330, seed)
        with moa.apply(model, plan, backend), torch.no_grad():
            found = torch.cat([run(model, cache, ids[:, :n])[0] for n in (190, 318, 319, 330)])
        torch.testing.assert_close(found, oracle(model, plan, ids[0]), rtol=0, atol=1e-10)
        allocated = cache.nbytes
        cache.reset()
        assert cache.get_seq_length() == 0
        assert cache.nbytes == (allocated if max_length else 0)


@pytest.mark.parametrize("max_length", [None, 400])
def test_layers_need_one_mask(applied, plan, tokens, max_length):
    ids, cache = tokens(2, 20), KVCache(plan, max_length)
    mask = torch.ones(2, 20, dtype=torch.int64)
    mask[0, :3] = 0

    def change(module, args, kwargs, by):
        return args, kwargs | {"attention_mask": kwargs["attention_mask"] ^ by}

    layer = applied.model.layers[1]
    with layer.register_forward_pre_hook(partial(change, by=False), with_kwargs=True):  # a copy
        run(applied, cache, ids[:, :10], mask[:, :10])
    with (
        layer.register_forward_pre_hook(partial(change, by=True), with_kwargs=True),
        pytest.raises(Unsupported, match="different attention masks"),
    ):
        run(applied, cache, ids, mask)


@pytest.mark.parametrize("max_length", [None, 400])
def test_a_refused_call_changes_nothing(applied, plan, tokens, max_length):
    ids, cache, wrong = tokens(1, 20), KVCache(plan, max_length), torch.ones(1, 20, dtype=torch.int64)
    run(applied, cache, ids[:, :10])
    wrong[0, 2] = 0
    with pytest.raises(Unsupported, match="hides or shows"):
        run(applied, cache, ids, wrong)
    whole = KVCache(plan)
    torch.testing.assert_close(run(applied, cache, ids), run(applied, whole, ids)[:, 10:], rtol=0, atol=1e-12)
    assert cache.batch_size == 1


def test_max_length_is_a_limit(applied, plan, tokens):
    cache = KVCache(plan, max_length=100)
    run(applied, cache, tokens(1, 100))
    for new in (1, 2):
        with pytest.raises(Unsupported, match="max_length 100"):
            applied(tokens(1, new), past_key_values=cache)
    with pytest.raises(Unsupported, match="max_length 100"):
        applied.generate(tokens(1, 90), max_new_tokens=30, past_key_values=KVCache(plan, max_length=100))
    with pytest.raises(MoaError, match="1 or more"):
        KVCache(plan, max_length=0)


def test_batch_size_may_not_change(applied, plan, tokens):
    cache = KVCache(plan)
    run(applied, cache, tokens(2, 8))
    with pytest.raises(Unsupported, match="batch of 2"):
        applied(tokens(3, 1), past_key_values=cache)


def test_what_it_says_of_itself(plan):
    growing, fixed = KVCache(plan), KVCache(plan, max_length=100)
    assert (growing.is_compileable, fixed.is_compileable) == (False, True)
    assert growing.is_croppable
    assert fixed.is_croppable
    assert (growing.get_max_length(), fixed.get_max_length()) == (-1, 100)
    assert len(growing) == len(fixed) == plan.model.layers
    assert growing.lengths is None


@pytest.mark.parametrize("max_length", [None, 100])
def test_a_call_cut_short_is_noticed(applied, plan, tokens, max_length):
    ids, cache = tokens(1, 20), KVCache(plan, max_length)
    run(applied, cache, ids[:, :10])

    def fail(*_):
        raise KeyboardInterrupt

    hook = applied.model.layers[1].register_forward_pre_hook(fail)
    with pytest.raises(KeyboardInterrupt):
        run(applied, cache, ids)
    hook.remove()
    with pytest.raises(Unsupported, match=r"layer 1 holds 10 tokens, layer 0 held 20: .* cut short"):
        applied(ids[:, :1], past_key_values=cache)
    cache.reset()
    assert run(applied, cache, ids).isfinite().all()


def test_float32_is_as_exact_as_the_library(tiny, random_plan, tokens, oracle):
    exact, single = tiny(dtype=torch.float64), tiny(dtype=torch.float32)
    plan, ids = random_plan(exact, 1), tokens(1, 330)
    truth = oracle(exact, plan, ids[0])
    error = (oracle(single, plan, ids[0]) - truth).abs().max()
    for backend in ("reference", "torch", "numba"):
        cache = KVCache(plan)
        with moa.apply(single, plan, backend), torch.no_grad():
            found = torch.cat([run(single, cache, ids[:, :n])[0] for n in (200, 300, 301, 330)])
        assert (found - truth).abs().max() <= 4 * error
