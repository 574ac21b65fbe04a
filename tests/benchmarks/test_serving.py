"""`benchmarks/serving.py` without vLLM: which rows there are, what is claimed of them, going on where it stopped."""

import json
import sys
from importlib import import_module
from types import SimpleNamespace

import pytest

from moa.plans.patterns import KeyDiffWindow
from moa.plans.plan import Plan

TIMES = {"iqr": 0.1, "seconds": []}
FOUND = {
    "reference": [{"tokens": [1], "logprobs": [-1.0], "gaps": [0.5]}],
    "cancellations": {
        "finished": 6, "given up": 6, "lost": 0, "errors": 2, "first errors": ["Gone: 5", "Late: 6"], "changed": 0,
        "pages in use": 0.0, "pages in use at the end": 0.0,
    },
}  # fmt: skip


def measured(model, files, sizes, row, wanted):
    """What rows might find: plans are twice as fast as dense, and need 0.3 of its memory."""
    dense = row.get("plan") == "dense"
    match row["stage"]:
        case "equality":
            assert wanted == FOUND["reference"]
            return {"difference": 2e-5, "tokens": 3, "ties": 0, "wrong": 0, "preemptions": 1, "tokens found there": 64}
        case "pages":
            return {"pages": 1000 if dense else 300, "groups": 1 if dense else 15}
        case "concurrency":
            return {"requests": 2.0 if dense else 2 / 0.3}
        case "prefill" | "decode":
            return {
                plan: {"median": 2.0 if plan == "dense" else 1.0, **TIMES}
                for plan in ("dense", "plan 0.25", "plan 0.25, first keys")
            }
        case "crowd":
            rate = {2: 10.0, 4: 12.0}.get(row["at_once"], 11.0) if dense else 14.4
            return {
                "tokens per second": rate, "lost": 0, "seconds": {"prefill": 1.0, "decode": 2.0}, "most at once": 3,
                "preemptions": 5,
            } | ({} if dense else {"changed": 0})  # fmt: skip
    return FOUND[row["stage"]]


@pytest.fixture
def benchmark(save_tiny, tmp_path, monkeypatch):
    """The script, its command line, and the names of the rows that it measures."""
    model = save_tiny(tmp_path)
    for name in ("half", "quarter"):
        Plan.from_rules(model, {}, defaults=KeyDiffWindow(alpha=128, beta=0.0)).save(tmp_path / f"{name}.yaml")
    serving, asked = import_module("serving"), []

    def alone(*given):
        asked.append(serving.name(given[3]))
        return measured(*given)

    monkeypatch.setattr(serving, "alone", alone)
    monkeypatch.setattr(serving, "version", lambda package: "0.32.0")
    arguments = [str(tmp_path), "--half", str(tmp_path / "half.yaml"), "--quarter", str(tmp_path / "quarter.yaml")]
    monkeypatch.setattr(sys, "argv", ["serving.py", *arguments, "--small", "--results", str(tmp_path)])
    return SimpleNamespace(main=serving.main, asked=asked)


def test_rows_claims_and_going_on(benchmark, tmp_path):
    benchmark.main()
    parts = {part: json.loads((tmp_path / f"serving-{part}-small.json").read_text()) for part in ("exact", "speed")}
    found = {what: [*parts["exact"][what], *parts["speed"][what]] for what in ("rows", "claims")}
    assert len(benchmark.asked) == len(set(benchmark.asked)) == len(found["rows"])
    assert {"equality: plan 0.5, preemption", "decode: batch 2", "crowd: new 16, dense, at once 6, chunk 2048"} <= set(
        benchmark.asked
    )
    claims = {claim["claim"]: claim for claim in found["claims"]}
    assert len(claims) == len(found["claims"])
    missed = {text for text, claim in claims.items() if not claim["holds"]}
    assert missed == {"pages: plan 0.25: share of dense"}
    assert claims["concurrency: plan 0.25, chunk 256, length 1024: times dense"]["measured"] == pytest.approx(1 / 0.3)
    written = [tmp_path / f"serving-{part}-small.md" for part in parts]
    page = "".join(file.read_text() for file in written)
    assert all(text in page for text in claims)
    assert page.count("| NO |") == 1
    assert "first errors: Gone: 5; first errors: Late: 6;" in page
    blocks = import_module("pages_parts.serving")
    block = blocks.exact(parts["exact"]) + blocks.speed(parts["speed"])
    assert "| plan 0.25 | preemption | 3 | 0 | 0 | 2.0e-05 |" in block
    assert "| 16 | plan 0.25 | 6 | 256 | 14.4 | 1 | 2 | 3 | 5 |" in block
    assert "| step, batch 2 | 2,000.0 (10%) | 1,000.0 (10%) | 1,000.0 (10%) |" in block
    assert "| 1,024 | 2,048 | plan 0.25 | 6.67 |" in block

    benchmark.asked.clear()
    benchmark.main()
    assert not benchmark.asked
    assert "".join(file.read_text() for file in written) == page


def test_a_part_alone(benchmark, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--part", "speed"])
    benchmark.main()
    assert {name.partition(":")[0] for name in benchmark.asked} == {"decode", "prefill", "crowd"}
    assert [file.name for file in sorted(tmp_path.glob("serving-*.json"))] == ["serving-speed-small.json"]


def test_a_crowd_stands_beside_dense_at_its_best(benchmark, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--only", "crowd: new 16"])
    benchmark.main()
    assert not (tmp_path / "serving-speed-small.json").exists()  # rows alone do not take the place of a whole part
    found = json.loads((tmp_path / "serving-speed-small-some.json").read_text())
    best = max(row["found"]["tokens per second"] for row in found["rows"] if row["plan"] == "dense")
    [faster] = [c for c in found["claims"] if "plan 0.25, at once" in c["claim"] and "times dense" in c["claim"]]
    assert faster["measured"] == 14.4 / best


def test_equality_needs_what_it_is_compared_with(benchmark, monkeypatch):
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--only", "one by one"])
    with pytest.raises(SystemExit):
        benchmark.main()


def output(tokens, logprobs):
    return SimpleNamespace(
        token_ids=tokens,
        logprobs=[{t: SimpleNamespace(logprob=p)} for t, p in zip(tokens, logprobs, strict=True)],
    )


@pytest.mark.parametrize(
    ("tokens", "gaps", "expected"),
    [
        ([1, 2, 3], [0.5, 0.5, 0.5], {"difference": 0.25, "tokens": 3, "ties": 0, "wrong": 0}),
        ([1, 5, 3], [0.5, 5e-5, 0.5], {"difference": 0.0, "tokens": 1, "ties": 1, "wrong": 0}),
        ([1, 5, 3], [0.5, 0.5, 0.5], {"difference": 0.0, "tokens": 1, "ties": 0, "wrong": 1}),
        ([1, 2], [0.5, 0.5, 0.5], {"difference": 0.0, "tokens": 0, "ties": 0, "wrong": 1}),
    ],
)
def test_answers_are_compared(tokens, gaps, expected):
    compared = import_module("serving_parts.answers").compared
    wanted = {"tokens": [1, 2, 3], "logprobs": [-1.0, -2.0, -3.0], "gaps": gaps}
    assert compared([output(tokens, [-1.0, -2.0, -3.25][: len(tokens)])], [wanted]) == expected


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        ([{"a": -1.0, "b": -2.0}, {"c": -1.0, "d": -1.5}], True),
        ([{"a": -1.0, "b": -2.0}, {"c": -1.1, "d": -1.5}], False),
        ([{"a": -1.0, "b": -2.0}, {"d": -1.0, "c": -1.5}], False),
        ([{"a": -1.0, "b": -2.0}, {"d": -1.0, "c": -1.00005}], True),
        ([{"a": -1.0, "b": -2.0}], False),
        (ConnectionError("gone"), False),
    ],
)
def test_answers_of_a_server_are_compared(other, expected):
    same = import_module("serving_parts.answers").same
    assert same([{"a": -1.0, "b": -2.0}, {"c": -1.0, "d": -1.5}], other) is expected
