"""`moa generate MODEL --plan PLAN --prompt-file FILE`: text under a plan, streamed, and what it took."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moa.cli.common import Backend
from moa.plans.errors import MoaError, shortened

if TYPE_CHECKING:
    from torch import Tensor


def command(
    model: Annotated[str, typer.Argument(help="Hub id, local folder, or .gguf file.")],
    plan: Annotated[str, typer.Option(help="Plan file or name of a shipped plan.")],
    prompt_file: Annotated[Path, typer.Option(help="Text to go on from, UTF-8.")],
    chat: Annotated[bool, typer.Option("--chat", help="Ask it as a user's turn, by the chat template.")] = False,
    max_new_tokens: Annotated[int, typer.Option(help="Most tokens to generate.", min=1)] = 256,
    backend: Backend = None,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16, float16.")] = "auto",
) -> None:
    """Generate greedily under a plan. The last line says the speed and the memory of keys and values."""
    import moa
    from moa.hf.load import check_options, load_model
    from moa.plans.plan import Plan
    from moa.runtime.greedy import settings

    chosen, text = Plan.load(plan), _read(prompt_file)
    check_options(model, {plan: chosen.model}, backend=backend)
    network, tokenizer = load_model(model, dtype=dtype)
    ids = _encode(tokenizer, text, chat).to(network.device)
    _check_room(network, ids.shape[1] + max_new_tokens)
    cache, streamer = moa.KVCache(chosen), _streamer(tokenizer)
    network.generation_config, note = settings(network, ids.shape[1], max_new_tokens)
    if note:
        typer.echo(note, err=True)
    ends = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    try:
        with moa.apply(network, chosen, backend):
            network.generate(
                ids, attention_mask=ids.new_ones(ids.shape), past_key_values=cache, streamer=streamer,
                pad_token_id=ends, tokenizer=tokenizer,
            )  # fmt: skip
    except MoaError:
        raise
    except (ValueError, TypeError) as error:
        if len(streamer.times) > 1:  # tokens came: it is not for the settings
            raise
        why = shortened(str(error), 200)
        raise MoaError(f"transformers cannot generate by the model's generation_config.json: {why}") from error
    n = int(cache.get_seq_length())
    dense = chosen.model.dense_kv_bytes(n, dtype=network.dtype)
    typer.echo(
        f"prompt of {ids.shape[1]:,} tokens in {streamer.prefill:.2f} s, then {streamer.rate}; "
        f"KV cache {cache.nbytes / 2**20:.1f} MiB at {n:,} tokens, dense {dense / 2**20:.1f} MiB"
    )


def _read(path: Path) -> str:
    from moa.profiler.files import read_text

    text = read_text(path)
    if not text.strip():
        raise MoaError(f"{path} is empty; the prompt must have text")
    return text


def _encode(tokenizer: Any, text: str, chat: bool) -> "Tensor":
    import torch

    from moa.hf.chat import has_template
    from moa.hf.tokens import begin, chat_tokens, encode

    if chat and not has_template(tokenizer):
        raise MoaError("--chat needs a model with a chat template; this one has none")
    turn = [{"role": "user", "content": text}]
    ids = chat_tokens(tokenizer, turn, answer=True, now=True) if chat else begin(tokenizer, encode(tokenizer, text))
    return torch.tensor([ids])


def _check_room(network: Any, tokens: int) -> None:
    from moa.plans.config import longest_text

    longest = longest_text(network.config)
    if longest is not None and tokens > longest:
        raise MoaError(f"prompt and max-new-tokens are {tokens} tokens, over the model's maximum of {longest}")


def _streamer(tokenizer: Any) -> Any:
    from transformers import TextStreamer

    class TimedStreamer(TextStreamer):  # type: ignore[misc]  # transformers has no types
        """Prints tokens as they come, and notes when they do: first the prompt, then one by one."""

        def __init__(self) -> None:
            super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
            self.times: list[float] = []

        def put(self, value: Any) -> None:
            self.times.append(time.perf_counter())
            super().put(value)

        @property
        def prefill(self) -> float:
            return self.times[1] - self.times[0]

        @property
        def rate(self) -> str:
            count = len(self.times) - 2
            return f"{count / (self.times[-1] - self.times[1]):.1f} tokens/s" if count else "no more tokens"

    return TimedStreamer()
