"""What a checkpoint's own files set is honoured, overridden in words, or refused by name."""

import json
import shutil
from functools import partial

import pytest
import torch
from transformers import AutoConfig, DynamicCache, GenerationMixin

import moa
from moa import KVCache, Plan, Unsupported
from moa.hf.load import load_model
from moa.plans.plan import Rule

PROMPT = "The sea is calm today. " * 12
GREEDY = {"max_new_tokens": 8, "do_sample": False}


@pytest.fixture
def folder(model_folder, tmp_path):
    """A copy of the tiny model with settings added to its files: (generation_config.json, config.json) to its path."""

    def make(generation=None, config=None):
        path = tmp_path / "model"
        shutil.copytree(model_folder, path)
        for name, more in (("generation_config.json", generation or {}), ("config.json", config or {})):
            found = json.loads((path / name).read_text())
            (path / name).write_text(json.dumps(found | more))
        if generation is None:
            (path / "generation_config.json").unlink()  # then config.json's settings count
        Plan.from_rules(AutoConfig.from_pretrained(model_folder), {}, defaults=Rule(alpha=64, beta=0.0)).save(
            path / "plan.yaml"
        )
        (path / "prompt.txt").write_text(PROMPT)
        return path

    return make


@pytest.fixture
def generated(moa_in, monkeypatch):
    """Runs `moa generate` in a folder: its tokens, stdout and stderr."""
    ids, generate = [], GenerationMixin.generate

    def listen(*args, **kwargs):
        ids.append(generate(*args, **kwargs))
        return ids[-1]

    monkeypatch.setattr(GenerationMixin, "generate", listen)

    def run(folder):
        plan = ["--plan", "plan.yaml", "--prompt-file", "prompt.txt", "--max-new-tokens", "8"]
        code, out, err = moa_in(folder, "generate", ".", *plan)
        assert code == 0, err
        return ids[-1], out, err

    return run


@pytest.fixture(scope="module")
def alone(model_folder):
    """The text without a cache, by the tiny model under the plan, with settings given by hand."""
    model, tokenizer = load_model(model_folder)

    def run(**settings):
        ids = tokenizer(PROMPT, return_tensors="pt")["input_ids"]
        with moa.apply(model, Plan.from_rules(model, {}, defaults=Rule(alpha=64, beta=0.0))):
            more = {"attention_mask": torch.ones_like(ids), "tokenizer": tokenizer, "use_cache": False}
            return model.generate(ids, **more, **GREEDY, **settings)

    return run


OVERRIDDEN = [
    {"use_cache": False},
    {"do_sample": True, "temperature": 0.3, "top_k": 7},
    {"num_beams": 3, "length_penalty": 0.5, "early_stopping": True},
    {"do_sample": True, "num_return_sequences": 3},
    {"num_beams": 2, "num_beam_groups": 2, "diversity_penalty": 0.5},
    {"penalty_alpha": 0.6, "top_k": 4},
    {"dola_layers": "low"},
    {"cache_implementation": "static"},
    {"cache_implementation": "quantized", "cache_config": {"nbits": 4}},
    {"max_length": 30},
    {"max_new_tokens": 1},
    {"prompt_lookup_num_tokens": 4},
    {"assistant_early_exit": 1},
    {"output_attentions": True, "return_dict_in_generate": True},
    {"output_scores": True, "return_dict_in_generate": True},
    {"token_healing": True},
    {"prefill_chunk_size": 10},
    {"force_words_ids": [[5]], "num_beams": 2},
    {"min_new_tokens": 9},
    {"min_length": 1000},
]


@pytest.mark.parametrize("settings", OVERRIDDEN, ids=lambda s: ",".join(s))
def test_generate_overrides_in_words(folder, generated, alone, settings):
    found, out, err = generated(folder(settings))
    assert torch.equal(found, alone())
    for name, value in settings.items():
        assert f"{name}={value!r}" in err
    assert err.startswith("of the checkpoint's settings these do not apply to greedy text with a KVCache: ")
    assert len(err.splitlines()) == 1
    assert f"at {found.shape[1] - 1:,} tokens" in out


HONOURED = [
    {"repetition_penalty": 1.7},
    {"no_repeat_ngram_size": 1},
    {"suppress_tokens": list(range(0, 250, 2))},
    {"begin_suppress_tokens": list(range(1, 250, 2))},
    {"bad_words_ids": [[i] for i in range(0, 250, 3)]},
    {"sequence_bias": [[[5], 50.0]]},
    {"forced_eos_token_id": 7},
    {"eos_token_id": list(range(0, 250, 2))},
    {"eos_token_id": list(range(250)), "min_new_tokens": 4},
    {"eos_token_id": list(range(250)), "min_length": len(PROMPT) + 3},
    {"stop_strings": ["".join(chr(c)) for c in range(33, 127)]},
    {"encoder_repetition_penalty": 4.0},
    {"guidance_scale": 3.0},
    {"watermarking_config": {"bias": 50.0}},
    {"exponential_decay_length_penalty": [1, 9.0], "eos_token_id": 5},
]


@pytest.mark.parametrize("settings", HONOURED, ids=lambda s: ",".join(s))
def test_generate_honours_what_says_which_token_is_next(folder, generated, alone, settings):
    found, _, err = generated(folder(settings))
    assert torch.equal(found, alone(**settings))
    assert not torch.equal(found, alone())
    assert err == ""


@pytest.mark.parametrize(
    "settings", [{"repetition_penalty": 0.0}, {"suppress_tokens": "x"}, {"sequence_bias": {"5": 1}}]
)
def test_settings_that_nobody_can_follow_are_refused_in_one_line(folder, moa_in, settings):
    plan = ["--plan", "plan.yaml", "--prompt-file", "prompt.txt", "--max-new-tokens", "8"]
    code, _, err = moa_in(folder(settings), "generate", ".", *plan)
    assert code == 2
    assert err.startswith("error: transformers cannot generate by the model's generation_config.json: ")
    assert err.count("\n") == 1


def test_settings_in_config_json(folder, generated, alone):
    path = folder(None, {"use_cache": False, "do_sample": True, "temperature": 0.4, "repetition_penalty": 1.7})
    found, _, err = generated(path)
    assert torch.equal(found, alone(repetition_penalty=1.7))
    assert "do_sample=True, temperature=0.4, use_cache=False" in err


OUTPUTS = {"output_attentions": True, "output_hidden_states": True, "return_dict": False, "use_cache": False}


def test_outputs_that_config_json_asks_for_besides(folder, generated, alone, moa_in):
    path = folder({}, OUTPUTS)
    model, _ = load_model(path)
    out = model(torch.ones(1, 4, dtype=torch.int64))
    assert (out.attentions, out.hidden_states) == (None, None)
    found, _, err = generated(path)
    assert torch.equal(found, alone())
    assert err == ""
    more = ["--lengths", "512", "--needles", "1", "--ppl-windows", "1", "--four-needles", "0"]
    for command in (
        ["bench", ".", "--plan", "plan.yaml", "--lengths", "256", "--repeats", "1"],
        ["eval", ".", "--plan", "plan.yaml", *more, "-o", "eval.json"],
    ):
        code, _, err = moa_in(path, *command)
        assert code == 0, err


@pytest.fixture
def said(applied, monkeypatch):
    """Sets what the checkpoint's files say."""
    return partial(monkeypatch.setattr, applied.generation_config)


CACHES = {
    "growing": KVCache,
    "fixed": partial(KVCache, max_length=300),
    "stock": lambda _: DynamicCache(),
}


@pytest.mark.parametrize("value", [False, 0])
@pytest.mark.parametrize("kind", CACHES)
def test_no_cache_beside_a_cache(applied, plan, said, tokens, kind, value):
    ids = tokens(1, 100)
    expected = applied.generate(ids, use_cache=False, **GREEDY)
    for settings in ({"use_cache": value}, {}):
        with pytest.raises(Unsupported, match=f"use_cache={value} beside a cache"):
            applied.generate(ids, past_key_values=CACHES[kind](plan), **settings, **GREEDY)
        said("use_cache", value)
    cache = CACHES[kind](plan)
    assert torch.equal(applied.generate(ids, past_key_values=cache, use_cache=True, **GREEDY), expected)
    assert int(cache.get_seq_length()) == 107


def test_a_checkpoint_without_a_cache_runs_without(applied, said, tokens):
    ids = tokens(1, 100)
    expected = applied.generate(ids, **GREEDY)
    said("use_cache", False)
    out = applied.generate(ids, return_dict_in_generate=True, **GREEDY)
    assert torch.equal(out.sequences, expected)
    assert out.past_key_values is None
    said("use_cache", 0)  # transformers makes a cache, and then feeds it the whole text again
    with pytest.raises(Unsupported, match="use_cache=0 beside a cache"):
        applied.generate(ids, **GREEDY)


def test_no_cache_beside_a_cache_in_a_call(applied, plan, tokens, monkeypatch):
    with pytest.raises(Unsupported, match=r"use_cache=False beside a moa\.KVCache"):
        applied(tokens(1, 8), past_key_values=KVCache(plan), use_cache=False)
    monkeypatch.setattr(applied.config, "use_cache", False)  # a default, which a cache that is given overrides
    ids, cache = tokens(1, 100), KVCache(plan)
    found = torch.cat([applied(part, past_key_values=cache).logits for part in ids.split([90, 10], 1)], 1)
    torch.testing.assert_close(found, applied(ids).logits)


@pytest.mark.parametrize("kind", CACHES)
def test_a_kind_of_cache_beside_a_cache(applied, plan, said, tokens, kind):
    ids = tokens(1, 100)
    expected = applied.generate(ids, **GREEDY)
    said("cache_implementation", "static")
    with pytest.raises(Unsupported, match=r"'static' under a plan: pass cache_implementation=None"):
        applied.generate(ids, **GREEDY)
    with pytest.raises(Unsupported, match=r"cache_implementation='static' beside past_key_values: pass .*=None"):
        applied.generate(ids, past_key_values=CACHES[kind](plan), **GREEDY)
    more = {"past_key_values": CACHES[kind](plan), "cache_implementation": None}
    assert torch.equal(applied.generate(ids, **more, **GREEDY), expected)
