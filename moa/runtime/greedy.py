"""Decide which of a checkpoint's generation settings `moa generate` applies."""

from typing import Any

from moa.plans.errors import brief

_HONOURED = (
    "bad_words_ids",
    "begin_suppress_tokens",
    "bos_token_id",
    "encoder_no_repeat_ngram_size",
    "encoder_repetition_penalty",
    "eos_token_id",
    "exponential_decay_length_penalty",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "guidance_scale",
    "max_time",
    "min_length",
    "min_new_tokens",
    "no_repeat_ngram_size",
    "pad_token_id",
    "remove_invalid_values",
    "renormalize_logits",
    "repetition_penalty",
    "sequence_bias",
    "stop_strings",
    "suppress_tokens",
    "watermarking_config",
)
"""Settings that decide the next token or the end of the text, and mean the same for greedy search."""


_ABOUT = ("_from_model_config", "_original_object_hash", "transformers_version")
"""Entries that describe the settings themselves."""


def settings(model: Any, prompt: int, max_new_tokens: int) -> tuple[Any, str]:
    """Return the settings for `generate`, and a line that lists the checkpoint's settings that do not apply.

    Args:
        model: A transformers model; its generation_config holds the checkpoint's settings.
        prompt: Number of tokens in the prompt.
        max_new_tokens: Largest number of tokens to generate.

    Returns:
        The GenerationConfig, and the line, which is empty where everything applies.
    """
    from transformers import GenerationConfig

    theirs = model.generation_config
    ours = GenerationConfig(
        do_sample=False, num_beams=1, num_return_sequences=1, use_cache=True, max_new_tokens=max_new_tokens
    )
    neutral, other = GenerationConfig._get_default_generation_params(), []
    for name, value in sorted(vars(theirs).items()):
        if name in _HONOURED:
            setattr(ours, name, value)
        elif (
            name in vars(ours)
            and name not in _ABOUT
            and value not in (None, getattr(ours, name), neutral.get(name, False))
        ):
            other.append(f"{name}={brief(value)}")
    for name, most in (("min_new_tokens", max_new_tokens), ("min_length", prompt + max_new_tokens)):
        least = getattr(ours, name)
        if isinstance(least, int) and least > most:
            other.append(f"{name}={least} (over the {most} that --max-new-tokens allows)")
            setattr(ours, name, None)
    if not other:
        return ours, ""
    return ours, f"of the checkpoint's settings these do not apply to greedy text with a KVCache: {', '.join(other)}"
