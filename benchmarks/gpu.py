"""Check the Triton kernels on a GPU, and time them and decoding under a plan.

    python benchmarks/gpu.py --part correctness|kernels|end-to-end|influence [--out benchmarks/results]
    python benchmarks/gpu.py --part kernels --dry      every code path, tiny, interpreted: no figure counts

Each part stays under 8 minutes and lists as not run what it has no time for. It first checks the kernels against the
reference and stops if one disagrees. Needs torch, triton, numpy; end-to-end also transformers, pydantic; FlashInfer is
compared where installed. Models have random weights and caches random keys, so no network is needed.
"""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from moa.plans.replace import replace, replace_json

PARTS = ("correctness", "kernels", "end-to-end", "influence")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=PARTS, required=True)
    parser.add_argument("--dry", action="store_true", help="tiny sizes on the CPU, to run every code path")
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "results", help="folder of gpu-PART.{json,md}"
    )
    parser.add_argument("--minutes", type=float, default=7.5, help="no new measurement starts after this")
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
    from gpu_parts import correctness, end_to_end, influence, kernels
    from gpu_parts.measure import Bench

    bench = Bench(dry=args.dry, minutes=args.minutes)
    report: dict[str, Any] = {"part": args.part, **bench.about()}
    rows = correctness.run(bench, brief=args.part != "correctness")
    wrong = [row for row in rows if not row["agrees"]]
    if args.part != "correctness" and not wrong:
        report |= bench.ceilings()
        parts = {"kernels": kernels.run, "end-to-end": end_to_end.run, "influence": influence.run}
        rows = parts[args.part](bench, report)
    report |= {"rows": rows, "not_run": bench.skipped}
    args.out.mkdir(parents=True, exist_ok=True)
    replace_json(args.out / f"gpu-{args.part}.json", report)
    head = "\n".join(f"- {name}: {value}" for name, value in report.items() if name != "rows")
    replace(args.out / f"gpu-{args.part}.md", f"{head}\n\n{table(rows)}\n".encode())
    print(f"{head}\n\n{table(wrong or rows)}")
    if wrong:
        print("stopped: a kernel disagrees with the reference", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
