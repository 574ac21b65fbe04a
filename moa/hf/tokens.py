"""Tokenise every text; no other module adds special tokens.

Calibration, validation, evaluation and `moa generate` all call it, so that a plan is fitted to, judged by and used on
texts that begin alike. Some models are lost without their first token.
"""

from collections.abc import Sequence
from typing import Any

from moa.hf.chat import render
from moa.plans.errors import Unsupported


def encode(tokenizer: Any, text: str) -> list[int]:
    """Return the tokens of a piece of text, without special tokens around it."""
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def start(tokenizer: Any) -> list[int]:
    """Return the special tokens that the tokenizer puts before a text (BOS); for many tokenizers there are none.

    The tokens that some put after a text (EOS) are never added, because every text here continues.

    Raises:
        Unsupported: Special tokens change the text itself.
    """
    bare, whole = encode(tokenizer, "a"), tokenizer("a")["input_ids"]
    places = [i for i in range(len(whole) + 1) if whole[i : i + len(bare)] == bare]
    if not places:
        raise Unsupported(f"a tokenizer must keep a text between its special tokens, found {whole} for {bare}")
    return list(whole[: places[0]])


def begin(tokenizer: Any, ids: Sequence[int]) -> list[int]:
    """Return the tokens of a text's beginning, with `start` once, even if a chat template has written it already."""
    first = start(tokenizer)
    return [*ids] if list(ids[: len(first)]) == first else [*first, *ids]


def chat_tokens(
    tokenizer: Any, turns: Sequence[dict[str, str]], *, answer: bool = False, now: bool = False
) -> list[int]:
    """Return the tokens of a chat; the arguments are those of `moa.hf.chat.render`."""
    return begin(tokenizer, encode(tokenizer, render(tokenizer, turns, answer=answer, now=now)))
