"""A prompt that does not begin with what the cache holds is refused; all that goes on with it is not."""

import copy

import pytest
import torch

import moa
from moa import KVCache, Unsupported
from moa.plans.plan import Plan, Rule
from moa.runtime.transcript import MAX_PARTS, Transcript

NEW = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}


@pytest.fixture
def plan(tiny):
    return Plan.from_rules(tiny("Llama"), {}, defaults=Rule(alpha=128, beta=0.25))


@pytest.mark.parametrize("max_length", [None, 500])
@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_another_text_is_refused_before_the_first_step(tiny, tokens, plan, max_length, backend):
    model, ids = tiny("Llama"), tokens(1, 300)
    with moa.apply(model, plan, backend):
        cache = KVCache(plan, max_length)
        model.generate(ids[:, :100], past_key_values=cache, **NEW)
        held = int(cache.get_seq_length())
        for other in (ids[:, 100:], torch.cat([ids[:, :99], ids[:, 100:]], 1)):
            with pytest.raises(Unsupported, match=f"holds {held} tokens of another text than the prompt: pass"):
                model.generate(other, past_key_values=cache, **NEW)
        assert int(cache.get_seq_length()) == held
        cache.crop(-20)
        with pytest.raises(Unsupported, match=f"holds {held - 20} tokens of another text"):
            model.generate(ids[:, 100:], past_key_values=cache, **NEW)
        cache.reset()
        found = model.generate(ids[:, 100:], past_key_values=cache, **NEW)
        assert torch.equal(found, model.generate(ids[:, 100:], **NEW))


@pytest.mark.parametrize("beams", [1, 2])
def test_what_goes_on_is_taken(tiny, tokens, plan, beams):
    model, ids = tiny("Llama"), tokens(2, 200)
    mask = torch.ones_like(ids)
    mask[0, :30] = 0
    with moa.apply(model, plan):
        cache = KVCache(plan)
        said = model.generate(ids, attention_mask=mask, past_key_values=cache, **NEW)
        longer = torch.cat([said, tokens(2, 50, seed=3)], 1)
        wide = torch.cat([mask, torch.ones(2, longer.shape[1] - 200, dtype=mask.dtype)], 1)
        twin = copy.deepcopy(cache)
        longer[0, :30] = 7  # padding may hold anything
        found = model.generate(longer, attention_mask=wide, past_key_values=cache, **NEW)
        assert torch.equal(found, model.generate(longer, attention_mask=wide, **NEW))
        # One sequence of the batch, taken back by some tokens, goes on with others.
        twin.batch_select_indices(torch.tensor([1]))
        twin.crop(-20)
        other = torch.cat([said[1:, :183], tokens(1, 60, seed=4)], 1)
        if beams > 1:
            twin.batch_repeat_interleave(beams)
        found = model.generate(other, past_key_values=twin, num_beams=beams, **NEW)
        assert torch.equal(found, model.generate(other, num_beams=beams, **NEW))


def test_embeddings_are_not_known(tiny, tokens, plan):
    model, ids = tiny("Llama"), tokens(1, 200)
    with moa.apply(model, plan), torch.no_grad():
        cache = KVCache(plan)
        model(inputs_embeds=model.get_input_embeddings()(ids[:, :100]), past_key_values=cache)
        expected = model.generate(ids, **NEW)
        assert torch.equal(model.generate(ids, past_key_values=cache, **NEW), expected)


def test_a_refused_call_leaves_the_record_right(tiny, tokens, plan):
    model, ids = tiny("Llama"), tokens(1, 200)
    with moa.apply(model, plan), torch.no_grad():
        cache = KVCache(plan)
        model(ids[:, :100], past_key_values=cache)
        with pytest.raises(Unsupported):
            model(ids[:, 100:150], attention_mask=torch.ones(1, 1, 50, 150), past_key_values=cache)
        assert torch.equal(model.generate(ids, past_key_values=cache, **NEW), model.generate(ids, **NEW))


def test_many_steps_are_joined_and_taken_back():
    record, ids = Transcript(), torch.arange(1000)[None]
    for at in range(600):
        record.append(ids[:, at : at + 1], None, at)
    assert record.width == 600
    assert len(record._parts) <= MAX_PARTS
    record.crop(450)
    assert record.width == 150
    assert not record.differs(ids, None, 150)
    record.append(ids[:, 7:9], None, None)
    assert record.width == 152
    assert record.differs(ids, None, 152)
    assert not record.differs(ids, None, 151)  # steps that it has not seen: nothing is known
