"""List the tasks of the evaluation by name. A task is a file in this folder and a line here."""

from moa.evaluation.tasks import decoded, generation, lines, longbench, needles, pairs, passkey, ruler, text, turns
from moa.evaluation.tasks.task import Task

_FILES = (text, decoded, generation, needles, turns, passkey, pairs, lines, ruler, longbench)

TASKS: dict[str, Task] = {task.name: task for file in _FILES for task in file.TASKS}
"""In the order of the table's columns."""
