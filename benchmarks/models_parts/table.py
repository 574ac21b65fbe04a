"""The table of docs/models.md."""

import platform
from collections import Counter
from datetime import date
from importlib.metadata import version
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

Made by `make models` (python {python}, torch {torch}, transformers {transformers}, {date}); the differences are in
[models.json](../benchmarks/results/models.json). A model type may have settings that are refused where its defaults
work, or the other way round: windows, soft caps, shared keys.
"""


def page(results: dict[str, dict[str, Any]]) -> str:
    """The page, from what `benchmarks/models.py` found of each model type."""
    counted = Counter(found["status"] for found in results.values())
    rows = [
        f"| `{kind}` | {SAYS[found['status']]} | {_why(found)} |"
        for status in ("wrong", "works", "refused", "not built")
        for kind, found in results.items()
        if found["status"] == status
    ]
    return PAGE.format(
        counts=", ".join(f"{says}: {counted[status]}" for status, says in SAYS.items() if counted[status]),
        rows="\n".join(rows), python=platform.python_version(), torch=version("torch"),
        transformers=version("transformers"), date=date.today().isoformat(),
    )  # fmt: skip


def _why(found: dict[str, Any]) -> str:
    if found["status"] == "works":
        return f"largest difference {found['difference']:.0e}"
    return str(found["why"]).replace("|", "/")
