"""Chat over several turns on one cache: each turn reads only what is new. Type a line per turn; end with Ctrl-D.

python examples/chat.py MODEL PLAN
"""

import sys

import torch
from torch import Tensor
from transformers import TextStreamer

import moa


def keep_prefix(cache: moa.KVCache, cached: Tensor, ids: Tensor) -> None:
    """Crop the cache to the tokens with which the new text begins: a reply may tokenise differently when read back.

    Up to 64 tokens can always be removed. If more must go than the plan allows, the whole text is read again.
    """
    shorter = min(cache.get_seq_length(), cached.shape[1], ids.shape[1] - 1)
    differ = (cached[0, :shorter] != ids[0, :shorter]).nonzero()
    common = int(differ[0]) if len(differ) else shorter
    try:
        cache.crop(common - cache.get_seq_length())
    except moa.Unsupported:
        cache.reset()


def main() -> None:
    model_name, plan_name = sys.argv[1:]
    model, tokenizer = moa.load_model(model_name)
    plan = moa.Plan.load(plan_name)
    cache, cached, turns = moa.KVCache(plan), torch.zeros(1, 0, dtype=torch.int64), []
    streamer = TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    with moa.apply(model, plan), torch.inference_mode():
        for line in sys.stdin:
            turns.append({"role": "user", "content": line.strip()})
            inputs = tokenizer.apply_chat_template(
                turns, add_generation_prompt=True, return_tensors="pt", return_dict=True
            ).to(model.device)
            ids = inputs["input_ids"]
            keep_prefix(cache, cached.to(ids.device), ids)
            cached = model.generate(
                **inputs, past_key_values=cache, streamer=streamer, max_new_tokens=200, do_sample=False
            )
            reply = tokenizer.decode(cached[0, ids.shape[1] :], skip_special_tokens=True)
            turns.append({"role": "assistant", "content": reply})
            print(f"[{cache.get_seq_length():,} tokens held in {cache.nbytes / 2**20:.1f} MiB]")


if __name__ == "__main__":
    main()
