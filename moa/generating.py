"""Provide `moa.generate_text`, which generates greedy text under a plan and reports its time and memory."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import TextStreamer

from moa.hf.chat import has_template
from moa.hf.load import Given, check_options, loaded
from moa.hf.tokens import begin, chat_tokens, encode
from moa.plans.config import longest_text
from moa.plans.errors import MoaError, shortened
from moa.plans.plan import Plan
from moa.plans.progress import Note, silent
from moa.profiler.files import read_text
from moa.runtime.applied import apply
from moa.runtime.cache import KVCache
from moa.runtime.greedy import settings


@dataclass(frozen=True)
class Generated:
    """A generated text, with its time and memory.

    Attributes:
        text: What follows the prompt, without special tokens.
        prompt: Number of tokens in the prompt.
        length: Number of tokens that the cache has seen.
        seconds: Seconds from the prompt to the first new token, and from there to the last.
        steps: Number of new tokens after the first.
        kv_bytes: Bytes of the cache.
        dense_kv_bytes: Bytes of the dense model's cache for as many tokens.
    """

    text: str
    prompt: int
    length: int
    seconds: tuple[float, float]
    steps: int
    kv_bytes: int
    dense_kv_bytes: int


def generate_text(
    model: Given, plan: Plan | str | PathLike[str], prompt: str | Path, *, chat: bool = False,
    max_new_tokens: int = 256, backend: str | None = None, dtype: str = "auto",
    stream: Callable[[str], object] = silent, note: Note = silent,
) -> Generated:  # fmt: skip
    """Return greedy text under a plan, by `moa.apply` and the model's own `generate`.

    Args:
        model: The model: its name, or what `moa.load_model` returned; it is left as it was.
        plan: A plan, its file, or the name of a shipped one.
        prompt: The prompt, or the path of a UTF-8 file that holds it.
        chat: Whether the prompt is passed as a user's turn, by the chat template.
        max_new_tokens: Largest number of tokens to generate.
        backend: Back-end of the plan, None for the device's own.
        dtype: Dtype to load a named model in, as for `moa.load_model`.
        stream: Called with each piece of the text once it is generated.
        note: Called with a line about the checkpoint's settings that do not apply.

    Raises:
        MoaError: There is no prompt, chat template or room for the text, or a setting that transformers cannot follow.
        ModelMismatch: The plan was made for another model.
        Unsupported: The back-end cannot run here, or the model takes no rules.
    """
    chosen = plan if isinstance(plan, Plan) else Plan.load(plan)
    text = prompt if isinstance(prompt, str) else read_text(prompt)
    if not text.strip():
        where = "the prompt" if isinstance(prompt, str) else prompt
        raise MoaError(f"{where} is empty; the prompt must have text")
    check_options(model, {"the plan" if isinstance(plan, Plan) else str(plan): chosen.model}, backend=backend)
    network, tokenizer = loaded(model, dtype=dtype)
    ids = _encode(tokenizer, text, chat).to(network.device)
    n, longest = ids.shape[1], longest_text(network.config)
    if longest is not None and n + max_new_tokens > longest:
        raise MoaError(
            f"prompt and max-new-tokens are {n + max_new_tokens} tokens, over the model's maximum of {longest}"
        )
    cache, streamer, theirs = KVCache(chosen), _Timed(tokenizer, stream), network.generation_config
    network.generation_config, said = settings(network, n, max_new_tokens)
    if said:
        note(said)
    ends = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    try:
        with apply(network, chosen, backend):
            network.generate(
                ids, attention_mask=ids.new_ones(ids.shape), past_key_values=cache, streamer=streamer,
                pad_token_id=ends, tokenizer=tokenizer,
            )  # fmt: skip
    except MoaError:
        raise
    except (ValueError, TypeError) as error:
        if len(streamer.times) > 1:  # tokens have come, so the error is not about the settings
            raise
        why = shortened(str(error), 200)
        raise MoaError(f"transformers cannot generate by the model's generation_config.json: {why}") from error
    finally:
        network.generation_config = theirs
    begun, first, *_, last = *streamer.times, streamer.times[-1]
    length = int(cache.get_seq_length())
    return Generated(
        "".join(streamer.pieces), n, length, (first - begun, last - first), len(streamer.times) - 2, cache.nbytes,
        chosen.model.dense_kv_bytes(length, dtype=network.dtype),
    )  # fmt: skip


def _encode(tokenizer: Any, text: str, chat: bool) -> Tensor:
    if chat and not has_template(tokenizer):
        raise MoaError("--chat needs a model with a chat template; this one has none")
    turn = [{"role": "user", "content": text}]
    ids = chat_tokens(tokenizer, turn, answer=True, now=True) if chat else begin(tokenizer, encode(tokenizer, text))
    return torch.tensor([ids])


class _Timed(TextStreamer):  # type: ignore[misc]  # transformers has no types
    """Passes text on, and records when tokens arrive: first the prompt, then one by one."""

    def __init__(self, tokenizer: Any, stream: Callable[[str], object]) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.times: list[float] = []
        self.pieces: list[str] = []
        self.stream = stream

    def put(self, value: Any) -> None:
        self.times.append(time.perf_counter())
        super().put(value)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self.pieces.append(text)
        self.stream(text)
