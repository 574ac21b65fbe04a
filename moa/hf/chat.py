"""Render chat templates as on one fixed day, so that a sample has the same tokens whenever it is made."""

from collections.abc import Sequence
from typing import Any

from moa.plans.errors import MoaError, shortened

DAY = {
    "%d": "26", "%-d": "26", "%e": "26", "%j": "208", "%a": "Fri", "%A": "Friday", "%b": "Jul", "%B": "July",
    "%m": "07", "%-m": "7", "%y": "24", "%Y": "2024", "%F": "2024-07-26", "%D": "07/26/24", "%x": "07/26/24",
    "%H": "00", "%I": "12", "%M": "00", "%S": "00", "%p": "AM", "%R": "00:00", "%T": "00:00:00", "%X": "00:00:00",
}  # fmt: skip
"""The results of date formats: the date that Llama 3's own template takes where it is given none."""
# A macro, since transformers lets templates call nothing that is passed in. Its line break is not rendered.
_NOW = (
    "{% macro strftime_now(format) %}{{ format"
    + "".join(f"|replace('{code}', '{text}')" for code, text in DAY.items())
    + " }}{% endmacro %}\n"
)


MARK = "\u241e"
"""A symbol that no template and no generated text contains: it marks places in a chat that is rendered."""


def has_template(tokenizer: Any) -> bool:
    """Return whether the tokenizer can render a chat."""
    return bool(getattr(tokenizer, "chat_template", None))


def render(tokenizer: Any, turns: Sequence[dict[str, str]], *, answer: bool = False, now: bool = False) -> str:
    """Return the text of a chat by the tokenizer's template, whatever the day is.

    Args:
        tokenizer: Any transformers tokenizer with a chat template.
        turns: Messages with `role` and `content`.
        answer: Whether the beginning of the model's answer follows.
        now: Whether the template gets today's date, as in use, instead of the fixed one.

    Raises:
        MoaError: The template cannot render these turns.
    """
    try:
        template = tokenizer.get_chat_template()
        dated: dict[str, str] = {}
        if not now:
            template = _NOW + template if "strftime_now" in template else template
            dated = {"date_string": " ".join(DAY[code] for code in ("%d", "%b", "%Y"))}
        text: str = tokenizer.apply_chat_template(
            list(turns), chat_template=template, tokenize=False, add_generation_prompt=answer, **dated
        )
    except Exception as error:  # a template is a program of its own
        roles = ", ".join(dict.fromkeys(turn["role"] for turn in turns))
        raise MoaError(f"the chat template cannot render turns of {roles}: {shortened(str(error), 200)}") from error
    return text


def pieces(tokenizer: Any, turns: Sequence[dict[str, str]], *, answer: bool = False) -> list[str]:
    """Return the text of a chat, cut at each MARK in the turns.

    Raises:
        MoaError: The template cannot render these turns, or changes their text.
    """
    found = render(tokenizer, turns, answer=answer).split(MARK)
    wanted = sum(turn["content"].count(MARK) for turn in turns)
    if len(found) != wanted + 1:
        raise MoaError(
            f"the chat template must render each turn's text once, found {len(found) - 1} of {wanted} marked places"
        )
    return found
