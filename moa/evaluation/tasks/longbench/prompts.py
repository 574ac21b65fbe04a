"""Provide prompts for LongBench's tasks in English, and the tokens that each allows for an answer.

The words are this project's own. LongBench's are used where its file of prompts lies beside a local file of rows.
"""

from functools import cache
from pathlib import Path

from moa.plans.errors import MoaError, cause
from moa.plans.replace import read_json

THEIRS = "dataset2prompt.json"
"""Name of LongBench's own file of prompts."""

_SHORT = "Reply with the answer alone, in a few words."
_SUMMARY = "Sum up the text above in about one page.\n\nSummary:"
_QUESTION = f"{{context}}\n\nA question about the text above follows. {_SHORT}\n\nQuestion: {{input}}\nAnswer:"
_EXAMPLES = "{context}\n{input}"

PROMPTS: dict[str, tuple[int, str]] = {
    **dict.fromkeys(("hotpotqa", "2wikimqa", "musique"), (32, _QUESTION)),
    "narrativeqa": (128, _QUESTION),
    "qasper": (128, (
        f"{{context}}\n\nA question about the text above follows. {_SHORT} If it is a yes-or-no question, reply yes or "
        "no; if the text does not tell, reply unanswerable.\n\nQuestion: {input}\nAnswer:"
    )),
    "multifieldqa_en": (64, _QUESTION),
    **dict.fromkeys(("gov_report", "multi_news"), (512, f"{{context}}\n\n{_SUMMARY}")),
    "qmsum": (512, (
        "{context}\n\nThe text above is the record of a meeting. Reply to what follows in one or more sentences."
        "\n\n{input}\nAnswer:"
    )),
    "trec": (64, _EXAMPLES),
    "triviaqa": (32, _EXAMPLES),
    "samsum": (128, _EXAMPLES),
    "passage_count": (32, (
        "{context}\n\nSome of the paragraphs above are repeated. How many different ones are there? Reply with the "
        "number alone.\n\nAnswer:"
    )),
    "passage_retrieval_en": (32, (
        "{context}\n\nOne of the paragraphs above was summed up like this:\n\n{input}\n\nWhich one? Reply with its "
        "name alone, such as Paragraph 1.\n\nAnswer:"
    )),
    "lcc": (64, "{context}"),
    "repobench-p": (64, "{context}{input}"),
}  # fmt: skip
"""By task: the tokens of an answer, and the prompt with the places of a row's context and question."""


def prompt_of(task: str, data: str | None) -> str:
    """Return a task's prompt, with `{context}` and maybe `{input}` in it.

    Args:
        task: The task's name in LongBench.
        data: The local file of rows, if there is one: LongBench's prompts are looked for in its folder.

    Raises:
        MoaError: The file of prompts there has none for this task.
    """
    theirs = None if data is None else Path(data).parent / THEIRS
    return PROMPTS[task][1] if theirs is None or not theirs.is_file() else _published(theirs, task)


@cache
def _published(path: Path, task: str) -> str:
    try:
        found = read_json(path)
    except (OSError, ValueError) as error:
        raise MoaError(f"cannot read {path}: {cause(error)}") from None
    prompt = found.get(task) if isinstance(found, dict) else None
    if not isinstance(prompt, str) or "{context}" not in prompt:
        raise MoaError(f"{path} must be an object whose {task} is a prompt with {{context}} in it")
    return prompt
