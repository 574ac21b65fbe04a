"""`moa generate`, `moa bench` and `moa doctor` on a tiny model."""

import json
from functools import partial

import pytest
import torch

from moa import benching, diagnosing
from moa.bench import filling, selftest, timing
from moa.hf.environment import cpu_name
from moa.kernels.backend import Backend, load
from moa.plans.errors import Unsupported
from moa.plans.plan import Plan, Predicted, Rule


@pytest.fixture(scope="module")
def folder(save_tiny, fresh, tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    model = save_tiny(path, max_position_embeddings=32768)
    Plan.from_rules(model, {}, defaults=Rule(alpha=128, beta=0.0)).save(path / "plan.yaml")
    Plan.from_rules(model, {}, defaults=Rule(alpha=0, beta=1.0, read=1 / 8)).save(path / "reads.yaml")
    Plan.dense(model).save(path / "dense.yaml")
    Plan.from_rules(model, {}, defaults=Rule(alpha=-512, beta=1.0)).save(path / "ends.yaml")
    said = Predicted(lengths=(256,), decode_ms=(1.0,), device="abacus")
    Plan.from_rules(model, {}, defaults=Rule(alpha=128, beta=0.0), predicted=said).save(path / "said.yaml")
    Plan.dense(fresh(num_hidden_layers=3)).save(path / "other.yaml")
    (path / "prompt.txt").write_text("The sea is calm today. " * 20)
    (path / "empty.txt").write_text("\n")
    (path / "latin.txt").write_bytes(b"caf\xe9")
    return path


@pytest.fixture
def run(folder, moa_in):
    return partial(moa_in, folder)


PROMPT = ["generate", ".", "--plan", "plan.yaml", "--prompt-file", "prompt.txt", "--max-new-tokens", "5"]


@pytest.mark.parametrize(("chat", "prompt"), [([], 460), (["--chat"], 477)])
def test_generate(run, folder, chat, prompt):
    code, out, _ = run(*PROMPT, *chat)
    assert code == 0
    last = out.splitlines()[-1]
    assert last.startswith(f"prompt of {prompt} tokens in ")
    assert " tokens/s; " in last
    plan, n = Plan.load(folder / "plan.yaml"), prompt + 4
    dense = plan.model.dense_kv_bytes(n) / 2**20
    assert last.endswith(f"at {n} tokens, dense {dense:.1f} MiB")


def test_generate_one_token(run):
    code, out, _ = run(*PROMPT[:-1], "1")
    assert code == 0
    assert "then no more tokens" in out.splitlines()[-1]


def test_bench(run, folder, tmp_path):
    output = tmp_path / "bench.json"
    where = ["--lengths", "256,512", "--batches", "1,2", "--repeats", "1", "-o", str(output)]
    code, out, _ = run("bench", ".", "--plan", "plan.yaml", *where)
    assert code == 0
    assert "KV predicted" in out
    found = json.loads(output.read_text())
    assert [cell["length"] for cell in found["lengths"]] == [256, 512]
    about = found["environment"]
    assert (about["device"], about["dtype"], about["torch"]) == (cpu_name(), "float32", torch.__version__)
    assert f"{about['dtype']}, back-end {about['backend']}: prefill" in " ".join(out.split())
    plan = Plan.load(folder / "plan.yaml")
    for cell in found["lengths"]:
        assert [step["batch"] for step in cell["decode"]] == [1, 2]
        for step in cell["decode"]:
            due = plan.kv_bytes(cell["length"], step["batch"])
            assert step["predicted"] == due
            assert step["read_bytes"] == plan.read_bytes(cell["length"], step["batch"]) <= due
            assert due <= step["allocated"]["plan"] <= due * 9 / 8
            assert step["allocated"]["dense"] == plan.model.dense_kv_bytes(cell["length"], step["batch"])
            assert step["dense"]["median"] > 0
            assert step["plan"]["median"] > 0


def test_bench_goes_on_where_memory_ends_and_keeps_each_measurement(run, monkeypatch, tmp_path):
    prefill, replace_json, output, kept = timing.prefill, benching.replace_json, tmp_path / "bench.json", []

    def full(model, variant, ids):
        if variant.plan is None and ids.shape[1] == 512:
            raise torch.OutOfMemoryError
        return prefill(model, variant, ids)

    def keep(path, found):
        replace_json(path, found)
        kept.append(path.read_text())

    monkeypatch.setattr(timing, "prefill", full)
    monkeypatch.setattr(benching, "replace_json", keep)
    where = ["--lengths", "256,512", "--repeats", "2", "-o", str(output)]
    code, out, _ = run("bench", ".", "--plan", "said.yaml", *where)
    assert code == 0
    assert out.count("does not fit") == 1
    assert "times predicted for abacus" in " ".join(out.split())
    assert "median error" not in out
    cells = json.loads(output.read_text())["lengths"]
    assert cells[1]["prefill"]["dense"] is None
    assert len(cells[1]["prefill"]["plan"]["seconds"]) == 2
    assert cells[1]["decode"][0]["dense"]["median"] > 0
    counts = [[len(cell["decode"]) for cell in json.loads(text)["lengths"]] for text in kept]
    assert counts == [[0], [1], [1, 0], [1, 1]]


@pytest.mark.parametrize(("plan", "texts"), [("plan.yaml", []), ("reads.yaml", [518])])
def test_bench_fills_caches_with_text_where_steps_choose_what_they_read(run, monkeypatch, plan, texts):
    found, read = [], filling.Context.read
    monkeypatch.setattr(filling.Context, "read", lambda model, ids: found.append(ids.shape[1]) or read(model, ids))
    where = ["--lengths", "256,512", "--repeats", "1"]
    code, out, _ = run("bench", ".", "--plan", plan, *where)
    assert (code, found) == (0, texts)
    code, shown, _ = run("bench", ".", "--plan", plan, *where, "--json")
    steps = [step for cell in json.loads(shown)["lengths"] for step in cell["decode"]]
    assert all((step["read_bytes"] < step["predicted"]) is bool(texts) or not texts for step in steps)
    assert "KV read" in out
    assert f"{steps[-1]['read_bytes'] / 2**20:.1f}" in out


def test_bench_says_which_cache_does_not_fit(run, monkeypatch):
    filled = filling.filled

    def full(model, variant, *args, **kwargs):
        if variant.plan is None:
            raise torch.OutOfMemoryError
        return filled(model, variant, *args, **kwargs)

    for module in (timing, benching):
        monkeypatch.setattr(module, "filled", full)
    code, out, _ = run("bench", ".", "--plan", "plan.yaml", "--lengths", "256", "--repeats", "1")
    assert code == 0
    assert out.count("does not fit") == 2  # the step's time, and the bytes


@pytest.mark.parametrize(
    ("plan", "length", "says"),
    [
        ("plan.yaml", "128", "at 128 tokens this plan gains nothing"),
        ("plan.yaml", "2048", "at 2,048 tokens this plan gains: it keeps 0."),
        ("plan.yaml", "2048", "nothing at 128 tokens and below; this plan gains at 256 tokens and above"),
        ("dense.yaml", "2048", "this plan gains nothing up to"),
        ("ends.yaml", "24000", "at 24,000 tokens this plan gains nothing"),
        ("ends.yaml", "24000", "nothing at 128 tokens and below; this plan gains between 256 and 16,384 tokens\n"),
    ],
)
def test_doctor_says_what_a_plan_gains(run, plan, length, says):
    code, out, _ = run("doctor", ".", plan, "--length", length)
    assert code == 0
    assert says in out
    assert "self-test against the reference: passed" in out
    assert f"\n{int(length):,} " in out


def test_self_test_finds_a_wrong_back_end(monkeypatch, run):
    right = load("torch")
    wrong = Backend("torch", right.attend, right.append, lambda *a, **k: right.decode(*a, **k) * 1.001)
    assert selftest.deviation(right) <= diagnosing.CLOSE < selftest.deviation(wrong)
    broken = Backend("torch", lambda *a, **k: right.attend(*a, **k) * float("nan"), right.append, right.decode)
    assert selftest.deviation(broken) == float("inf")
    monkeypatch.setattr("moa.kernels.backend.load", lambda name: wrong if name == "numba" else load(name))
    code, out, _ = run("doctor", ".")
    assert code == 1
    assert "FAILED" in out
    assert "2 layers" in out  # all else is said nevertheless


def test_doctor_fails_where_no_back_end_runs(monkeypatch, run):
    def refuse(name):
        raise Unsupported("no such thing here")

    monkeypatch.setattr("moa.kernels.backend.load", refuse)
    code, out, _ = run("doctor")
    assert code == 1
    assert "back-end here: none; no such thing here" in out


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ([*PROMPT[:5], "no-such.txt"], "no-such.txt: No such file"),
        ([*PROMPT[:5], "empty.txt"], "empty.txt is empty"),
        ([*PROMPT[:5], "latin.txt"], "latin.txt must be UTF-8"),
        ([*PROMPT[:-1], "40000"], "over the model's maximum of 32768"),
        ([*PROMPT[:-1], "0"], "max-new-tokens"),
        ([*PROMPT, "--backend", "fast"], "unknown back-end 'fast'"),
        (["bench", ".", "--plan", "other.yaml", "--lengths", "256"], "layers: 3 against 2"),
        (["bench", ".", "--plan", "plan.yaml", "--lengths", "40960"], "over the model's maximum of 32768"),
        (["bench", ".", "--plan", "plan.yaml", "--batches", "0"], "batches must be 1 or more"),
        (["bench", ".", "--plan", "plan.yaml", "-o", "/no/such/folder/x.json"], "/no/such/folder"),
        (["doctor", ".", "--length", "512"], "give a model and a plan"),
    ],
)
def test_bad_input_is_one_line(run, args, says):
    code, _, err = run(*args)
    assert code == 2
    lines = [line for line in err.splitlines() if line.strip()]
    assert lines[-1].startswith("error: ")
    assert says in lines[-1]
    assert "Traceback" not in err
