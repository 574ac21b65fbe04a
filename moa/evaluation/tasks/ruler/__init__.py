"""List the thirteen tasks of RULER (arXiv 2404.06654), under its names and with its settings.

Prompts are written from a tokenizer alone, in RULER's words and white space. These things differ:

- Essays are replaced by held-out Python documentation, whole sentences of it where RULER cuts at words; the tasks
  concerned say so in the table (`docs`).
- Each sample is as long as its length allows, the answer's tokens included, where RULER finds one size, in steps, for
  all samples of a length.
- Random draws are of this project: they differ by sample where RULER has some once for all (the order of needles, of
  documents and of coded words, the value and places of vt's solved example), the keys of a sample never repeat, and
  questions of documents are drawn where RULER takes the first ones.
- A model with a chat template is asked in a user's turn, and its answer begins with RULER's prefix.
"""

from moa.evaluation.tasks.ruler import documents, needles, variables, words

TASKS = (*needles.TASKS, *variables.TASKS, *words.TASKS, *documents.TASKS)
"""In the order of RULER's tables."""
