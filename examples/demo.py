"""One greedy answer about a long text, with the dense model and with a plan, side by side.

python examples/demo.py MODEL PLAN
"""

import sys
import time
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import moa
from moa.load import load_model

LENGTH = 2048
FACT = "The password of the harbour office is saffron-4719."
QUESTION = "What is the password of the harbour office? Answer with the password only."


def long_text(tokenizer: Any) -> str:
    """About LENGTH tokens of Python's own documentation with the fact placed a third of the way in."""
    from pydoc_data.topics import topics

    words = " ".join(topics[name] for name in sorted(topics)).split(" ")
    room = LENGTH - len(tokenizer(FACT + QUESTION)["input_ids"]) - 64
    ids = tokenizer(" ".join(words[: 2 * LENGTH]))["input_ids"][:room]
    third = len(ids) // 3
    return f"{tokenizer.decode(ids[:third])}\n\n{FACT}\n\n{tokenizer.decode(ids[third:])}"


def answer(model: Any, tokenizer: Any, text: str) -> tuple[str, float]:
    """The model's greedy answer and the seconds it took."""
    chat = [{"role": "user", "content": f"{text}\n\n{QUESTION}"}]
    inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    begin = time.perf_counter()
    with torch.inference_mode():
        out = model.generate(**inputs.to(model.device), max_new_tokens=24, do_sample=False)
    seconds = time.perf_counter() - begin
    return tokenizer.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip(), seconds


def main() -> None:
    model_name, plan_name = sys.argv[1:]
    model, tokenizer = load_model(model_name)
    plan = moa.Plan.load(plan_name)
    text = long_text(tokenizer)
    dense, dense_seconds = answer(model, tokenizer, text)
    with moa.apply(model, plan):
        sparse, sparse_seconds = answer(model, tokenizer, text)
    table = Table("", "dense", f"plan, density {plan.density(LENGTH):.2f}", title=f"{LENGTH} tokens: {QUESTION}")
    table.add_row("answer", dense, sparse)
    table.add_row("in the text", FACT, FACT)
    table.add_row("seconds", f"{dense_seconds:.1f}", f"{sparse_seconds:.1f}")
    Console().print(table)


if __name__ == "__main__":
    main()
