"""Changes of what a checkpoint's own files say: its config, generation config, tokenizer and chat template."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

from fuzz_parts import files
from fuzz_parts.change import Change, Effect

HARMLESS: dict[str, tuple[Any, ...]] = {
    "use_cache": (False, None, True), "dtype": ("float16", "bfloat16", "float32"), "torch_dtype": ("float16",),
    "transformers_version": ("4.28.1", "99.0"), "_name_or_path": ("/home/x/y", ""), "no_such_key": (1, {"a": [None]}),
    "output_hidden_states": (True,), "output_attentions": (True,), "return_dict": (False,), "use_return_dict": (False,),
    "attention_dropout": (0.5,), "pretraining_tp": (2,), "num_labels": (5,), "attn_implementation": ("eager", "x"),
    "_attn_implementation": ("flash_attention_2", "eager", "x"), "problem_type": ("regression",),
    "chunk_size_feed_forward": (7,),
    "gradient_checkpointing": (True,), "do_sample": (True,), "num_beams": (4,), "max_length": (5,), "prefix": ("x",),
    "tokenizer_class": ("Nope",), "architectures": ([], None, ["LlamaModel"], ["Nope"]),
}  # fmt: skip
"""Of config.json: nothing that decides what the model computes."""
BAD: dict[str, tuple[Any, ...]] = {
    "vocab_size": (10, 0, -1), "head_dim": (16, 7), "num_attention_heads": (3, 8, 0), "num_key_value_heads": (3, 0, 4),
    "hidden_size": (64, "32", 0), "model_type": ("bert", "nope", "", 5), "hidden_act": ("nope", 5),
    "attention_bias": (True,), "num_hidden_layers": (3, 0, -1, "two"), "is_encoder_decoder": ("yes",),
}  # fmt: skip
"""Of config.json: another model than the weights are of, or none; the plan or the weights do not fit."""
FREE: dict[str, tuple[Any, ...]] = {
    "sliding_window": (64, 4096, 262144, -1, "x"), "max_position_embeddings": (None, 100, 600, -1, "x", 2**40),
    "layer_types": (["full_attention"] * 2, ["sliding_attention", "full_attention"], ["x", "y"], [],
    ["full_attention"]),
    "rope_scaling": ({"type": "yarn", "factor": 4.0}, {"rope_type": "longrope"}, {"type": "dynamic", "factor": 2.0},
    {}, 5),
    "rope_parameters": ({"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4}, {"rope_type": "nope"}, {}, None, []),
    "tie_word_embeddings": (True,), "eos_token_id": ([1, 5], [], None, 99999, -1, "x"), "bos_token_id": (None, 99999),
    "pad_token_id": (-1, 0, 99999, "x"), "num_hidden_layers": (1,), "rms_norm_eps": ("x", 0), "quantization_config": (
        {"quant_method": "gptq", "bits": 4}, {"quant_method": "bitsandbytes", "load_in_4bit": True},
        {"quant_method": "x"}, {}
    ),
    "auto_map": ({"AutoModelForCausalLM": "x.Y"}, {"AutoConfig": "x.Y"}), "is_decoder": (True, False),
    "add_cross_attention": (True,), "initializer_range": ("x",), "text_config": ({}, {"hidden_size": 32}),
    "rope_theta": (0, -1, "x"),
    "dtype": ("int8", "float99", 5), "per_layer_config": ({},), "attention_chunk_size": (64,),
}  # fmt: skip
"""Of config.json: whatever happens, it must be right or said."""
OVERRIDDEN: dict[str, tuple[Any, ...]] = {
    "use_cache": (False, True, None), "cache_implementation": ("static", "quantized", "offloaded", "nope", "dynamic"),
    "do_sample": (True,), "temperature": (0.0, 0.7, -1), "top_k": (1, 0, -1), "top_p": (0.1, 2.0), "max_length": (5,
    20, 0),
    "max_new_tokens": (1, 2), "return_dict_in_generate": (True,), "output_scores": (True,),
    "output_attentions": (True,),
    "output_hidden_states": (True,), "pad_token_id": (3, -1, 99999, [1, 2]), "transformers_version": ("4.0",),
    "no_such_key": (1,), "num_return_sequences": (2, 0), "_from_model_config": (True,), "compile_config": ({},),
    "bos_token_id": (3, None, 99999), "typical_p": (0.5,), "epsilon_cutoff": (0.1,),
}  # fmt: skip
"""Of generation_config.json: nothing that decides which tokens greedy decoding gives."""
HONOURED: dict[str, tuple[Any, ...]] = {
    "num_beams": (4, 0), "stop_strings": (["e"], "e", []), "forced_eos_token_id": (1,), "forced_bos_token_id": (5,),
    "eos_token_id": ([1, 5], [], None, 99999, -1, "x"), "min_length": (5, 10**9), "min_new_tokens": (3,),
    "repetition_penalty": (1.5, 0.0, -1.0), "no_repeat_ngram_size": (2, -1), "bad_words_ids": ([[5]], [[99999]], [[]],
    []),
    "suppress_tokens": ([5], [99999], "x"), "begin_suppress_tokens": ([5],), "penalty_alpha": (0.6,),
    "dola_layers": ("low",),
    "prompt_lookup_num_tokens": (3, 100, 0), "guidance_scale": (2.0,), "max_time": (0.0, 1e-9),
    "diversity_penalty": (0.5,),
    "num_beam_groups": (2,), "constraints": ([1],), "force_words_ids": ([[5]],), "sequence_bias": ([[[5], 2.0]],
    {"5": 1}),
    "renormalize_logits": (True,), "watermarking_config": ({"bias": 2.5}, {"x": 1}), "token_healing": (True,),
    "encoder_no_repeat_ngram_size": (2,), "assistant_early_exit": (1,), "length_penalty": (2.0,),
    "early_stopping": (True,),
    "prefill_chunk_size": (64, 100, 7, 0), "exponential_decay_length_penalty": ([1, 1.5],),
    "remove_invalid_values": (True,),
    "low_memory": (True,), "is_assistant": (True,), "num_assistant_tokens": (5,),
    "cache_config": ({"backend": "quanto"},),
}  # fmt: skip
"""Of generation_config.json: what may be honoured, overridden in words, or refused."""
TEMPLATES = (
    "", "{{", "{% for m in messages %}", "{{ messages[0].nope.nope }}", "{{ raise_exception('no') }}", "{{ 1 / 0 }}",
    "{% for m in messages %}{{ m['content'] }}{% endfor %}", "no messages", "{{ ().__class__.__bases__ }}",
    "{{ 'x' * 10 ** 5 }}", "{% include 'x' %}", "{{ messages | tojson }}",
)  # fmt: skip
TOKENIZER_CONFIG: dict[str, tuple[Any, ...]] = {
    "model_max_length": (5, 0, -1, "x", 1e30), "padding_side": ("left", "right"), "truncation_side": ("left",),
    "tokenizer_class": ("LlamaTokenizer", "Nope", "GPT2TokenizerFast", None, 5), "bos_token": (None, "nope", 5,
    {"x": 1}),
    "eos_token": (None, "nope", 5), "pad_token": ("nope", None, "</s>"), "add_bos_token": (False, True),
    "add_eos_token": (True,),
    "clean_up_tokenization_spaces": (True,), "extra_special_tokens": ({}, [], ["<x>"], 5),
    "auto_map": ({"AutoTokenizer": ["x.Y", None]},),
    "added_tokens_decoder": ({"5000": {"content": "the", "special": False}}, {"x": 1}, {}), "chat_template": TEMPLATES,
    "tokenizer_file": ("/etc/passwd",), "max_length": (7,), "truncation": (True,), "padding": ("max_length",),
}  # fmt: skip
SAME_TOKENIZER = {"model_max_length", "padding_side", "truncation_side", "max_length", "truncation", "padding"}
GREEDY = ("generate", "eval", "search")
"""Commands that read generation_config.json, if only its end of text."""


def change(command: str, rng: Random) -> Change:
    """Any change of the model's files for a line of `command`."""
    kinds: list[Callable[[str, Random], Change]] = [
        *[config] * 5, *[generation] * (6 if command == "generate" else 2), *[tokenizer] * 3, template, core, missing,
        document, weights,
    ]  # fmt: skip
    kind = rng.choice(kinds)
    change = kind(command, rng)
    if command == "doctor":  # it reads the config alone, and of it what attention is shaped by
        return replace(change, effect="free" if kind in (config, missing, document) else "same")
    return change


def _set(name: str, key: str, value: Any, effect: Effect) -> Change:
    def edit(folder: Path) -> None:
        path = folder / "model" / name
        path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))

    return Change(f"{name}: {key} {value!r}"[:90], effect, edit=edit)


def config(_command: str, rng: Random) -> Change:
    """One field of config.json."""
    table, effect = rng.choice([(HARMLESS, "same"), (BAD, "bad"), (FREE, "free")])
    key = rng.choice(list(table))
    return _set("config.json", key, rng.choice(table[key]), effect)  # type: ignore[arg-type]


def generation(command: str, rng: Random) -> Change:
    """One field of generation_config.json."""
    table = rng.choice([OVERRIDDEN, HONOURED])
    key = rng.choice(list(table))
    same = command not in GREEDY or table is OVERRIDDEN
    return _set("generation_config.json", key, rng.choice(table[key]), "same" if same else "free")


def tokenizer(_command: str, rng: Random) -> Change:
    """One field of tokenizer_config.json."""
    key = rng.choice(list(TOKENIZER_CONFIG))
    value = rng.choice(TOKENIZER_CONFIG[key])
    return _set("tokenizer_config.json", key, value, "same" if key in SAME_TOKENIZER else "free")


def template(_command: str, rng: Random) -> Change:
    """Another chat template, or none."""
    text = rng.choice([*TEMPLATES, None])

    def edit(folder: Path) -> None:
        path = folder / "model" / "chat_template.jinja"
        if text is None:
            path.unlink(missing_ok=True)
        else:
            path.write_text(text)

    return Change(f"chat template {text!r}", "free", edit=edit)


def core(_command: str, rng: Random) -> Change:
    """What tokenizer.json itself says of truncation, padding, special tokens and the vocabulary."""
    way = rng.choice(["truncation", "padding", "no post-processor", "huge id", "no vocabulary", "normalizer"])

    def edit(folder: Path) -> None:
        path = folder / "model" / "tokenizer.json"
        found = json.loads(path.read_text())
        if way == "truncation":
            found["truncation"] = {"direction": "Right", "max_length": 16, "strategy": "LongestFirst", "stride": 0}
        elif way == "padding":
            found["padding"] = {
                "strategy": {"Fixed": 700}, "direction": "Left", "pad_to_multiple_of": None, "pad_id": 0,
                "pad_type_id": 0, "pad_token": "<s>",
            }  # fmt: skip
        elif way == "no post-processor":
            found["post_processor"] = None
        elif way == "huge id":
            found["model"]["vocab"]["e"] = 50_000
        elif way == "no vocabulary":
            found["model"]["vocab"] = {}
        else:
            found["normalizer"] = {"type": "Lowercase"}
        path.write_text(json.dumps(found))

    return Change(f"tokenizer.json: {way}", "same" if way in ("truncation", "padding") else "free", edit=edit)


def missing(_command: str, rng: Random) -> Change:
    """A file of the checkpoint is not there."""
    name = rng.choice(
        ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"]
    )

    def edit(folder: Path) -> None:
        (folder / "model" / name).unlink()

    return Change(f"no {name}", "bad" if name == "config.json" else "free", edit=edit)


def document(_command: str, rng: Random) -> Change:
    """An arbitrary edit of one of the JSON files, or one that is no JSON."""
    name = rng.choice(["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"])
    return rng.choice([files.document, files.document, files.json_text, files.truncated])(f"model/{name}", rng)


def weights(_command: str, rng: Random) -> Change:
    """Weights that are damaged, misnamed or not finite."""
    if rng.random() < 0.6:
        return rng.choice([files.truncated, files.flipped, files.header])("model/model.safetensors", rng)
    way = rng.choice(["nan", "inf", "zero", "extra", "lost", "renamed", "half"])

    def edit(folder: Path) -> None:
        import torch
        from safetensors.torch import load_file, save_file

        path = folder / "model" / "model.safetensors"
        found = load_file(path)
        name = sorted(found)[3]
        if way in ("nan", "inf", "zero"):
            found[name][0] = {"nan": float("nan"), "inf": float("inf"), "zero": 0.0}[way]
        elif way == "extra":
            found["model.layers.7.x"] = torch.zeros(3)
        elif way == "half":
            found = {key: value.half() for key, value in found.items()}
        else:
            value = found.pop(name)
            if way == "renamed":
                found[f"{name}s"] = value
        save_file(found, path, metadata={"format": "pt"})

    return Change(f"weights: {way}", "bad" if way in ("lost", "renamed") else "free", edit=edit)
