"""The figures in README.md and docs: each is what its result file says, and none stands outside a block."""

import importlib
import json
import re
import sys
from pathlib import Path

import pytest

from moa.plans.patterns import reach
from moa.plans.plan import Plan

ROOT = Path(__file__).parents[2]
pages = importlib.import_module("pages")
common = importlib.import_module("pages_parts.common")
loose = importlib.import_module("pages_parts.loose").loose

each_page = pytest.mark.parametrize("page", pages.pages(), ids=lambda page: page.name)


@each_page
def test_blocks_are_what_their_result_files_say(page):
    text = page.read_text()
    assert pages.written(page) == text, "run: python benchmarks/pages.py"
    assert text.count("<!-- figures:") == len(pages.BLOCK.findall(text)) == text.count("<!-- end -->")


def test_every_block_stands_on_a_page():
    text = "".join(page.read_text() for page in pages.pages())
    assert {name for name, _ in pages.BLOCK.findall(text)} == set(pages.NAMES)


@each_page
def test_measured_figures_stand_in_blocks(page):
    found = [f"{page.name}:{number}: {fault}" for number, fault in loose(page.read_text())]
    assert not found, "\n".join(found)


def test_records_say_when_on_what_and_where_their_data_is():
    folder = ROOT / "docs" / "experiments"
    records = [page for page in folder.glob("*.md") if page.name != "README.md"]
    assert records
    index = (folder / "README.md").read_text()
    for page in records:
        title, about = page.read_text().split("\n\n")[:2]
        about = " ".join(about.split())
        assert re.fullmatch(r"# .+\?", title), page.name
        assert re.fullmatch(r"\*\d{4}-\d\d-\d\d(?: to \d{4}-\d\d-\d\d)?\. .+\*", about), (
            f"{page.name}: date and machine"
        )
        assert "not kept" in about or "benchmarks/results/" in about, f"{page.name}: its data, or that it was not kept"
        assert f"[{title[2:]}]({page.name})" in index, f"{page.name}: its row in docs/experiments/README.md"


def test_a_changed_figure_is_stale(tmp_path, monkeypatch):
    (tmp_path / "docs").mkdir()
    page = tmp_path / "docs" / "page.md"
    monkeypatch.setattr(pages, "ROOT", tmp_path)
    (tmp_path / "README.md").write_text("# Nothing measured\n")
    page.write_text("before\n<!-- figures: solver -->\n<!-- end -->\nafter\n")
    monkeypatch.setattr(sys, "argv", ["pages.py"])
    assert pages.main() == 0
    fresh = page.read_text()
    assert fresh.startswith("before\n")
    assert fresh.endswith("<!-- end -->\nafter\n")
    assert "](../benchmarks/results/solver.json)" in fresh
    assert not list(pages.stale())
    gap = json.loads((ROOT / "benchmarks/results/solver.json").read_text())["sizes"][0]["cases"][0]["gap"]
    page.write_text(fresh.replace(f"{gap:.1e}", "1.0e-99", 1))
    monkeypatch.setattr(sys, "argv", ["pages.py", "--check"])
    assert pages.main() == 1
    assert list(pages.stale()) == ["docs/page.md: solver"]
    page.write_text("<!-- figures: nonsense -->\n<!-- end -->\n")
    with pytest.raises(pages.MoaError, match=r"a block must be one of quality, .*; found nonsense"):
        pages.written(page)


def test_a_result_file_says_how_it_was_made():
    run = {
        "command": "python benchmarks/x.py", "commit": "abc+", "date": "2026-11-28", "device": "abacus", "threads": 1,
        "dtype": "torch.float32", "torch": "2.13",
    }  # fmt: skip
    told = common.made("x", {"run": run})
    assert "written by `python benchmarks/x.py` at commit abc+" in told
    assert " ".join(told.split()).endswith("(2026-11-28, abacus, 1 thread, float32, torch 2.13).")
    with pytest.raises(KeyError, match="commit"):
        common.made("x", {"run": {key: value for key, value in run.items() if key != "commit"}})


def test_aims_that_fail_are_named():
    claims = [
        {"claim": "steps per second, at least", "bound": 2, "measured": 1.5, "holds": False},
        {"claim": "found, at least", "bound": 1, "measured": 3, "holds": True},
    ]
    text = common.claims({"claims": claims})
    assert "1 of 2 aims are met" in text
    assert "| steps per second, at least | 2 | 1.5 |" in text
    assert "found" not in text
    assert common.claims({"claims": claims[1:]}) == "1 of 1 aims are met."


def measured(length, name, kept, questions=40):
    """A row as `moa.evaluation.comparison.compare` writes it."""
    task = {
        "right": round(kept * questions), "questions": questions, "rate": kept, "interval": [kept - 0.1, kept],
        "minus_dense": [kept - 1, kept - 1.1, kept - 0.9], "kept": kept,
    }  # fmt: skip
    text = {"perplexity": 12.0, "perplexity_against_dense": 2 - kept, "kl": 1 - kept}
    return {
        "length": length, "row": name, "density": 0.25, "kv_bytes": 2**20, "text": text, "single": task,
        "four": task | {"questions": 4 * questions},
    }  # fmt: skip


def searched(longest, measured):
    """A plan's document as a search for texts up to `longest` writes it, of which `measured` tokens were profiled."""
    plan = Plan.load(next((ROOT / "plans" / "library").glob("*.yaml")))
    predicted = plan.predicted.model_copy(update={"lengths": (*plan.predicted.lengths[:-1], longest)})
    return plan.model_copy(update={"predicted": predicted.model_copy(update={"measured_to": measured})}).to_dict()


def test_plans_for_all_lengths_show_their_effective_context():
    rows = {"dense": 1.0, "plan 0.5": 0.99, "plan 0.25": 0.97, "uniform like plan 0.25": 0.2, "0.25 for 1,024 alone": 1}
    found = {"rows": [measured(n, name, kept) for n in (1024, 2048) for name, kept in rows.items()]}
    at_2048 = found["rows"][len(rows) :]
    at_2048[1]["four"]["right"], at_2048[2]["single"]["right"] = 30, 35  # dense finds 40 and 40
    aim = {"claim": "effective context, at least", "bound": 4, "measured": 2, "holds": False}
    found |= {"claims": [aim, aim | {"holds": True}], "plans": {"plan 0.25 at 1024": searched(8192, 4096)}}
    found["effective"] = pages.quality.effective(found["rows"])
    main, aims = pages.quality.quality(found), pages.quality.aims(found)
    assert main.startswith("Each plan is one file for all lengths.")
    assert "1 of 2 aims are met; [results](docs/results.md) lists the others." in " ".join(main.split())
    says = "Its density holds at 8,192 tokens, the longest text that the plan is for, profiled to 4,096; of shorter"
    assert says in " ".join(main.split())
    assert main.count("| uniform window | 0.250 |") == 2
    assert "alone" not in main
    told = " ".join(main.split())
    assert "texts with one and with four needles: 40 and 40 at 1,024 tokens, 40 and 40 at 2,048 tokens" in told
    assert "plan 0.25 finds 97 %; the uniform window finds 20 %" in told
    assert "at most 1.010 times dense under plan 0.5 and 1.030 times under plan 0.25" in told
    assert "| 1,024 | plan 0.25 | 0.25 | 1.030 | -0.03 (-0.13 to +0.07) |" in aims
    assert "| 1,024 | 0.25 for 1,024 alone | 0.25 |" in aims
    assert "| plan 0.5 | 1,024 | 2,048 | 1,024 |" in aims  # all questions, one needle, four needles
    assert "| plan 0.25 | 2,048 | 1,024 | 2,048 |" in aims
    assert "| uniform like plan 0.25 | - | - | - |" in aims
    assert "counts every question once" in " ".join(aims.split())


def test_ways_to_choose_are_compared_at_equal_bytes():
    names = ["exact 0.25", "exact 0.125", "uniform 0.25", "uniform 0.125"]
    rows = [
        measured(4096, "dense", 1),
        *(measured(4096, name, kept) for name, kept in zip(names, (1, 0.5, 0.2, 0.1), strict=True)),
    ]
    text = pages.quality.baselines({"rows": rows})
    assert "at most our row's bytes" in text
    says = "texts have 4,096 tokens, of which our plans keep 0.25 under 0.25 and 0.25 under 0.125."
    assert says in " ".join(text.split())
    assert "| exact search (ours) | 40 | 20 | 0.000 | 0.500 |" in text
    assert "retrieval" not in text


def test_cells_of_the_cost_model_that_are_not_resolved_stay_visible():
    cell = {
        "kind": "decode", "length": 2048, "batch": 4, "plans": 8, "error": 0.031, "bias": -0.02, "rank": None,
        "standard_error": 0.034, "resolved": False,
    }  # fmt: skip
    aim = {
        "claim": "decode at 2,048 tokens: rank, at least (unresolved)",
        "measured": None,
        "bound": 0.9,
        "holds": False,
    }
    found = {"cells": [cell], "claims": [aim], "fit_error": {"decode": 0.01, "prefill": 0.02}}
    text = pages.search.costs(found)
    assert "| decode step | 2,048 | 4 | 8 | 3.1 % | -2.0 % | - | 3.4 % | no |" in text
    assert f"| {aim['claim']} | 0.9 | - |" in text


def asked(right, questions, **more):
    return {"right": right, "questions": questions, "by_question": "1" * right + "0" * (questions - right), **more}


def read_row(name, right, times, **more):
    return {
        "length": 2048, "row": name, "density": 1.0, "single": asked(right, 40),
        "decoded": {"perplexity_against_dense": times, "kl": times / 10}, **more,
    }  # fmt: skip


def test_plans_that_read_little_stand_beside_dense_with_the_aims_that_they_miss():
    aim = {"claim": "perplexity decoded, at most", "measured": 1.1, "bound": 1.015, "holds": False}
    text, once = {"perplexity_against_dense": 1.002}, {"right": 156, "questions": 160, "rate": 0.975}
    rows = [
        read_row("dense", 39, 1, text={"perplexity_against_dense": 1}),
        read_row("everything, 1/8 read", 38, 1.1, read=0.124, text=text, four=asked(150, 160, in_one_call=once)),
        read_row("uniform like everything, 1/8 read", 30, 1.2, read=0.125, text=text, four=asked(110, 160)),
    ]
    rows[0]["four"] = asked(150, 160)
    text = pages.reads.quality({"rows": rows, "claims": [aim]})
    assert "| 2,048 | dense | 1.000 | 1.000 | 39 of 40 | 150 of 160 | - | 1.000 | 1.000 |" in text
    assert (
        "| 2,048 | everything, 1/8 read | 1.000 | 0.124 | 38 of 40 | 150 of 160 | 156 of 160 | 1.002 | 1.100 |" in text
    )
    assert "| 2,048 | everything, 1/8 read | one needle | -0.03 (-0.13 to +0.07) | +0.20 (" in text
    assert "| 2,048 | everything, 1/8 read | four needles | +0.00 (" in text
    assert "| perplexity decoded, at most | 1.015 | 1.1 |" in text
    for row in rows:
        del row["text"], row["four"]
    older = pages.reads.quality({"rows": rows, "claims": [aim]})  # of a run that measured less
    assert "| 2,048 | everything, 1/8 read | 1.000 | 0.124 | 38 of 40 | - | - | 1.100 |" in older
    others = pages.reads.baselines({"rows": rows})
    assert others.startswith("Texts have 2,048 tokens.")
    assert "| everything, 1/8 read | 1.000 | 0.124 | 38 of 40 | - | 0.1100 |" in others


def test_the_short_table_of_reads_is_of_every_length_that_was_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(pages.reads, "RESULTS", tmp_path)
    monkeypatch.setattr(pages.reads, "load", lambda name: json.loads((tmp_path / f"{name}.json").read_text()))
    assert pages.reads.short() == "Not measured yet: `make bench` writes benchmarks/results/reads-2k.json."
    run = {"command": "python x.py", "commit": "abc", "date": "2026-11-30", "device": "abacus", "threads": 1}
    rows = [read_row("dense", 39, 1), read_row("some", 38, 1.1, read=0.1), read_row("some: all of it", 39, 1.0)]
    for name, length in (("reads-2k", 2048), ("reads-8k", 8192)):
        found = {"run": run, "rows": [row | {"length": length} for row in rows]}
        (tmp_path / f"{name}.json").write_text(json.dumps(found))
    text = pages.reads.short()
    for length in ("2,048", "8,192"):
        assert f"| {length} | some | 1.000 | 0.100 | 38 of 40 | - | 1.100 |" in text
    assert "all of it" not in text
    assert text.count("Data: [reads-") == 2


def test_the_profiles_figures_of_reads_are_ranked_by_length_and_share():
    row = {
        "length": 4096, "share": 1 / 16, "size": {"ratio": 0.9, "iqr": 0.4},
        "spearman": {"fisher": {"kl": 0.91, "margin": 0.5}, "effect": {"kl": 0.3, "margin": None}},
    }  # fmt: skip
    text = pages.profile.reads({"samples": 6, "groups": 90, "rows": [row], "claims": []})
    assert "| 4,096 | 1/16 | 0.91 | 0.50 | 0.30 | - | 0.90 (40 %) |" in text


def test_estimators_are_ranked_on_both_kinds_of_sinks():
    ranks = {"sink_window": {"kl": 0.97, "margin": 0.5}, "keydiff_window": {"kl": 0.95, "margin": None}}
    size = {"ratio": 1.1, "iqr": 0.4, "groups": 80}
    found = {
        "length": 1024, "samples": 6, "groups": 90, "rows": [{"text": "fisher", "spearman": ranks}],
        "size": dict.fromkeys(ranks, size), "claims": [],
    }  # fmt: skip
    text = pages.profile.truth(found)
    assert "| fisher | 0.97 | 0.50 | 0.95 | - |" in text
    assert "1.10 times the measured one for keydiff (IQR 40 %)" in " ".join(text.split())


def test_what_profiling_costs_has_its_spread():
    one = {"seconds": 2.0, "bytes": 2**20, "iqr": 0.05}
    row = {"length": 1024, "plain": one, "fisher": one | {"seconds": 3.0}, "ratio": 1.5, "iqr": 0.1}
    text = pages.profile.cost({"rows": [row], "repeats": 5, "memory_fit": None, "claims": []})
    assert "| 1,024 | 2.0 (5 %) | 3.0 (5 %) | 1.50 (10 %) | 1 | 1 |" in text
    both = row | {"reads": one | {"seconds": 3.6}, "reads_ratio": 1.2, "reads_iqr": 0.02}
    aim = {"claim": "with reads over without, 1,024 tokens, at most", "bound": 1.1, "measured": 1.2, "holds": False}
    text = pages.profile.cost({"rows": [both], "repeats": 5, "memory_fit": None, "claims": [aim], "freed": 4 << 20})
    assert "| 1,024 | 2.0 (5 %) | 3.0 (5 %) | 3.6 (5 %) | 1.50 (10 %) | 1.20 (2 %) | 1 | 1 | 1 |" in text
    assert "Freed memory of 4 MiB or more went back" in " ".join(text.split())
    assert aim["claim"] in text
    assert "medians of 5 runs and their IQR, per length" in " ".join(text.split())


def test_blocks_of_vllm_are_counted_from_the_plan():
    plan, block = Plan.load(pages.served.NAME), 3000 // 64
    rules = [plan.rule(layer, head) for layer in plan.groups for head in range(plan.model.kv_heads)]
    held = 0
    for rule in rules:
        first = max(int(reach([rule]).first(block)[0]), rule.sink // 64)
        held += block + 1 - (first - rule.sink // 64)
    text = pages.served.freed()
    assert f"| {len(rules)}, one per head | {held / len(rules) / (block + 1):.3f} |" in text
    assert f"keeps {plan.density(3000):.3f} of 3,000 tokens" in " ".join(text.split())
    assert text.endswith(" 1.000 |")  # all of a text in flight frees nothing


def test_attention_alone_has_its_spread():
    found = json.loads(json.dumps(common.load("attention_cpu")))
    for case in found["results"]:
        for times in case["ms"].values():
            times["iqr"] = 0.43
    text = pages.speed.attention(found)
    rows = [line for line in text.splitlines() if re.match(r"\| \d", line)]
    assert rows
    assert all("43 %" in line for line in rows)


def test_studies_are_shown_on_tasks_that_they_never_saw():
    found = json.loads(json.dumps(common.load("study")))
    for name, measured in found["unseen"].items():
        measured["recall"] = 7.0 if name.startswith("exact") else 6.5
    assert pages.search.study(found).count("7.0000 to 6.5000") == len(found["studies"])


def test_a_run_of_default_plans_stands_beside_first_keys():
    found = json.loads(json.dumps(common.load("cpu")))
    first = "plan 0.25, first keys"
    met = sum(claim["holds"] for claim in found["claims"])
    told = " ".join(pages.speed.speed(found).split())
    assert "medians of 5 prefills" in told
    assert f"{met} of {len(found['claims'])} aims are met" in told
    assert f"plan 0.25 | {first} |" in pages.speed.whole(found)
    assert f"| {first} |" in pages.speed.bounds(found)


@pytest.mark.parametrize(
    "line",
    [
        "A step takes 97 ms.", "It peaks at 0.4 GiB.", "Reads 22.3 GB/s", "1.5 times as fast", "within 4 %", "12.5%",
        "4× faster", "1.23 to 1.34 times", "18 of 24 needles", "a rank of 0.97", "costs 0.57 nats", "in 10 minutes",
        "| dense | 0.996 |", "- 128 tokens/s", "decode, batch 1, 58.8", "8 MiB, then more",
    ],
)  # fmt: skip
def test_measured_figures_are_seen(line):
    assert list(loose(f"Text.\n\n{line}\n"))


@pytest.mark.parametrize(
    "text",
    [
        "At density 0.25 and 0.5 of 2,048 tokens.", "Python 3.12, torch 2.13.0 and [a link](x-0.4-ms.md)", "`0.4 ms`",
        "```sh\nsleep 97 ms\n```", "    0.7 * harm", "arXiv 2406.14909 (section 5.1)", "Blocks of 64 tokens, batch 1",
        "<!-- figures: x -->\n97 ms\n<!-- end -->", "<!-- no measurement: budget -->\n- 97 ms\n- 70 ms",
    ],
)  # fmt: skip
def test_other_numbers_are_not(text):
    assert not list(loose(f"Text.\n\n{text}\n"))


def test_the_way_out_is_narrow():
    after = "<!-- no measurement: aim -->\nAt most 97 ms.\n\nIt took 98 ms.\n"
    assert [number for number, _ in loose(after)] == [4]
    assert "must be one of definition" in next(loose("<!-- no measurement: trust me -->\n97 ms\n"))[1]
    assert "nothing here needs" in next(loose("<!-- no measurement: aim -->\nNo number.\n"))[1]
