"""Templates that ask for the date get the same one on every day."""

from copy import deepcopy
from datetime import datetime
from typing import Any

import pytest

from moa.evaluation.haystack import haystack
from moa.hf.chat import DAY, render

TURN = [{"role": "user", "content": "hello"}]
LLAMA = """
  {%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- endif %}
{%- endif %}
Today: {{ date_string }}
{{ messages[0].content }}"""
CALLS = (
    "\n{% macro today() %}{{ strftime_now('%A, %-d %B %Y') }}{% endmacro %}"
    "{% for m in messages %}{{ today() }} {{ strftime_now('%H:%M') }} {{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %} answer{% endif %}"
)


@pytest.fixture
def dated(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A tokenizer of its own, whose template is given in the test, in the year 1999."""

    class Then(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> "Then":
            return cls(1999, 12, 31)

    monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", Then)
    return deepcopy(tokenizer)


def test_the_day_is_one_day() -> None:
    assert {code: datetime(2024, 7, 26).strftime(code) for code in DAY} == DAY


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (LLAMA, "Today: 26 Jul 2024\nhello"),
        (CALLS, "\nFriday, 26 July 2024 00:00 hello answer"),
        ("{{ date_string }}: {{ messages[0].content }}", "26 Jul 2024: hello"),
    ],
)
def test_dates_do_not_move(dated: Any, template: str, expected: str) -> None:
    dated.chat_template = template
    assert render(dated, TURN, answer=True) == expected


@pytest.mark.parametrize("start", ["\n", "  \n", "  {% if true %}x{% endif %}\n", "x"])
def test_else_the_text_is_transformers_own(dated: Any, start: str) -> None:
    dated.chat_template = start + "{{ messages[0].content }}{# strftime_now #}"
    assert render(dated, TURN) == dated.apply_chat_template(TURN, tokenize=False)


def test_a_haystack_does_not_know_the_day(dated: Any) -> None:
    dated.chat_template = CALLS
    assert "July 2024" in dated.decode(haystack(dated, 700, 1, 0, 1).ids)
