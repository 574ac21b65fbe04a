"""List the tasks of the evaluation by name. A task is a file in this folder and a line here."""

from moa.evaluation.tasks import decoded, needles, ruler, text
from moa.evaluation.tasks.task import Task

TASKS: dict[str, Task] = {task.name: task for task in (*text.TASKS, *decoded.TASKS, *needles.TASKS, *ruler.TASKS)}
"""In the order of the table's columns."""
