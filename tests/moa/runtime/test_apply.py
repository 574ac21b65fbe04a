import copy

import pytest
import torch
from feeding import feed, padded, positions_of
from transformers import AttentionInterface, DynamicCache

import moa
from moa import KVCache, Unsupported


@pytest.mark.parametrize("backend", ["reference", "torch", "numba"])
@pytest.mark.parametrize("cached", [False, True])
def test_padding_on_both_sides_in_forward(model, plan, tokens, oracle, backend, cached):
    ids = tokens(4, 260)
    spans = [(37, 260), (0, 201), (64, 130), (0, 260)]
    mask = padded(ids, spans)
    positions = positions_of(mask)
    cache = KVCache(plan) if cached else None
    with moa.apply(model, plan, backend), torch.no_grad():
        found = model(ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=cached).logits
    for row, (a, b) in enumerate(spans):
        torch.testing.assert_close(found[row, a:b], oracle(model, plan, ids[row, a:b]), rtol=0, atol=1e-10)
    if cache is not None:
        assert cache.lengths.tolist() == [b - a for a, b in spans]
        assert cache.get_seq_length() == 260


def test_a_row_of_padding_alone_gives_zero(model, plan, tokens):
    ids = tokens(2, 70)
    outputs = []
    hook = model.model.layers[0].self_attn.o_proj.register_forward_pre_hook(lambda _, args: outputs.append(args[0]))
    with moa.apply(model, plan), torch.no_grad():
        logits = model(ids, attention_mask=padded(ids, [(0, 0), (0, 70)])).logits
    hook.remove()
    assert torch.equal(outputs[0][0], torch.zeros_like(outputs[0][0]))
    assert outputs[0][1].abs().min() > 0
    assert logits.isfinite().all()


@pytest.mark.parametrize("backend", ["reference", "torch", "numba"])
def test_left_padding_in_generate(model, plan, tokens, backend):
    ids = tokens(3, 200)
    pads = [0, 71, 150]
    mask = padded(ids, [(a, 200) for a in pads])
    with moa.apply(model, plan, backend):
        together = model.generate(ids, attention_mask=mask, max_new_tokens=10, do_sample=False)
        for row, a in enumerate(pads):
            alone = model.generate(ids[row : row + 1, a:], max_new_tokens=10, do_sample=False)
            assert torch.equal(together[row, a:], alone[0])


@pytest.mark.parametrize("backend", ["reference", "torch", "numba"])
def test_dynamic_cache_of_the_user_stays_right(model, plan, tokens, oracle, backend):
    ids = tokens(2, 250)
    mask = padded(ids, [(20, 250), (0, 250)])
    cache = DynamicCache(config=model.config)
    with moa.apply(model, plan, backend), torch.no_grad():
        found = feed(model, cache, ids, (100, 1, 80, 1, 1, 67), mask)
    torch.testing.assert_close(found[0, 20:], oracle(model, plan, ids[0, 20:]), rtol=0, atol=1e-10)
    torch.testing.assert_close(found[1], oracle(model, plan, ids[1]), rtol=0, atol=1e-10)


def traces(model):
    """Everything that applying could leave behind, by module."""
    return [
        (name, sorted(vars(module)), len(module._forward_pre_hooks), len(module._forward_hooks))
        for name, module in model.named_modules()
    ]


def test_remove_undoes_everything(model, plan, tokens):
    ids = tokens(2, 200)
    with torch.no_grad():
        before, traces_before = model(ids).logits, traces(model)
        generated = model.generate(ids, max_new_tokens=5, do_sample=False)
        config, implementation = model.config.to_dict(), model.config._attn_implementation
        applied = moa.apply(model, plan)
        assert not torch.equal(model(ids).logits, before)
        assert model.config.to_dict() == config  # what save_pretrained writes does not know of the plan
        applied.remove()
        applied.remove()
        assert torch.equal(model(ids).logits, before)
        assert torch.equal(model.generate(ids, max_new_tokens=5, do_sample=False), generated)
    assert traces(model) == traces_before
    assert model.config._attn_implementation == implementation


def test_an_error_inside_the_block_removes_too(model, plan):
    before = traces(model)
    with pytest.raises(RuntimeError, match="inside"), moa.apply(model, plan):
        raise RuntimeError("inside")
    assert traces(model) == before


def test_plan_by_path(model, plan, tokens, tmp_path):
    plan.save(tmp_path / "plan.yaml")
    ids = tokens(1, 200)
    with torch.no_grad():
        with moa.apply(model, plan):
            expected = model(ids).logits
        with moa.apply(model, tmp_path / "plan.yaml") as applied:
            assert torch.equal(model(ids).logits, expected)
    assert applied.plan.groups == plan.groups


def test_two_models_with_their_own_plans(fresh, random_plan, tokens, oracle):
    models = [fresh(seed=1), fresh(seed=2)]
    plans = [random_plan(model, seed) for seed, model in enumerate(models)]
    ids = tokens(1, 200)
    expected = [oracle(model, plan, ids[0]) for model, plan in zip(models, plans, strict=True)]
    with torch.no_grad(), moa.apply(models[0], plans[0]), moa.apply(models[1], plans[1]):
        for model, logits in zip(models, expected, strict=True):
            torch.testing.assert_close(model(ids).logits[0], logits, rtol=0, atol=1e-10)


def test_a_copy_of_an_applied_model_is_applied(model, plan, tokens):
    ids = tokens(1, 200)
    with torch.no_grad():
        before = model(ids).logits
        with moa.apply(model, plan):
            twin = copy.deepcopy(model)
            expected = model.generate(ids, max_new_tokens=4, do_sample=False, return_dict_in_generate=True)
        assert torch.equal(model(ids).logits, before)
        found = twin.generate(ids, max_new_tokens=4, do_sample=False, return_dict_in_generate=True)
    assert torch.equal(found.sequences, expected.sequences)
    assert isinstance(found.past_key_values, KVCache)


def test_only_the_name_is_global(model, plan):
    before = set(AttentionInterface._global_mapping)
    with moa.apply(model, plan):
        pass
    assert set(AttentionInterface._global_mapping) - before <= {"moa"}


def test_applied_names_its_back_ends(model, plan):
    assert moa.apply(model, plan).backend == ("numba",)


def test_no_plan_twice(model, plan):
    with moa.apply(model, plan), pytest.raises(Unsupported, match="remove it first"):
        moa.apply(model, plan)


def test_a_shared_config_is_refused(fresh, model, plan, tokens):
    other = type(model)(model.config).double().eval()
    with moa.apply(model, plan):
        with pytest.raises(Unsupported, match="config"):
            moa.apply(other, plan)
        with pytest.raises(Unsupported, match="config of its own"):
            other(tokens(1, 5))
    other(tokens(1, 5))


def test_unknown_back_end_leaves_the_model_alone(model, plan):
    before = traces(model)
    with pytest.raises(Unsupported, match=r"reference, torch or triton|choose one of"):
        moa.apply(model, plan, "cuda")
    assert traces(model) == before
    assert model.config._attn_implementation != "moa"


def test_a_plan_for_another_model_is_refused(fresh, plan):
    with pytest.raises(moa.ModelMismatch, match="layers"):
        moa.apply(fresh(num_hidden_layers=3), plan)
