"""Decode a batch of prompts of different lengths: padding is never stored, and a smaller cache lets a step read less.

python examples/batch_throughput.py MODEL PLAN
"""

import sys
import time
from contextlib import nullcontext

import torch
from transformers import DynamicCache

import moa

BATCH, LONGEST, NEW = 4, 2048, 32


def main() -> None:
    model_name, plan_name = sys.argv[1:]
    model, _ = moa.load_model(model_name)
    plan = moa.Plan.load(plan_name)
    longest = min(LONGEST, model.config.max_position_embeddings // 2)
    lengths = [longest * (i + 1) // BATCH for i in range(BATCH)]
    ids = torch.randint(model.config.vocab_size, (BATCH, longest), device=model.device)
    mask = torch.stack([torch.arange(longest, device=model.device) >= longest - n for n in lengths]).long()
    print(f"prompts of {', '.join(map(str, lengths))} tokens, {NEW} new tokens each")
    for name, cache in (("dense", DynamicCache(config=model.config)), ("plan", moa.KVCache(plan))):
        with moa.apply(model, plan) if name == "plan" else nullcontext(), torch.inference_mode():
            options = {"past_key_values": cache, "do_sample": False}
            begin = time.perf_counter()
            first = model.generate(ids, attention_mask=mask, max_new_tokens=1, **options)
            read = time.perf_counter()
            longer = torch.cat([mask, mask[:, -1:]], 1)
            model.generate(first, attention_mask=longer, min_new_tokens=NEW, max_new_tokens=NEW, **options)
            done = time.perf_counter()
        kv_bytes = cache.nbytes if name == "plan" else sum(x.keys.nbytes + x.values.nbytes for x in cache.layers)
        rate = BATCH * NEW / (done - read)
        print(f"{name:6} prefill {read - begin:6.2f} s, {rate:8.1f} tokens/s, KV cache {kv_bytes / 2**20:8.1f} MiB")


if __name__ == "__main__":
    main()
