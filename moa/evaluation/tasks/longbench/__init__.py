"""List the tasks of LongBench (arXiv 2308.14508) in English and of LongBench v2 (arXiv 2412.15204).

Tokens of an answer and scores are theirs; prompts are this project's own unless LongBench's file of them is at hand.
Rows come from the hub, or from a local file as their authors publish it. LongBench's five Chinese tasks are left out:
scoring them takes a segmenter of Chinese words.
"""

from moa.evaluation.tasks.longbench import second
from moa.evaluation.tasks.longbench.first import LongBench
from moa.evaluation.tasks.longbench.prompts import PROMPTS

TASKS = (*(LongBench.of(name) for name in PROMPTS), *second.TASKS)
