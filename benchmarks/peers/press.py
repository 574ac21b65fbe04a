"""Measure kvpress's methods on samples that another process has made, in the environment of `make peers-env`.

It reads a job from stdin and writes one line of JSON per result to stdout, the first of which says what it runs with;
`theirs.py` starts it, and says what a job is. It knows no text: samples and answers are token ids.
"""

import ctypes
import json
import logging
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import redirect_stdout
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from methods import Kept, alone, compressed, same
from torch import Tensor
from transformers import AutoModelForCausalLM
from transformers.utils.logging import disable_progress_bar

CHECKED = 256
"""Tokens of the text on which compressing beside each other is compared with kvpress alone, and of a warm-up."""


def forward(model: Any, cache: Any, ids: list[int], at: int) -> Tensor:
    """Return the logits [tokens, vocabulary] of tokens whose first has position `at`, whatever the cache has dropped.

    Where entries are masked, kvpress looks for a key that all queries of a KV head are turned away from. There is one
    if they are independent, which they cannot be where they are more than a head has channels; so calls are short.
    """
    attention, found = model.model.layers[0].self_attn, []
    most = max(1, attention.head_dim // attention.num_key_value_groups // 2)
    for part in torch.tensor([ids]).split(most, 1):
        where = torch.arange(at, at + part.shape[1])[None]
        found.append(model(input_ids=part, position_ids=where, past_key_values=cache, use_cache=True).logits[0])
        at += part.shape[1]
    return torch.cat(found)


def asked(model: Any, item: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each row's greedy answers, as token ids, to every question about the context."""
    context = item["context"]
    _, kept = compressed(model, item["rows"], torch.tensor([context]))
    for name, state in kept.items():
        answers = [answer(model, state, len(context), ids, item["new"]) for ids in item["then"]]
        yield name, {"answers": answers, **state.nbytes()}


def answer(model: Any, state: Kept, at: int, ids: list[int], most: int) -> list[int]:
    """Return the tokens that follow the context and a question, up to the checkpoint's end token."""
    stops = model.generation_config.eos_token_id
    stops = {stops} if isinstance(stops, int) else set(stops or ())
    cache, found = state.cache(model), []
    while len(found) < most:
        token = int(forward(model, cache, ids, at)[-1].argmax())
        at += len(ids)
        if token in stops:
            break
        found.append(token)
        ids = [token]
    return found


def decoded(model: Any, item: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each row's negative log-likelihood of the tokens behind the context, and its KL from dense, by token."""
    context, (tail,) = item["context"], item["then"]
    first, kept = compressed(model, {"": None, **item["rows"]}, torch.tensor([context]))
    given = torch.tensor(tail)[:, None]
    dense = following(model, kept.pop(""), first, len(context), tail)
    for name, state in kept.items():
        found = following(model, state, first, len(context), tail)
        kl = (dense.exp() * (dense - found)).sum(-1)
        nll = -found.gather(1, given)[:, 0]
        yield name, {"nll": nll.tolist(), "kl": kl.tolist(), **state.nbytes()}


def following(model: Any, state: Kept, first: Tensor, at: int, tail: list[int]) -> Tensor:
    """Return the log-probabilities [tokens, vocabulary] that are asked of the tokens behind the context."""
    logits = torch.cat([first[None], forward(model, state.cache(model), tail, at)[:-1]])
    return logits.float().log_softmax(-1)


def timed(model: Any, item: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each row's seconds of a prefill with its compression, of decode steps, and the peak of memory in both."""
    context, (tail,) = item["context"], item["then"]
    for name, row in item["rows"].items():
        steps(model, alone(model, row, torch.tensor([context[:CHECKED]])), CHECKED, tail[:1])  # warm up
        reset_peak()
        begin = time.perf_counter()
        cache = alone(model, row, torch.tensor([context]))
        prefill = time.perf_counter() - begin
        taken = steps(model, cache, len(context), tail)[1:]
        yield name, {"prefill": prefill, "steps": taken, "peak": peak_bytes()}


def steps(model: Any, cache: Any, at: int, tail: list[int]) -> list[float]:
    """Return the seconds of each decode step."""
    taken = []
    for i, token in enumerate(tail):
        begin = time.perf_counter()
        forward(model, cache, [token], at + i)
        taken.append(time.perf_counter() - begin)
    return taken


def reset_peak() -> None:
    """Reset the peak of resident memory, as `moa.bench.timing` does, which this environment lacks."""
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


def peak_bytes() -> int:
    """Return the peak of resident memory since `reset_peak`."""
    return 1024 * int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])


def check(model: Any, item: dict[str, Any]) -> None:
    """Compare what rows keep of a prefill that they share with what kvpress keeps of one of their own."""
    ids = torch.tensor([item["context"][:CHECKED]])
    for name, state in compressed(model, item["rows"], ids)[1].items():
        if not same(model, state, alone(model, item["rows"][name], ids)):
            raise AssertionError(f"{name}: compressed beside others it keeps other entries than alone")


MEASURES = {"asked": asked, "decoded": decoded, "timed": timed}


@torch.inference_mode()
def main() -> None:
    job, out = json.load(sys.stdin), sys.stdout
    torch.set_num_threads(job["threads"])
    disable_progress_bar()
    logging.getLogger("kvpress").setLevel(logging.ERROR)  # it warns with every press of a slow method

    def say(**line: Any) -> None:
        print(json.dumps(line), file=out, flush=True)

    with redirect_stdout(sys.stderr):  # libraries print there
        model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=getattr(torch, job["dtype"])).eval()
        about = {name: version(name) for name in ("kvpress", "torch", "transformers")}
        say(about={"python": platform.python_version(), **about, "attention": model.config._attn_implementation})
        check(model, job["items"][0])
        for i, item in enumerate(job["items"]):
            for name, result in MEASURES[item["kind"]](model, item):
                say(item=i, row=name, result=result)


if __name__ == "__main__":
    main()
