"""How the tests feed a model and its cache."""

import torch


def padded(ids, spans):
    """Mask [batch, n] whose row i is real in columns spans[i]."""
    columns = torch.arange(ids.shape[1])
    return torch.stack([(columns >= a) & (columns < b) for a, b in spans]).long()


def positions_of(mask):
    """Positions [batch, n] as `generate` counts them: padding is none."""
    return (mask.cumsum(1) - 1).clamp(min=0)


def feed(model, cache, ids, news, mask=None):
    """Logits of the columns of `ids` that the cache lacks, in calls of `news` columns; `mask` is of all columns."""
    mask = torch.ones_like(ids) if mask is None else mask
    positions, parts, done = positions_of(mask), [], int(cache.get_seq_length())
    for new in news:
        here, done = slice(done, done + new), done + new
        call = {"attention_mask": mask[:, :done], "position_ids": positions[:, here], "past_key_values": cache}
        parts.append(model(ids[:, here], **call).logits)
    return torch.cat(parts, 1)


def run(model, cache, ids, mask=None):
    """The same in one call."""
    return feed(model, cache, ids, [ids.shape[1] - int(cache.get_seq_length())], mask)
