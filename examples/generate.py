"""Generate greedy text under a plan, and print the memory that its keys and values take.

python examples/generate.py MODEL PLAN
"""

import sys

import torch

import moa

TEXT = "The password is saffron. " + "The sea is calm today. " * 150 + "The password is"


def main() -> None:
    model_name, plan_name = sys.argv[1:]
    model, tokenizer = moa.load_model(model_name)
    plan = moa.Plan.load(plan_name)
    inputs = tokenizer(TEXT, return_tensors="pt").to(model.device)
    with moa.apply(model, plan), torch.inference_mode():  # `generate` makes a KVCache by itself
        out = model.generate(**inputs, max_new_tokens=16, do_sample=False, return_dict_in_generate=True)
    cache = out.past_key_values
    print(tokenizer.decode(out.sequences[0, inputs["input_ids"].shape[1] :]))
    dense = plan.model.dense_kv_bytes(cache.lengths.tolist(), dtype=model.dtype)
    print(
        f"KV cache {cache.nbytes / 2**20:.1f} MiB at {cache.get_seq_length():,} tokens, dense {dense / 2**20:.1f} MiB"
    )


if __name__ == "__main__":
    main()
