"""Decode greedily from a cache, for tasks that compare answers."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from moa.hf.calls import parts


@torch.inference_mode()
def greedy(
    model: Any, tokenizer: Any, cache: Any, logits: Tensor, cached: int, most: int, known: Callable[[str], bool]
) -> str:
    """Return the greedy text behind a cache, up to the checkpoint's end token, or to where the answer is known.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        cache: Its cache, which the new tokens join.
        logits: The logits after its last token [vocabulary].
        cached: Tokens in the cache.
        most: Tokens to generate at most.
        known: Tells of a text whether more of it would say nothing more.
    """
    stops = model.generation_config.eos_token_id
    stops = {stops} if isinstance(stops, int) else set(stops or ())
    out: list[int] = []
    text, token = "", int(logits.argmax())
    while len(out) < most and token not in stops and not known(text):
        out.append(token)
        text = tokenizer.decode(out)
        if len(out) < most and not known(text):
            token = int(last_logits(model, cache, [token], cached).argmax())
            cached += 1
    return text


def last_logits(model: Any, cache: Any, ids: Sequence[int], cached: int) -> Tensor:
    """Return the logits [vocabulary] after `ids`, which follow the `cached` tokens of the cache."""
    for part, where in parts(model, torch.tensor([ids], device=model.device), cached):
        out = model(part, past_key_values=cache, use_cache=True, logits_to_keep=1, **where)
    return out.logits[0, -1]  # type: ignore[no-any-return]
