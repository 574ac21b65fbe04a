"""Every way of `generate` under a plan gives what it gives without a cache, or what its parts give alone."""

import inspect
from threading import Thread

import pytest
import torch
from transformers import GenerationMixin, TextIteratorStreamer, pipeline

import moa
from moa import KVCache, Unsupported
from moa.runtime.generation import prepare_cache


@pytest.fixture(params=["reference", "torch", "numba"])
def applied(model, plan, request):
    with moa.apply(model, plan, request.param):
        yield model


def caches(plan):
    return {"of its own": None, "growing": KVCache(plan), "fixed": KVCache(plan, max_length=300)}


MODES = {
    "greedy": {"do_sample": False},
    "sampling": {"do_sample": True, "top_k": 5},
    "beam": {"do_sample": False, "num_beams": 3},
    "beam sampling": {"do_sample": True, "num_beams": 2, "num_return_sequences": 2},
    "several": {"do_sample": True, "num_return_sequences": 3},
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("padded", [False, True])
def test_modes(applied, plan, tokens, mode, padded):
    ids = tokens(2, 190)
    mask = torch.ones_like(ids)
    mask[0, : 75 * padded] = 0

    def run(**more):
        torch.manual_seed(0)
        return applied.generate(ids, attention_mask=mask, max_new_tokens=10, **MODES[mode], **more)

    expected = run(use_cache=False)
    for name, cache in caches(plan).items():
        assert torch.equal(run(past_key_values=cache), expected), name


def test_the_cache_of_generate_is_ours(applied, plan, tokens):
    out = applied.generate(tokens(2, 300), max_new_tokens=4, return_dict_in_generate=True)
    assert isinstance(out.past_key_values, KVCache)
    due = plan.kv_bytes(303, 2, torch.float64)
    assert due <= out.past_key_values.nbytes <= due * 9 / 8


@pytest.mark.parametrize("draft", [5, 39])
def test_assisted(applied, fresh, plan, tokens, draft):
    ids, assistant = tokens(1, 190), fresh(seed=0)
    with torch.no_grad():
        assistant.lm_head.weight.add_(0.02 * torch.randn_like(assistant.lm_head.weight))  # agrees now and then
    assistant.generation_config.num_assistant_tokens = draft
    assistant.generation_config.num_assistant_tokens_schedule = "constant"
    assistant.generation_config.assistant_confidence_threshold = 0.0
    greedy = {"max_new_tokens": 40, "do_sample": False}
    expected = applied.generate(ids, **greedy)
    for name, cache in caches(plan).items():
        found = applied.generate(ids, assistant_model=assistant, past_key_values=cache, **greedy)
        assert torch.equal(found, expected), name
    with moa.apply(assistant, plan):
        assert torch.equal(applied.generate(ids, assistant_model=assistant, **greedy), expected)


def test_prompt_lookup(applied, tokens):
    ids = tokens(1, 60).repeat(1, 3)
    expected = applied.generate(ids, max_new_tokens=20, do_sample=False)
    found = applied.generate(ids, max_new_tokens=20, do_sample=False, prompt_lookup_num_tokens=8)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("chunk", [1, 50, 64, 100])
def test_prefill_in_chunks(applied, plan, tokens, chunk):
    n, pads = (90, 5) if chunk == 1 else (190, 80)
    ids, mask = tokens(2, n), torch.ones(2, n, dtype=torch.int64)
    mask[1, :pads] = 0  # the first chunks of the second row are padding alone
    greedy = {"attention_mask": mask, "max_new_tokens": 8, "do_sample": False}
    expected = applied.generate(ids, **greedy)
    for name, cache in caches(plan).items():
        found = applied.generate(ids, prefill_chunk_size=chunk, past_key_values=cache, **greedy)
        assert torch.equal(found, expected), name


@pytest.mark.parametrize("fixed", [False, True])
def test_chat_of_several_turns(applied, plan, tokens, fixed):
    cache = KVCache(plan, max_length=400) if fixed else KVCache(plan)
    text = tokens(1, 0)
    for turn in range(4):
        text = torch.cat([text, tokens(1, 60, turn)], 1)
        fresh = applied.generate(text, max_new_tokens=15, do_sample=False)
        text = applied.generate(text, max_new_tokens=15, do_sample=False, past_key_values=cache)
        assert torch.equal(text, fresh)


@pytest.mark.parametrize("fixed", [False, True])
def test_inference_mode_and_out_of_it(applied, plan, tokens, fixed):
    cache = KVCache(plan, max_length=300) if fixed else KVCache(plan)
    greedy = {"max_new_tokens": 8, "do_sample": False}
    text = tokens(1, 190)
    expected = applied.generate(applied.generate(text, **greedy), **greedy)
    with torch.inference_mode():
        text = applied.generate(text, past_key_values=cache, **greedy)
    assert torch.equal(applied.generate(text, past_key_values=cache, **greedy), expected)
    cache.reorder_cache(torch.tensor([0]))
    cache.crop(-3)


@pytest.fixture
def tokenizer():
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(WordLevel({str(i): i for i in range(61)}, unk_token="0"))
    words.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="0", padding_side="left")


def test_pipeline(applied, tokenizer, tokens):
    prompts = [" ".join(map(str, tokens(1, n, n)[0].tolist())) for n in (150, 30)]
    pipe = pipeline("text-generation", model=applied, tokenizer=tokenizer)
    options = {"max_new_tokens": 6, "do_sample": False, "return_full_text": False}
    together = pipe(prompts, batch_size=2, **options)
    for prompt, [found] in zip(prompts, together, strict=True):
        assert pipe(prompt, **options)[0] == found


def test_streamer(applied, tokenizer, tokens):
    ids = tokens(1, 100)
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, timeout=60)
    options = {"max_new_tokens": 6, "do_sample": False}
    thread = Thread(target=applied.generate, args=(ids,), kwargs={"streamer": streamer, **options})
    thread.start()
    text = "".join(streamer)
    thread.join()
    assert text.split() == [str(i) for i in applied.generate(ids, **options)[0, 100:].tolist()]


def test_crop_too_far_in_assisted_is_an_error(applied, plan, tokens):
    cache = KVCache(plan)
    applied.generate(tokens(1, 250), max_new_tokens=2, past_key_values=cache)
    with pytest.raises(Unsupported, match="crop"):
        cache.crop(-252)


def test_the_method_that_is_overridden_has_the_form_we_rely_on():
    theirs = list(inspect.signature(GenerationMixin._prepare_cache_for_generation).parameters)
    ours = list(inspect.signature(prepare_cache).parameters)
    assert theirs[1:] == ours[3:]  # behind the model, the plan and its back-ends
