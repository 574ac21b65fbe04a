"""Calculate, without a measurement, the least time of decode and prefill attention on an A100, an H100 and a B200.

    python benchmarks/roofline.py        writes benchmarks/results/roofline.{json,md}

Rates are the makers' datasheet rates (dense bf16, HBM). A step takes the larger of bytes / bandwidth and flops / rate.
Large models are calculated by the density of a plan (keys kept over keys seen at the length). Shipped plans are by
their own figures: memory holds the slabs that they allocate, and a prefill computes the pairs that they keep.
"""

from dataclasses import dataclass
from pathlib import Path

from provenance import about, provenance

from moa.plans.plan import Plan
from moa.plans.reading import COARSE, INSIDE, READ_STEPS, SUMMARIES, choices, fetched, opened, read_bytes, summary_bytes
from moa.plans.replace import replace, replace_json
from moa.plans.span import BLOCK

DEVICES = {
    "H100 SXM 80 GB": (3.35e12, 989e12, 80e9), "A100 SXM 80 GB": (2.039e12, 312e12, 80e9),
    "B200 180 GB": (8e12, 2.25e15, 180e9),
}  # fmt: skip
"""Bytes/s, bf16 flop/s, bytes of memory."""
READ_LENGTHS = (8192, 32768, 131072)
SHARES = (READ_STEPS, 32, 16, 8)
"""Of the bytes of all keys and values that a step reads, in 1/256."""
SHIPPED = {"smollm2-135m-instruct": 134.5e6}
"""Models with shipped plans, and their parameters."""
SHIPPED_LENGTHS = (2048, 4096, 8192)
DENSITIES = (1.0, 0.5, 0.25)
RESERVE = 4e9
"""Bytes left for activations, CUDA and fragmentation."""


@dataclass(frozen=True)
class Shape:
    """What of a model the bounds need."""

    name: str
    layers: int
    query_heads: int
    kv_heads: int
    head_size: int
    parameters: float

    def kv_bytes(self, tokens: float) -> float:
        return 2 * 2 * self.layers * self.kv_heads * self.head_size * tokens

    def attention_flops(self, pairs: float) -> float:
        """Return the flops of attention: two products of 2 * D for every visible (row, key) of every query head."""
        return 4.0 * self.layers * self.query_heads * self.head_size * pairs


SHAPES = (Shape("Llama-3-8B", 32, 32, 8, 128, 8.03e9), Shape("Llama-2-7B", 32, 32, 32, 128, 6.74e9))


def decode(shape: Shape, device: str, length: int, density: float, held: float | None = None) -> dict[str, float]:
    """Return one decode step at the largest batch that fits.

    Args:
        shape: The model.
        device: One of `DEVICES`.
        length: Tokens of each sequence.
        density: Keys that a step reads, as a share of all.
        held: Bytes of keys and values that a sequence takes; by default those read.
    """
    bandwidth, rate, memory = DEVICES[device]
    weights = 2 * shape.parameters
    each = shape.kv_bytes(density * length)
    batch = int((memory - RESERVE - weights) // (each if held is None else held))
    flops = batch * (2 * shape.parameters + shape.attention_flops(density * length))
    seconds = max((weights + batch * each) / bandwidth, flops / rate)
    return {"batch": batch, "step_ms": 1e3 * seconds, "tokens_per_s": batch / seconds if batch else 0.0}


def prefill(shape: Shape, device: str, length: int, kept: float) -> float:
    """Return the milliseconds of one layer's attention over a prompt; `kept` is the share of causal pairs kept."""
    return 1e3 * shape.attention_flops(kept * length * (length + 1) / 2) / shape.layers / DEVICES[device][1]


def rows() -> list[dict[str, object]]:
    return [
        {"device": device, "model": shape.name, "length": length, "density": density,
         **decode(shape, device, length, density), "prefill_layer_ms": prefill(shape, device, length, density)}
        for device in DEVICES for shape in SHAPES for length in (4096, 16384, 32768, 131072) for density in DENSITIES
    ]  # fmt: skip


def reads() -> list[dict[str, object]]:
    """Return steps that keep all keys and read a share of their bytes, with what their scores add.

    A score takes 4 bytes per page and query head; it is written and read once, if caches hold it from then on.
    """
    found: list[dict[str, object]] = []
    shape = SHAPES[0]
    groups, per = shape.layers * shape.kv_heads, shape.query_heads // shape.kv_heads
    summary = SUMMARIES * summary_bytes(shape.head_size) / BLOCK
    for device in DEVICES:
        for length in READ_LENGTHS:
            dense, among = shape.kv_bytes(length), int(choices(length, COARSE))
            for share in SHARES:
                read = groups * int(read_bytes(share, length, length, COARSE, shape.head_size))
                open_ = int(opened(fetched(share, length, length, COARSE, shape.head_size), among))
                pages = 0 if share == READ_STEPS else (among if open_ < among else 0) + INSIDE * open_
                scores = 8 * groups * per * pages
                held = dense + groups * summary * length * (share < READ_STEPS)
                found.append({
                    "device": device, "model": shape.name, "length": length, "read": share / READ_STEPS,
                    "bytes": read / dense, "scores": scores / dense,
                    **decode(shape, device, length, (read + scores) / dense, held),
                })  # fmt: skip
    return found


def shipped() -> list[dict[str, object]]:
    """Return the same of the shipped plans, and of their models without a plan."""
    found: list[dict[str, object]] = []
    for model, parameters in SHIPPED.items():
        plans = {f"{model}-{density}": Plan.load(f"{model}-{density}") for density in ("0.5", "0.25", "0.125")}
        info = next(iter(plans.values())).model
        shape = Shape(model, info.layers, info.query_heads, info.kv_heads, info.head_size, parameters)
        named = {"dense": Plan.dense(info), **plans}
        for device in DEVICES:
            for length in SHIPPED_LENGTHS:
                for name, plan in named.items():
                    density, held = plan.density(length), float(plan.kv_bytes(length, dtype="bfloat16"))
                    found.append({
                        "device": device, "model": model, "plan": name, "length": length, "density": density,
                        **decode(shape, device, length, density, held),
                        "prefill_layer_ms": prefill(shape, device, length, plan.prefill_fraction(length)),
                    })  # fmt: skip
    return found


def markdown(
    table: list[dict[str, object]], read: list[dict[str, object]], plans: list[dict[str, object]], run: str
) -> str:  # fmt: skip
    lines = [
        "Calculated from datasheet rates, not measured (`python benchmarks/roofline.py`). Decode: bf16, largest batch "
        "that fits beside the weights, one step reads weights and kept keys once. Prefill: one layer's attention, "
        "batch 1.",
        "",
        run,
        "",
        "| device | model | length | density | batch | decode step ms | decode tokens/s | over dense | prefill ms |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    dense = {}
    for row in table:
        key = (row["device"], row["model"], row["length"])
        speed = float(str(row["tokens_per_s"]))
        dense.setdefault(key, speed)
        over = f"{speed / dense[key]:.2f}" if dense[key] else "-"
        step = f"{row['step_ms']:.1f}" if row["batch"] else "does not fit"
        lines.append(
            f"| {row['device']} | {row['model']} | {row['length']:,} | {row['density']} | {row['batch']} | "
            f"{step} | {speed:,.0f} | {over} | {row['prefill_layer_ms']:.2f} |"
        )
    lines += [
        "",
        "Steps that keep all keys and read a share of them, calculated likewise: `bytes` is what a step reads of keys, "
        "values and summaries, `scores` what it writes and reads of scores, both as shares of all keys and values.",
        "",
        "| device | model | length | read | bytes | scores | batch | decode step ms | decode tokens/s | over dense |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    whole = {(row["device"], row["length"]): float(str(row["tokens_per_s"])) for row in read if row["read"] == 1}
    for row in read:
        speed, base_speed = float(str(row["tokens_per_s"])), whole[row["device"], row["length"]]
        lines.append(
            f"| {row['device']} | {row['model']} | {row['length']:,} | {row['read']} | {row['bytes']:.4f} | "
            f"{row['scores']:.4f} | {row['batch']} | {row['step_ms']:.1f} | {speed:,.0f} | "
            f"{speed / base_speed:.2f} |"
        )
    lines += [
        "",
        "Shipped plans, calculated likewise: the batch is the largest whose slabs fit, a step reads the keys that the "
        "plan keeps.",
        "",
        "| device | plan | length | density | batch | decode step ms | decode tokens/s | over dense | prefill ms |",
        "|---|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    base = {(row["device"], row["length"]): float(str(row["tokens_per_s"])) for row in plans if row["plan"] == "dense"}
    for row in plans:
        speed = float(str(row["tokens_per_s"]))
        lines.append(
            f"| {row['device']} | {row['plan']} | {row['length']:,} | {row['density']:.3f} | {row['batch']:,} | "
            f"{row['step_ms']:.1f} | {speed:,.0f} | {speed / base[row['device'], row['length']]:.2f} | "
            f"{row['prefill_layer_ms']:.4f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    results = Path(__file__).parent / "results"
    results.mkdir(exist_ok=True)
    table, read, plans, run = rows(), reads(), shipped(), provenance()
    found = {"kind": "calculated", "run": run, "rows": table, "reads": read, "plans": plans}
    replace_json(results / "roofline.json", found)
    page = markdown(table, read, plans, about(run))
    replace(results / "roofline.md", page.encode())
    print(page)


if __name__ == "__main__":
    main()
