"""The table of docs/models.md."""

from collections import Counter
from typing import Any

SAYS = {"works": "works", "refused": "refused by name", "not built": "cannot be built or run here", "wrong": "WRONG"}

PAGE = """# Models

Whether a plan runs on a model, for every causal language model that transformers {transformers} lists ({counts}).

Works means, of a tiny random model of the family in float64:

- under a plan for which all heads keep everything it is the bare model, in `generate` too;
- under a random plan it agrees within 1e-8 with plain attention whose masks are written out from the plan: without a
  cache, with one in one pass, and in chunks. (Where a model itself computes in float32, as routers of experts do,
  chunks may differ by a hundred times what the bare model's own chunks differ by.)
- `generate` gives what it gives without a cache, and the same with left padding;
- logits made a few positions at a time are the model's own, and the model can be profiled.

Refused by name means `moa.Unsupported`, before anything is computed wrongly.

| model type | | |
|---|---|---|
{rows}

Made by `make models` at commit {commit} (Python {python}, torch {torch}, transformers {transformers}, {date}); the
differences are in [models.json](../benchmarks/results/models.json). A model type may have settings that are refused
where its defaults work, or the other way round: windows, soft caps, shared keys.
"""


def page(found: dict[str, Any]) -> str:
    """The page, from what `benchmarks/models.py` writes: its run, and what it found of each model type."""
    results: dict[str, dict[str, Any]] = found["models"]
    counted = Counter(found["status"] for found in results.values())
    rows = [
        f"| `{kind}` | {SAYS[status]} | {_why(result)} |"
        for status in ("wrong", "works", "refused", "not built")
        for kind, result in results.items()
        if result["status"] == status
    ]
    return PAGE.format(
        counts=", ".join(f"{says}: {counted[status]}" for status, says in SAYS.items() if counted[status]),
        rows="\n".join(rows), **found["run"],
    )  # fmt: skip


def _why(found: dict[str, Any]) -> str:
    if found["status"] == "works":
        return f"largest difference {found['difference']:.0e}"
    return str(found["why"]).replace("|", "/")
