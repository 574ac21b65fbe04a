"""Check the Triton kernels on a GPU, and time them and decoding under a plan.

    python benchmarks/gpu.py                           all parts in 25 minutes, the most valuable first (`make gpu`)
    python benchmarks/gpu.py --part correctness|decode|reads|prefill|end-to-end|influence
    python benchmarks/gpu.py --dry                     every code path, tiny, interpreted: no figure counts

It first checks the kernels against the reference and stops if one disagrees. It writes the results after every row, and
lists as not run what it has no time or memory for. Needs torch, triton, numpy, transformers, pydantic; FlashInfer is
compared where installed. Models have random weights and caches random keys, so no network is needed.
"""

import argparse
import os
import sys
from collections.abc import Callable, Iterable
from itertools import chain
from pathlib import Path
from typing import Any

from moa.plans.replace import replace, replace_json

PARTS = {"correctness": 4, "decode": 4, "reads": 4, "prefill": 3, "end-to-end": 6, "influence": 3}
"""Minutes after which no new measurement of a part starts; what one leaves is there for the next."""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=PARTS, help="only this one, after a brief check")
    parser.add_argument("--dry", action="store_true", help="tiny sizes on the CPU, to run every code path")
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "results", help="folder of gpu-PART.{json,md}"
    )
    return parser.parse_args()


def table(rows: list[dict[str, Any]]) -> str:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for row in rows:
        cells = [f"{x:.4g}" if isinstance(x := row.get(name, "-"), float) else str(x) for name in columns]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> int:
    args = arguments()
    if args.dry:
        os.environ["TRITON_INTERPRET"] = "1"  # read when triton is imported, hence the imports below
    from gpu_parts import correctness, end_to_end, influence, kernels, reads
    from gpu_parts.measure import Bench, Row

    bench = Bench(dry=args.dry)
    brief = args.part not in (None, "correctness")
    parts: dict[str, Callable[[Bench, dict[str, Any]], Iterable[Row]]] = {
        "correctness": lambda bench, _: correctness.run(bench, brief), "decode": kernels.run_decode,
        "reads": reads.run, "prefill": kernels.run_prefill, "end-to-end": end_to_end.run, "influence": influence.run,
    }  # fmt: skip
    chosen = [part for part in PARTS if args.part in (None, part) or part == "correctness"]
    about, ceilings = bench.about(), dict[str, float]()
    args.out.mkdir(parents=True, exist_ok=True)
    for part in chosen:
        bench.allow(PARTS[part])
        if part != "correctness" and not ceilings:
            ceilings = bench.ceilings()
        report: dict[str, Any] = {"part": part, **about, **ceilings}
        rows: list[Row] = []
        for row in chain(parts[part](bench, report), [None]):
            rows += [] if row is None else [row]
            write(args.out, report | {"not_run": bench.skipped}, rows)
        wrong = [row for row in rows if not row.get("agrees", True)]
        print(f"{part}: {len(rows)} rows; not run: {bench.skipped}\n\n{table(wrong or rows)}\n", flush=True)
        if wrong:
            print("stopped: a kernel disagrees with the reference", file=sys.stderr)
            return 1
    return 0


def write(folder: Path, report: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """Write gpu-PART.json and gpu-PART.md as far as they are known."""
    replace_json(folder / f"gpu-{report['part']}.json", report | {"rows": rows})
    head = "\n".join(f"- {name}: {value}" for name, value in report.items())
    replace(folder / f"gpu-{report['part']}.md", f"{head}\n\n{table(rows)}\n".encode())


if __name__ == "__main__":
    sys.exit(main())
