"""Run every causal language model that transformers lists, small and random, under plans: works, refused, not built.

    python benchmarks/models.py            # all of them: benchmarks/results/models.json
    python benchmarks/models.py llama opt  # these, printed

A model that works agrees in float64 with its own eager attention and masks written out from the plan: without a cache,
with a cache in one pass and in chunks, in `generate`, with left padding; and it can be profiled. Each model has a
process of its own, with 8 GB of memory and four minutes at most. Exits with 1 if one gives a wrong answer or an error
that is not ours.
"""

import argparse
import multiprocessing
import resource
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from moa.plans.errors import MoaError
from moa.plans.replace import replace_json

MEMORY, SECONDS = 8 << 30, 240
RESULTS = Path(__file__).parent / "results"


def examine(kind: str, answer: Any) -> None:
    """Send to `answer` what holds for one model type; this runs in a process of its own."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    from models_parts import check, tiny
    from transformers.utils import logging

    logging.set_verbosity_error()
    at = ["building"]
    found: dict[str, Any] = {}
    try:
        model = tiny.tiny_model(kind)
        found["model"] = type(model).__name__
        differences = check.check(model, at.append)
        found |= {"status": "works", "difference": max(differences[name] for name in check.EXACT)}
    except MoaError as error:
        found |= {"status": "refused", "at": at[-1], "why": str(error)}
    except BaseException as error:
        why = f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
        status = "not built" if at[-1] in ("building", "the bare model") else "wrong"
        found |= {"status": status, "at": at[-1], "why": why}
    answer.send(found)


def sweep(kinds: Iterable[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each model type, and what was found of it."""
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(
        ["transformers.generation", "moa.runtime.applied", "moa.profiler.recorder", "moa.cli.main"]
    )
    for kind in kinds:
        ours, theirs = processes.Pipe()
        process = processes.Process(target=examine, args=(kind, theirs))
        process.start()
        theirs.close()
        try:
            found = ours.recv() if ours.poll(SECONDS) else {"status": "not built", "why": f"over {SECONDS} seconds"}
        except EOFError:
            found = {"status": "not built", "why": f"over {MEMORY >> 30} GiB of memory"}
        process.kill()
        process.join()
        yield kind, found


def write(results: dict[str, dict[str, Any]]) -> None:
    """Write the results, with what plans can reach of the models that work."""
    from models_parts.share import share
    from provenance import provenance

    shares = {kind: share(kind) for kind, found in results.items() if found["status"] == "works"}
    shares = {kind: found for kind, found in shares.items() if found is not None}
    replace_json(RESULTS / "models.json", {"run": provenance(seed=0, runs=1), "models": results, "shares": shares})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", help="model types; all of them when left out")
    kinds = parser.parse_args().kinds
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    results = {}
    for kind, found in sweep(kinds or sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)):
        results[kind] = found
        print(kind, found["status"], found.get("at", ""), found.get("why", found.get("difference")), flush=True)
    if not kinds:
        write(results)
    return int(any(found["status"] == "wrong" for found in results.values()))


if __name__ == "__main__":
    sys.exit(main())
