"""Models that rotate long texts in another way (Phi-3's longrope): the cache that they drop stays under the plan."""

import copy
from types import SimpleNamespace

import pytest
import torch
from transformers import DynamicCache

import moa
from moa import KVCache, Unsupported
from moa.bench import timing
from moa.evaluation.haystack import Haystack, Question
from moa.evaluation.rows import Row
from moa.evaluation.tasks.needles import ask
from moa.runtime.variant import Variant

LIMIT = 128
ROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0] * 8,
    "long_factor": [4.0] * 8,
    "original_max_position_embeddings": LIMIT,
}
GREEDY = {"max_new_tokens": 12, "do_sample": False}


@pytest.fixture(scope="module")
def model(fresh):
    return fresh("Phi3", rope_parameters=ROPE, original_max_position_embeddings=LIMIT, max_position_embeddings=1024)


def caches(plan):
    return {"none": None, "growing": KVCache(plan), "fixed": KVCache(plan, max_length=300)}


@pytest.mark.parametrize("beams", [1, 2])
@pytest.mark.parametrize("n", [110, 120, 127, 128, 129, 200])
def test_generate_across_the_limit(applied, plan, tokens, n, beams):
    ids = tokens(2, n)
    expected = applied.generate(ids, use_cache=False, num_beams=beams, **GREEDY)
    for name, cache in caches(plan).items():
        out = applied.generate(
            ids, past_key_values=cache, num_beams=beams, return_dict_in_generate=True, **GREEDY
        )  # fmt: skip
        assert torch.equal(out.sequences, expected), name
        assert isinstance(out.past_key_values, KVCache), name
        assert cache is None or out.past_key_values is cache
        assert int(out.past_key_values.get_seq_length()) == n + 11
        assert out.past_key_values.nbytes > 0


@pytest.mark.parametrize("fixed", [False, True])
def test_padded_batch_across_the_limit(applied, plan, tokens, fixed):
    """The model drops its cache by columns, its rotary embedding counts tokens."""
    ids, mask = tokens(1, 120), torch.ones(1, 120, dtype=torch.int64)
    mask[:, :5] = 0
    cache = KVCache(plan, max_length=300) if fixed else KVCache(plan)
    more = {"attention_mask": mask, "do_sample": False}
    found = applied.generate(ids, max_new_tokens=12, past_key_values=cache, **more)
    assert torch.equal(found, applied.generate(ids, max_new_tokens=12, use_cache=False, **more))
    with pytest.raises(Unsupported, match="keys of texts over 128 tokens"):
        applied.generate(ids, max_new_tokens=40, past_key_values=KVCache(plan), **more)


def test_chat_across_the_limit(applied, plan, tokens):
    cache, text = KVCache(plan), tokens(1, 0)
    for turn in range(5):
        text = torch.cat([text, tokens(1, 30, turn)], 1)
        fresh = applied.generate(text, use_cache=False, **GREEDY)
        text = applied.generate(text, past_key_values=cache, **GREEDY)
        assert torch.equal(text, fresh)
        assert int(cache.get_seq_length()) == text.shape[1] - 1


@pytest.mark.parametrize("fixed", [False, True])
def test_calls_of_ones_own_across_the_limit(applied, plan, tokens, fixed):
    cache, ids = (KVCache(plan, max_length=300) if fixed else KVCache(plan)), tokens(1, 140)
    applied(ids[:, :100], past_key_values=cache)
    applied(ids[:, 100:LIMIT], past_key_values=copy.deepcopy(cache))
    with pytest.raises(Unsupported, match="over 128 tokens in another way: 100 cached and 40 new tokens"):
        applied(ids[:, 100:], past_key_values=cache)
    cache.reset()
    expected = applied(ids, use_cache=False).logits
    torch.testing.assert_close(applied(ids, past_key_values=cache).logits, expected)
    cache.crop(-20)
    with pytest.raises(Unsupported, match="over 128 tokens in another way: 120 cached and 2 new tokens"):
        applied(ids[:, 120:122], past_key_values=cache)


def test_chunks_and_drafts_across_the_limit(applied, plan, tokens):
    with pytest.raises(Unsupported, match="in another way"):
        applied.generate(tokens(1, 140), prefill_chunk_size=50, past_key_values=KVCache(plan), **GREEDY)
    with pytest.raises(Unsupported, match=r"assisted generation from 120 to 132 tokens.* after 128"):
        applied.generate(tokens(1, 120), prompt_lookup_num_tokens=3, **GREEDY)
    for n in (100, 140):
        ids = tokens(1, 10).repeat(1, n // 10)
        expected = applied.generate(ids, use_cache=False, **GREEDY)
        assert torch.equal(applied.generate(ids, prompt_lookup_num_tokens=3, **GREEDY), expected)


def test_a_model_that_replaces_its_cache(applied, monkeypatch, tokens):
    theirs = type(applied).prepare_inputs_for_generation

    def replace(self, *args, **kwargs):
        return theirs(self, *args, **kwargs) | {"past_key_values": DynamicCache(config=self.config)}

    monkeypatch.setattr(type(applied), "prepare_inputs_for_generation", replace)
    with pytest.raises(Unsupported, match="Phi3ForCausalLM replaces its cache by a DynamicCache"):
        applied.generate(tokens(1, 20), **GREEDY)


def test_the_model_has_its_methods_back(model, plan):
    before = dict(vars(model))
    with moa.apply(model, plan):
        assert "prepare_inputs_for_generation" in vars(model)
    assert vars(model).keys() == before.keys()


def test_decode_steps_are_timed_on_either_side(model, plan):
    for length in (100, LIMIT, 200):
        assert len(timing.decode(model, Variant(plan), length, 1, steps=2)) == 2


def test_questions_across_the_limit(model, plan, tokens):
    question = Question(tuple(tokens(1, 10, 1)[0].tolist()), "never said", 0.5)
    tokenizer = SimpleNamespace(decode=lambda ids: "never")
    for length, right in ((LIMIT - 18, True), (LIMIT - 17, False), (LIMIT, False), (LIMIT + 1, True)):
        hay = Haystack(tuple(tokens(1, length)[0].tolist()), (question,))
        for row in (Row("dense", None), Row("plan", plan)):
            if right:
                assert ask(model, tokenizer, row, hay)["right"] == [False]
            else:
                with pytest.raises(Unsupported, match=f"{length} tokens, .* up to {length + 18}: .* texts over 128"):
                    ask(model, tokenizer, row, hay)
