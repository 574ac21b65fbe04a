"""Answer a question about a long text greedily, with the dense model and with a plan, side by side.

python examples/demo.py MODEL PLAN
"""

import sys
import time
from pydoc_data.topics import topics
from typing import Any

import rich
import torch
from rich.table import Table

import moa

LONGEST, TOKENS = 8192, 24
FACT = "The password of the harbour office is saffron-4719."
QUESTION = "What is the password of the harbour office? Answer with the password only."


def prompt(tokenizer: Any, length: int) -> Any:
    """Return a chat of about `length` tokens: documentation, the fact after a third of it, the question."""
    ids = tokenizer(" ".join(topics[name] for name in sorted(topics)))["input_ids"][: length - 128]
    text = f"{tokenizer.decode(ids[: length // 3])}\n\n{FACT}\n\n{tokenizer.decode(ids[length // 3 :])}\n\n{QUESTION}"
    chat = [{"role": "user", "content": text}]
    return tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)


@torch.inference_mode()
def answer(model: Any, tokenizer: Any, inputs: Any) -> tuple[str, str, str]:
    """Return the model's greedy answer, the time until its first token, and the time of each further one."""
    short, times = {name: value[:, :256] for name, value in inputs.items()}, [0.0]

    def clock(ids: torch.Tensor, _scores: object) -> torch.Tensor:
        times.append(time.perf_counter())
        return torch.zeros(len(ids), dtype=torch.bool, device=ids.device)

    model.generate(**short, max_new_tokens=2, do_sample=False)  # loads and compiles code
    times[0] = time.perf_counter()
    out = model.generate(**inputs, max_new_tokens=TOKENS, do_sample=False, stopping_criteria=[clock])
    said = tokenizer.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
    return said, f"{times[1] - times[0]:.1f} s", f"{1e3 * (times[-1] - times[1]) / max(len(times) - 2, 1):.0f} ms"


def main() -> None:
    (model, tokenizer), plan = moa.load_model(sys.argv[1]), moa.Plan.load(sys.argv[2])
    inputs = prompt(tokenizer, min(LONGEST, model.config.max_position_embeddings) - TOKENS).to(model.device)
    length, dense = inputs["input_ids"].shape[1], answer(model, tokenizer, inputs)
    with moa.apply(model, plan):
        sparse = answer(model, tokenizer, inputs)
    table = Table(FACT, "dense", f"plan, density {plan.density(length):.2f}")
    for row in zip(("answer", f"prefill of {length:,} tokens", "each further token"), dense, sparse, strict=True):
        table.add_row(*row)
    rich.print(table)


if __name__ == "__main__":
    main()
