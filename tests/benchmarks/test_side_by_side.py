"""`benchmarks/side_by_side.py`: one table of both sides; a stand-in answers for the environment of kvpress."""

import json
import stat
import sys
from dataclasses import replace
from importlib import import_module

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moa.evaluation.haystack import frame
from moa.evaluation.rows import Row
from moa.evaluation.samples import Sample
from moa.evaluation.tasks.needles import ask
from moa.hf.load import load_model
from moa.plans.errors import MoaError
from moa.plans.model import ModelInfo
from moa.plans.patterns import KeyDiffWindow
from moa.plans.plan import FULL, Plan, Rule
from moa.profiler.profile import Profile
from moa.profiler.read_tables import ReadTables

LENGTH, LONGEST = 768, 1536
side_by_side, shares, samples, claims, theirs = (
    import_module(name) for name in ("side_by_side", "peers.shares", "peers.samples", "peers.claims", "peers.theirs")
)

STAND_IN = """#!{python}
import json, sys
from pathlib import Path

folder, job = Path({folder!r}), json.load(sys.stdin)
sizes, last = json.loads((folder / "token.json").read_text()), int((folder / "last").read_text())


def say(**line):
    print(json.dumps(line), flush=True)


say(about={{"kvpress": "0.5.5", "transformers": (folder / "version").read_text()}})
measured = []
for i, item in enumerate(job["items"]):
    n = len(item["context"])
    for name, row in item["rows"].items():
        if len(measured) == last:
            sys.exit(3)
        measured.append(name)
        entries = n if row is None else int(n * (1 - row["ratio"]) + 1e-3)
        masks = row is not None and row["method"] in ("AdaKV", "KVzip")
        found = {{"cache_bytes": (n if masks else entries) * sizes, "kept_bytes": entries * sizes}}
        if item["kind"] == "asked":
            found["answers"] = [item["context"][: item["new"]] for _ in item["then"]]
        elif item["kind"] == "decoded":
            found |= {{kind: [1.0] * len(item["then"][0]) for kind in ("nll", "kl")}}
        else:
            found = {{"prefill": 2.0, "steps": [0.5, 0.25, 0.75], "peak": 1 << 30}}
        say(item=i, row=name, result=found)
with (folder / "measured").open("a") as file:
    print(len(measured), file=file)
"""


def make_profile(info):
    rng, cuts = np.random.default_rng(1), {}
    for source in ("text", "facts"):
        cuts[source, LENGTH] = table = np.tril(rng.exponential(1.0, (1, 2, 2, 12, 12))).astype(np.float32)
        table[..., 0] = 0
    counts = dict.fromkeys(cuts, 9), dict.fromkeys(cuts, 1)
    scores = {"retrieval": np.array([[0.0, 0.2], [0.7, 0.0]], np.float32), "retrieval_tokens": 10}
    return Profile(info, (("sink_window", 64),), cuts, *counts, {"seed": 1}, {"facts": "effect"}, **scores)


@pytest.fixture
def run(save_tiny, tmp_path, monkeypatch):
    """Runs the script, whose other side is the stand-in: exit code."""
    info = ModelInfo.of(save_tiny(tmp_path))
    make_profile(info).save(tmp_path / "p.safetensors")
    (tmp_path / "token.json").write_text(str(shares.token_bytes(info, "float32")))
    (tmp_path / "last").write_text("-1")
    (tmp_path / "version").write_text("5.2.0")
    python = tmp_path / "python"
    python.write_text(STAND_IN.format(python=sys.executable, folder=str(tmp_path)))
    python.chmod(python.stat().st_mode | stat.S_IXUSR)

    def run(*args):
        given = [tmp_path, tmp_path / "p.safetensors", "--python", python, "--results", tmp_path / "out"]
        given += ["--lengths", LENGTH, "--longest", LONGEST, "--densities", 0.25, "--needles", 1, "--windows", 1]
        monkeypatch.setattr(sys, "argv", ["side_by_side.py", *map(str, given), "--rounds", "1", *args])
        return side_by_side.main()

    return run


def test_one_table_of_both_sides_that_goes_on_where_it_stopped(run, tmp_path, monkeypatch, capsys):
    out, peers = tmp_path / "out", list(theirs.PEERS)
    every = 6 * (1 + len(peers))  # five samples, and a round of times
    (tmp_path / "last").write_text("7")
    assert run() == 2
    assert "ended with exit code 3" in capsys.readouterr().err
    assert [path.name for path in out.iterdir()] == ["peers.partial"]
    (tmp_path / "last").write_text("-1")
    monkeypatch.setattr("moa.evaluation.tasks.needles.ask", None)  # our side has been measured
    monkeypatch.setattr("peers.ours.once", lambda *_: pytest.fail("timed again"))
    assert run() == 0
    assert (tmp_path / "measured").read_text().split() == [str(every - 7)]
    found, page = json.loads((out / "peers.json").read_text()), (out / "peers.md").read_text()
    (tmp_path / "last").write_text("0")
    assert run() == 0  # nothing is measured again
    assert (tmp_path / "measured").read_text().split() == [str(every - 7)]
    assert (out / "peers.md").read_text() == page

    rows = {row["row"]: row for row in found["rows"]}
    ours = ["dense", *(f"{name} 0.25" for name in ("plan", "uniform", "two-group", "per-layer"))]
    assert list(rows) == [*ours, theirs.DENSE, *(f"{name} 0.25" for name in peers)]
    plan = rows["plan 0.25"]
    for name, row in rows.items():
        assert row["cache"]["tokens"] == plan["cache"]["tokens"]
        assert row["environment"] == ("moa" if name in ours else "kvpress")
        assert [row[task]["questions"] for task in ("single", "four", "single given", "four given")] == [1, 4, 1, 1]
        assert row["tail"]["windows"] == 1
        if name.split()[0] in peers:
            assert plan["kept"] - 1 / plan["cache"]["tokens"] < row["kept"] <= plan["kept"]
            assert row["allocated"] == (pytest.approx(1) if name[:5] in ("AdaKV", "KVzip") else row["kept"])
            assert row["cache"]["kept"] <= plan["cache"]["predicted"]
            assert f"| {name} | {row['kept']:.3f} | {row['allocated']:.3f} |" in page
    snap = rows["SnapKV 0.25"]
    assert (snap["prefill"]["median"], snap["step"]["median"], snap["peak"]) == (2.0, 0.5, 1 << 30)
    assert snap["tail"]["kl"] == snap["tail"]["kl_by_quarter"][3] == 1.0
    assert found["peers"]["transformers"] == "5.2.0"
    held = {claim["claim"]: claim["holds"] for claim in found["claims"]}
    assert held["768 tokens, 0.25: the most that a peer keeps, over what it may"]

    (tmp_path / "version").write_text("5.1.0")
    (tmp_path / "last").write_text("-1")
    lines = (out / "peers.partial").read_text().splitlines(keepends=True)
    (out / "peers.partial").write_text("".join(lines[:-1]))
    assert run() == 2
    assert "make the same environment, or remove that file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--python", "nowhere/python"], "`make peers-env` makes the environment"),
        (["--windows", "0"], "must be 1 or more each"),
        (["--densities", "1"], "must have room for 1 to"),
    ],
)
def test_bad_input_is_one_line(run, capsys, args, says):
    assert run(*args) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(error) == 1
    assert says in error[0]


@settings(deadline=None)
@given(st.integers(2, 9000).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n - 1))), st.integers(1, 400))
def test_ratios_keep_the_tokens_that_they_are_made_of(sizes, groups):
    n, kept = sizes
    assert int(n * (1 - shares.ratio("SnapKV", kept, n))) == kept  # kvpress: whole tokens of every head
    entries = n * groups
    assert entries - int(entries * shares.ratio("KVzip", kept, n)) == kept * groups  # entries of all heads and layers
    assert 0 < shares.ratio("KVzip", kept, n) < 1


def test_a_peer_keeps_as_many_tokens_as_the_plan_allocates_bytes_for(fresh):
    model = fresh()
    plan = Plan.from_rules(model, {0: [Rule(alpha=128, beta=0), Rule(alpha=256, beta=0)]}, defaults=FULL)
    each = shares.token_bytes(plan.model, model.dtype)
    for n in (900, 1500):
        found = shares.tokens(plan, n, model.dtype)
        assert found * each <= plan.kv_bytes(n, dtype=model.dtype) < (found + 1) * each
    assert each == 2 * 2 * 2 * 16 * 8  # layers, heads, key and value of 16 float64
    with pytest.raises(MoaError, match="room for 1 to 899 of 900 tokens"):
        shares.tokens(Plan.dense(model), 900, model.dtype)


def test_a_given_question_ends_before_its_answer_begins(save_tiny, tmp_path):
    save_tiny(tmp_path)
    _, tokenizer = load_model(tmp_path)
    withheld, given = (samples.TASKS[name].samples(tokenizer, 900, 3, 5) for name in ("four", "four given"))
    for i, (hay, own) in enumerate(zip(withheld, given, strict=True)):
        (question,), like = own.questions, hay.questions[i]
        assert own.ids + question.ids == hay.ids + like.ids
        assert (question.answer, question.depth) == (like.answer, like.depth)
        assert tokenizer.decode(question.ids).startswith(frame(tokenizer)[1])
        assert tokenizer.decode(own.ids)[-1] == "?"


def test_a_plan_gives_one_answer_however_a_question_comes(save_tiny, tmp_path):
    save_tiny(tmp_path)
    model, tokenizer = load_model(tmp_path)
    row = Row("plan", Plan.from_rules(model, {}, defaults=KeyDiffWindow(sink=64, alpha=128, beta=0.125)))
    withheld, given = (samples.TASKS[name].samples(tokenizer, 900, 2, 5) for name in ("four", "four given"))
    for i, (hay, own) in enumerate(zip(withheld, given, strict=True)):
        assert ask(model, tokenizer, row, own)["answers"] == [ask(model, tokenizer, row, hay)["answers"][i]]

    kinds = {"single": 1, "four": 2, "single given": 1, "four given": 2}
    every = [
        Sample(name, 900, i, hay)
        for name, count in kinds.items()
        for i, hay in enumerate(samples.TASKS[name].samples(tokenizer, 900, count, 5))
    ]
    found = samples.known(
        {"single": {"by_question": "1"}, "four": {"by_question": "01111011"}},
        {"single": {"by_question": "1"}, "four": {"by_question": "11111111"}},
        every,
    )
    assert {name: (each["by_question"], each["kept"]) for name, each in found.items()} == {
        "single given": ("1", 1.0),
        "four given": ("00", 0.0),
    }


def scored(name, right, kl, environment="kvpress", allocated=0.4, step=0.05, asked=9):
    task = {"right": right, "questions": asked, "by_question": "1" * right + "0" * (asked - right)}
    tasks = {task_: task for mode in samples.NEEDLES.values() for task_ in mode}
    times = {"prefill": {"median": 2.0, "iqr": 0.1}, "step": {"median": step, "iqr": 0.1}}
    own = {"length": 2048, "row": f"{name} 0.25", "budget": "0.25", "environment": environment}
    own |= {**times, "peak": 1 << 30, "over": 0.99}
    tail = {"kl": kl, "kl_by_window": [kl - 0.01, kl, kl + 0.01]}
    return {**own, **tasks, "tail": tail, "kept": 0.4, "allocated": allocated}


def test_where_a_peer_is_better_a_sentence_says_so_if_it_can_be_told():
    plan = scored("plan", 5, 0.2, "moa", asked=20)
    peers = [scored("SnapKV", 15, 0.3, asked=20), scored("KVzip", 0, 0.1, allocated=1.0, asked=20),
             scored("KeyDiff", 6, 0.2, step=0.03, asked=20)]  # fmt: skip
    where = "At 2,048 tokens and density 0.25"
    assert claims.wins([plan, *peers]) == [
        f"{where}, question withheld, the plan finds 10 of 40 needles; better: SnapKV 30; not told apart: KeyDiff 12.",
        f"{where}, question given, the plan finds 10 of 40 needles; better: SnapKV 30; not told apart: KeyDiff 12.",
        f"{where} the plan's KL is 0.2000; better: KVzip (masked only) 0.1000; not told apart: KeyDiff 0.2000.",
        f"{where} the plan's prefill takes 2.00 s; not told apart: SnapKV 2.00 s, KVzip (masked only) 2.00 s, KeyDiff "
        "2.00 s.",
        f"{where} the plan's decode step takes 50.0 ms; better: KeyDiff 30.0 ms; not told apart: SnapKV 50.0 ms, KVzip "
        "(masked only) 50.0 ms.",
        f"{where} the plan's peak of memory is 1,024 MiB; not told apart: SnapKV 1,024 MiB, KVzip (masked only) 1,024 "
        "MiB, KeyDiff 1,024 MiB.",
    ]
    assert [claim["holds"] for claim in claims.claims([plan, *peers])] == [True, False, False, False]
    even = scored("KeyDiff", 5, 0.2, asked=20)
    assert not any("better" in said for said in claims.wins([plan, even]))
    assert all(claim["holds"] for claim in claims.claims([plan, even]))


def test_what_reads_the_same_bytes_is_a_group_of_its_own():
    def reads(name, right, kl):
        row = scored("x", right, kl, "moa") | {"row": f"{name}, 1/8 read", "read": 0.124}
        return {key: value for key, value in row.items() if key not in ("budget", "prefill", "step", "peak")}

    names = ["searched", "Quest", "searched, half kept", "RocketKV, window, half kept"]
    rows = [reads(name, right, kl) for name, right, kl in zip(names, (9, 0, 0, 9), (0.1, 0.2, 0.2, 0.1), strict=True)]
    found = {where: (plan["row"], [row["row"] for row in others]) for where, plan, others in claims.groups(rows)}
    assert found == {
        "At 2,048 tokens, 1/8 read,": ("searched, 1/8 read", ["Quest, 1/8 read"]),
        "At 2,048 tokens, half kept, 1/8 read,": (
            "searched, half kept, 1/8 read", ["RocketKV, window, half kept, 1/8 read"]
        ),
    }  # fmt: skip
    for row in rows:
        row["allocated"] = row["kept"]
    assert claims.wins(rows) == [
        *(f"At 2,048 tokens, half kept, 1/8 read, question {mode}, the plan finds 0 of 18 needles; better: RocketKV, "
          "window, half kept 18." for mode in ("withheld", "given")),
        "At 2,048 tokens, half kept, 1/8 read, the plan's KL is 0.2000; better: RocketKV, window, half kept 0.1000.",
    ]  # fmt: skip


def test_rows_that_read_less_and_moa_s_influence_stand_beside_the_peers(run, tmp_path):
    info = ModelInfo.of(load_model(tmp_path)[0])
    rng, plain = np.random.default_rng(1), make_profile(info)
    shares_of = {cut: rng.exponential(1.0, (1, 3, 2, 2)).astype(np.float32) for cut in plain.cuts}
    tables = ReadTables((64, 32, 16), shares_of, dict.fromkeys(plain.cuts, 9))
    replace(plain, reads=tables).save(tmp_path / "r.safetensors")
    absolute = replace(plain, estimators=dict.fromkeys(("text", "facts"), "first-order-abs"))
    absolute.save(tmp_path / "a.safetensors")
    options = ["--reads", str(tmp_path / "r.safetensors"), "--absolute", str(tmp_path / "a.safetensors")]
    assert run(*options, "--shares", "1/8") == 0
    found, page = json.loads((tmp_path / "out" / "peers.json").read_text()), (tmp_path / "out" / "peers.md").read_text()
    rows = {row["row"]: row for row in found["rows"]}
    reading = [name for name in rows if name.endswith("read")]
    kinds = ("searched", "uniform", "Quest", "UNIQUE", "searched, half kept", "RocketKV, window, half kept",
             "RocketKV, keydiff, half kept")  # fmt: skip
    assert [name.replace(", no layer whole", "") for name in reading] == [f"{kind}, 1/8 read" for kind in kinds]
    for name in reading:
        row = rows[name]
        assert 0 < row["read"] <= 1 / 8 + 1e-9
        assert row["single given"]["questions"] == 1
        assert f"| {name} | {row['kept']:.3f} | {row['allocated']:.3f} | {row['read']:.3f} |" in page
    assert rows["MoA 0.25"]["kept"] <= rows["plan 0.25"]["kept"]
    assert {"absolute", "reads", "profile"} <= found.keys()
    planned = {name for name, row in rows.items() if row["environment"] == "moa" and name != "dense"}
    assert set(found["plans"]) == {f"{name} at {LENGTH}" for name in planned}
    short = import_module("pages_parts.peers").short(found)
    assert all(f"| {name} | " in short for name in rows)
    assert run("--absolute", str(tmp_path / "p.safetensors")) == 2


@pytest.mark.full
@pytest.mark.skipif(not theirs.PYTHON.exists(), reason="`make peers-env` makes the environment of the peers")
def test_kvpress_itself(run, tmp_path):
    assert run("--python", str(theirs.PYTHON)) == 0
    rows = {row["row"]: row for row in json.loads((tmp_path / "out" / "peers.json").read_text())["rows"]}
    assert rows[theirs.DENSE]["tail"]["perplexity"] == pytest.approx(rows["dense"]["tail"]["perplexity"], rel=1e-4)
    plan = rows["plan 0.25"]
    for name in theirs.PEERS:
        row = rows[f"{name} 0.25"]
        assert plan["kept"] - 1 / plan["cache"]["tokens"] < row["kept"] <= plan["kept"]
        assert (row["allocated"] > row["kept"]) == (name in ("AdaKV", "KVzip"))
        assert row["tail"]["kl"] > 0
