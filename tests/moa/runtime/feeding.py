"""How the tests of a cache feed it."""

import torch


def run(model, cache, ids, mask=None):
    mask = torch.ones_like(ids) if mask is None else mask
    past = int(cache.get_seq_length())
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    return model(ids[:, past:], attention_mask=mask, position_ids=positions[:, past:], past_key_values=cache).logits
