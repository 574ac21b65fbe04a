"""Ask questions about one long document, which is read once: each question continues from a copy of its cache.

python examples/long_document_qa.py MODEL PLAN [DOCUMENT.txt]
"""

import sys
import time
from copy import deepcopy
from pathlib import Path

import torch

import moa

QUESTIONS = (
    "What does an assert statement insert into a program?",
    "Which statement binds names to values?",
    "What may an asynchronous function contain?",
)
LONGEST = 4096


def python_topics() -> str:
    """Return Python's own documentation of its statements, by name."""
    from pydoc_data.topics import topics

    return "\n\n".join(topics[name] for name in sorted(topics))


def main() -> None:
    model_name, plan_name, *document = sys.argv[1:]
    model, tokenizer = moa.load_model(model_name)
    plan = moa.Plan.load(plan_name)
    room = min(LONGEST, model.config.max_position_embeddings // 2)
    text = Path(document[0]).read_text(encoding="utf-8-sig") if document else python_topics()[: 8 * room]
    text = tokenizer.decode(tokenizer(text, truncation=True, max_length=room)["input_ids"], skip_special_tokens=True)
    turn = [{"role": "user", "content": f"{text}\n\nAnswer from the text above. QUESTION"}]
    before, after = tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=False).rsplit(
        "QUESTION", 1
    )
    head = tokenizer(before, add_special_tokens=False, return_tensors="pt")["input_ids"].to(model.device)
    with moa.apply(model, plan), torch.inference_mode():
        begin, cache = time.perf_counter(), moa.KVCache(plan)
        model(head, past_key_values=cache, logits_to_keep=1)
        print(f"{head.shape[1]:,} tokens read in {time.perf_counter() - begin:.1f} s, {cache.nbytes / 2**20:.1f} MiB")
        for question in QUESTIONS:
            begin = time.perf_counter()
            tail = tokenizer(question + after, add_special_tokens=False, return_tensors="pt")["input_ids"]
            ids = torch.cat([head, tail.to(head.device)], 1)
            mask = torch.ones_like(ids)
            options = {"attention_mask": mask, "max_new_tokens": 32, "do_sample": False}
            out = model.generate(ids, past_key_values=deepcopy(cache), **options)
            answer = tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True).strip()
            print(f"\n{question}\n{answer}\n[{time.perf_counter() - begin:.1f} s]")


if __name__ == "__main__":
    main()
