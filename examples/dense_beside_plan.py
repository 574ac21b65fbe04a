"""Compare a plan with the dense model on one text: the KL of the next token, and how often both choose the same.

python examples/dense_beside_plan.py MODEL PLAN [TEXT.txt]
"""

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import kl_div
from transformers import DynamicCache

import moa

LONGEST, CHUNK = 2048, 256


def predictions(model: Any, ids: Tensor, cache: Any) -> list[Tensor]:
    """Return log-probabilities of the next token, chunk by chunk: [CHUNK, vocabulary] each."""
    return [model(part, past_key_values=cache).logits[0].float().log_softmax(-1) for part in ids.split(CHUNK, 1)]


@torch.inference_mode()
def main() -> None:
    model_name, plan_name, *file = sys.argv[1:]
    model, tokenizer = moa.load_model(model_name)
    plan = moa.Plan.load(plan_name)
    if file:
        text = Path(file[0]).read_text(encoding="utf-8-sig")
    else:
        from pydoc_data.topics import topics

        text = "\n\n".join(topics[name] for name in sorted(topics))[: 8 * LONGEST]
    longest = min(LONGEST, model.config.max_position_embeddings)
    ids = tokenizer(text, return_tensors="pt", truncation=True, max_length=longest)["input_ids"].to(model.device)
    dense = predictions(model, ids, DynamicCache(config=model.config))
    with moa.apply(model, plan):
        cache = moa.KVCache(plan)
        sparse = predictions(model, ids, cache)
    print("tokens      density  KL, nats  same choice")
    end = 0
    for expected, found in zip(dense, sparse, strict=True):
        end += len(expected)
        kl = kl_div(found, expected, reduction="batchmean", log_target=True)
        same = (found.argmax(-1) == expected.argmax(-1)).float().mean()
        print(f"to {end:6,}  {plan.density(end):10.3f}  {kl:8.4f}  {same:11.3f}")
    print(f"KV cache {cache.nbytes:,} bytes, dense {plan.model.dense_kv_bytes(end, dtype=model.dtype):,}")


if __name__ == "__main__":
    main()
