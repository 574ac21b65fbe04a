"""Which rows there are: a stage, and what its function is given."""

from collections.abc import Iterator
from typing import Any

from serving_parts.sizes import Sizes

from moa.plans.model import ModelInfo
from moa.plans.span import BLOCK

DENSE, HALF, QUARTER = "dense", "plan 0.5", "plan 0.25"
HALF_FIRST, QUARTER_FIRST = "plan 0.5, first keys", "plan 0.25, first keys"
PLANS = (HALF, HALF_FIRST, QUARTER, QUARTER_FIRST)
COMPARED = (DENSE, QUARTER, QUARTER_FIRST)
"""What is timed in turn."""

CHUNKS = (256, 2048)
"""Of --max-num-batched-tokens: what `moa serve` sets, and vLLM's default."""

WAYS = ("one by one", "batch of 8", "chunks of 256", "prefix cache", "preemption")

PARTS = {
    "exact": ("pages", "concurrency", "reference", "equality", "cancellations"),
    "speed": ("decode", "prefill", "crowd"),
}
"""The stages of each part, which has a result file of its own: both together take hours."""

Row = dict[str, Any]
"""The `stage` of a row and its arguments, later also what was `found`."""


def rows(sizes: Sizes, model: ModelInfo) -> Iterator[Row]:
    """Yield every row, in the order in which they are measured: what takes least time first."""
    yield from ({"stage": "pages", "plan": plan} for plan in (DENSE, *PLANS))
    yield from (
        {"stage": "concurrency", "plan": plan, "chunk": chunk, "length": length}
        for length in sizes.limits for chunk in CHUNKS for plan in (DENSE, HALF, QUARTER)
    )  # fmt: skip
    for plan in PLANS:
        yield {"stage": "reference", "plan": plan}
        yield from ({"stage": "equality", "plan": plan, "way": way} for way in WAYS)
    yield from ({"stage": "decode", "batch": batch} for batch in sizes.batches)
    yield from ({"stage": "prefill", "chunk": chunk} for chunk in CHUNKS)
    yield from ({"stage": "cancellations", "plan": plan} for plan in (QUARTER, QUARTER_FIRST))
    for new in sizes.answers:
        one = model.dense_kv_bytes(-(-(sizes.length + new) // BLOCK) * BLOCK)
        fit = (sizes.pool << 20) // one
        crowd = {"stage": "crowd", "new": new}
        for chunk, most in ((CHUNKS[0], {fit, 2 * fit, sizes.requests}), (CHUNKS[1], {fit, sizes.requests})):
            yield from ({**crowd, "plan": DENSE, "at_once": at_once, "chunk": chunk} for at_once in sorted(most))
        for plan in COMPARED[1:]:
            yield {**crowd, "plan": plan, "at_once": sizes.requests, "chunk": CHUNKS[0]}


def name(row: Row) -> str:
    """Return the name of a row, in which `--only` looks for its texts."""
    stage, *others = (str(value) if key in ("stage", "way", "plan") else f"{key} {value}"
                      for key, value in row.items() if key != "found")  # fmt: skip
    return f"{stage}: {', '.join(others)}".replace("_", " ")
