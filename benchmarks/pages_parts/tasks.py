"""Write the block about tasks that people know."""

from pages_parts.common import Figures, listed, table, wrapped

from moa.evaluation.tasks import TASKS


def tasks(found: Figures) -> str:
    """Return each row's score by length and task, and the tasks that the dense model hardly solves."""
    names, lines = list(dict.fromkeys(row["row"] for row in found["rows"])), []
    for length in dict.fromkeys(row["length"] for row in found["rows"]):
        here = {row["row"]: row for row in found["rows"] if row["length"] == length}
        for task in (task for task in TASKS if task in here["dense"]):
            scores = [here[name][task] for name in names]
            cells = ["{:.2f} ({:.2f} to {:.2f})".format(score["rate"], *score["interval"]) for score in scores]
            lines.append([f"{length:,}", TASKS[task].columns[0], str(scores[0]["samples"]), *cells])
    parts = [table(["tokens", "task", "samples", *names], lines)] if lines else []
    left = []
    for row in found["pilots"]:
        ran = {task for each in found["rows"] if each["length"] == row["length"] for task in each}
        if lost := [task for task in TASKS if task in row and task not in ran]:
            left.append(f"{listed(lost)} at {row['length']:,} tokens")
    if left:
        parts.append(wrapped(f"Not run, since the dense model hardly solves it in a pilot: {'; '.join(left)}."))
    return "\n\n".join(parts)
