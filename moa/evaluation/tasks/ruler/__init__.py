"""List the thirteen tasks of RULER (arXiv 2404.06654), under its names and with its settings.

Prompts are written from a tokenizer alone, in RULER's words. Two things differ. Its essays are replaced by held-out
Python documentation, and the tasks concerned say so in the table (`docs`). And each sample is as long as its length
allows, where RULER finds one size, in steps, for all samples of a length.
"""

from moa.evaluation.tasks.ruler import documents, needles, variables, words

TASKS = (*needles.TASKS, *variables.TASKS, *words.TASKS, *documents.TASKS)
"""In the order of RULER's tables."""
