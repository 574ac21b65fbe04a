"""A call that does not go on where its cache stands is refused before anything is computed; one that does is right."""

import pytest
import torch
from feeding import positions_of
from transformers import DynamicCache

from moa import KVCache, Unsupported

KINDS = ["growing", "fixed", "stock"]
GREEDY = {"max_new_tokens": 6, "do_sample": False}


@pytest.fixture
def holding(applied, plan):
    """A cache of a kind that holds `ids`."""

    def make(kind, ids, mask=None):
        fixed = KVCache(plan, max_length=300)
        cache = {"growing": KVCache(plan), "fixed": fixed, "stock": DynamicCache(config=applied.config)}[kind]
        positions = None if mask is None else positions_of(mask)  # as `generate` counts
        with torch.no_grad():
            applied(ids, attention_mask=mask, position_ids=positions, past_key_values=cache)
        return cache

    return make


def ways(model, ids):
    """Every way to hand `ids` to `generate` as the prompt."""
    return {
        "ids": {"input_ids": ids},
        "embeddings": {"inputs_embeds": model.model.embed_tokens(ids)},
        "chunks": {"input_ids": ids, "prefill_chunk_size": 16},
        "beams": {"input_ids": ids, "num_beams": 2},
        "drafts": {"input_ids": ids, "prompt_lookup_num_tokens": 3},
    }


@pytest.mark.parametrize("way", ["ids", "embeddings", "chunks", "beams", "drafts"])
@pytest.mark.parametrize("held", [40, 41, 79, 90])
@pytest.mark.parametrize("kind", KINDS)
def test_a_prompt_that_the_cache_holds_already(applied, holding, tokens, kind, held, way):
    ids = tokens(1, 90)
    cache = holding(kind, ids[:, :held])
    with pytest.raises(Unsupported, match=f"holds {held} tokens, the prompt 40: .*one new token, or reset the cache"):
        applied.generate(**ways(applied, ids[:, :40])[way], past_key_values=cache, **GREEDY)
    assert int(cache.get_seq_length()) == held


@pytest.mark.parametrize("kind", KINDS)
def test_a_padded_batch_that_the_cache_holds_already(applied, holding, tokens, kind):
    ids, mask = tokens(2, 40), torch.ones(2, 40, dtype=torch.int64)
    mask[0, :9] = 0
    cache = holding(kind, ids, mask)
    with pytest.raises(Unsupported, match="holds 40 tokens, the prompt 40"):
        applied.generate(ids, attention_mask=mask, past_key_values=cache, **GREEDY)


@pytest.mark.parametrize("padding", [0, 9])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("new", [1, 5])
def test_the_whole_text_and_its_new_part_go_on(applied, holding, tokens, kind, padding, new):
    ids, mask = tokens(2, 40), torch.ones(2, 40, dtype=torch.int64)
    mask[0, :padding] = 0
    expected = applied.generate(ids, attention_mask=mask, use_cache=False, **GREEDY)
    for part in (slice(0, None), slice(40 - new, None)):
        cache = holding(kind, ids[:, :-new], mask[:, :-new])
        found = applied.generate(ids[:, part], attention_mask=mask, past_key_values=cache, **GREEDY)
        assert torch.equal(found[:, -6:], expected[:, -6:])


@pytest.mark.parametrize("kind", KINDS)
def test_a_mask_that_is_no_mask_of_cached_and_new_tokens(applied, holding, tokens, kind):
    ids = tokens(1, 50)
    cache = holding(kind, ids[:, :40])
    for columns in (44, 46, 80):
        with pytest.raises(
            Unsupported, match=r"the one in column 40 is given position|must have a column for each of 45"
        ):
            applied.generate(
                ids[:, 40:45], attention_mask=torch.ones(1, columns), past_key_values=cache, **GREEDY
            )  # fmt: skip


def test_embeddings_of_new_tokens_alone(applied, holding, tokens):
    """Transformers takes embeddings for the whole text."""
    ids = tokens(1, 70)
    embeddings, cache = applied.model.embed_tokens(ids[:, 20:]), holding("growing", ids[:, :20])
    with pytest.raises(Unsupported, match="column 20 is given position 40"):
        applied.generate(
            inputs_embeds=embeddings, attention_mask=torch.ones(1, 70), past_key_values=cache, **GREEDY
        )  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_drafts_from_a_cache_that_holds_a_text(applied, holding, tokens, kind):
    ids = tokens(1, 40)
    with pytest.raises(Unsupported, match="assisted generation from a cache that holds 20 tokens"):
        applied.generate(ids, past_key_values=holding(kind, ids[:, :20]), prompt_lookup_num_tokens=3, **GREEDY)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("padding", "first", "right"), [(0, 20, True), (0, 0, False), (0, 19, False), (0, 21, False), (7, 13, True),
    (7, 20, True), (7, 12, False), (7, 21, False)],
)  # fmt: skip
def test_positions_in_a_call_of_ones_own(applied, holding, tokens, kind, padding, first, right):
    ids, mask = tokens(1, 30), torch.ones(1, 30, dtype=torch.int64)
    mask[:, :padding] = 0
    cache = holding(kind, ids[:, :20], mask[:, :20])
    call = {"past_key_values": cache, "attention_mask": mask, "position_ids": torch.arange(first, first + 10)[None]}
    with torch.no_grad():
        if right:
            applied(ids[:, 20:], **call)
            assert int(cache.get_seq_length()) == 30
        else:
            with pytest.raises(Unsupported, match=f"column 20 is given position {first}"):
                applied(ids[:, 20:], **call)
            with pytest.raises(Unsupported, match=f"column 20 is given position {first}"):
                applied(ids[:, 20:], mask, call["position_ids"], cache)  # by place, not by name


def test_texts_packed_into_one_row_with_a_cache(applied, plan, tokens):
    positions = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3]])
    with pytest.raises(Unsupported, match="column 4 is given position 0"):
        applied(tokens(1, 8), position_ids=positions, past_key_values=KVCache(plan))


def test_the_position_of_a_padded_token_is_of_no_account(applied, plan, tokens):
    mask = torch.ones(1, 20, dtype=torch.int64)
    mask[:, 5:9] = 0
    positions = (mask.cumsum(1) - 1).masked_fill(mask == 0, 77)
    applied(tokens(1, 20), attention_mask=mask, position_ids=positions, past_key_values=KVCache(plan))
