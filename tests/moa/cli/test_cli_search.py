import dataclasses
import re
import sys
from pathlib import Path

import pytest

from moa.cli import main as cli
from moa.plans.plan import Plan
from moa.profiler.profile import digest


@pytest.fixture
def search(tmp_path: Path, make_profile, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Runs `moa search profile.safetensors` with more arguments, returns (code, out, err)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    make_profile().save("profile.safetensors")

    def run(*args: str, profile: str = "profile.safetensors") -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["moa", "search", profile, *args])
        code = cli.main()
        return code, *capsys.readouterr()

    return run


def test_a_plan_is_written_within_its_budgets(search):
    code, _, err = search(
        "-o", "plan.yaml", "--max-density", "0.5", "--max-kv-gb", "0.0005@1024", "--max-density", "0.45@1024"
    )
    assert code == 0
    plan = Plan.load("plan.yaml")
    assert plan.density(4096) <= 0.5
    assert plan.density(1024) <= 0.45
    assert plan.kv_bytes(1024, dtype="bfloat16") <= 500_000
    assert "gap" in err
    assert f"density {plan.density(1024):.3f}" in err
    assert f"4096 tokens: density {plan.density(4096):.3f}" in err
    assert err.count("longer than any profiled text") == 2  # 2,048 and 4,096 tokens
    assert "wrote plan.yaml" in err
    assert plan.provenance is not None
    assert plan.provenance.profile == digest("profile.safetensors")
    assert plan.provenance.budget == "density<=0.5@4096, density<=0.45@1024, kv_gb<=0.0005@1024 in bfloat16"
    assert plan.provenance.calibration == "text, facts"
    assert plan.provenance.seed == 3


@pytest.mark.parametrize(
    ("recorded", "args", "dtype"),
    [
        ("torch.float32", [], "float32"),
        ("torch.float16", [], "float16"),
        ("torch.float32", ["--kv-dtype", "bfloat16"], "bfloat16"),
        (None, [], "bfloat16"),
        ("torch.int3", [], "bfloat16"),
        (None, ["--kv-dtype", "float32"], "float32"),
    ],
)
def test_bytes_are_counted_in_the_models_own_dtype_or_the_one_named(search, make_profile, recorded, args, dtype):
    profile = make_profile()
    meta = {**profile.meta, **({} if recorded is None else {"dtype": recorded})}
    dataclasses.replace(profile, meta=meta).save("profile.safetensors")
    code, _, err = search("-o", "plan.yaml", "--max-kv-gb", "0.0007@1024", *args)
    assert code == 0
    plan = Plan.load("plan.yaml")
    assert 600_000 < plan.kv_bytes(1024, dtype=dtype) <= 700_000  # the budget is used, and kept
    assert plan.predicted.kv_dtype == plan.kv_dtype == dtype
    assert plan.predicted.kv_bytes == tuple(plan.kv_bytes(n, dtype=dtype) for n in (512, 1024, 2048, 4096))
    assert plan.provenance.budget == f"kv_gb<=0.0007@1024 in {dtype}"
    share = plan.kv_bytes(1024, dtype=dtype) / plan.model.dense_kv_bytes(1024, dtype=dtype)
    assert f"KV {share:.3f} of dense, {plan.kv_bytes(1024, dtype=dtype) / 1e9:.4g} GB in {dtype}" in err
    assert ("names no dtype: the cache is counted in bfloat16" in err) == (dtype == "bfloat16" and not args)


def test_an_infeasible_budget_in_bytes_names_its_dtype(search):
    code, _, err = search("-o", "plan.yaml", "--max-kv-gb", "0.00001@1024", "--kv-dtype", "float32")
    assert code == 2
    assert "no plan keeps kv_gb<=1e-05@1024 in float32: the smallest feasible value is 0.0" in err


def test_a_front_says_the_dtype_of_its_bytes(search, tmp_path):
    code, out, _ = search("-o", "front", "--front", "2", "--kv-dtype", "float32", "--max-kv-gb", "1@1024")
    assert code == 0
    plan = Plan.load("front/density-1.yaml")
    assert plan.provenance.budget == "density<=1@4096, kv_gb<=1@1024 in float32"
    for text in (out, (tmp_path / "front" / "front.txt").read_text()):
        assert "KV cache in float32" in text
        [row] = [line for line in text.splitlines() if "density-1.yaml" in line]
        assert float(re.split(r"  +", row)[5]) == pytest.approx(plan.kv_bytes(4096, dtype="float32") / 2**20, rel=1e-3)


def test_deterministic(search):
    for name in ("one.yaml", "two.yaml"):
        assert search("-o", name, "--max-density", "0.5")[0] == 0
    one, two = Plan.load("one.yaml"), Plan.load("two.yaml")
    assert (one.groups, one.predicted) == (two.groups, two.predicted)


def test_source_weights_change_the_plan(search):
    for name, weight in (("text.yaml", "facts=0"), ("facts.yaml", "text=0")):
        assert search("-o", name, "--max-density", "0.5", "--source-weight", weight)[0] == 0
    assert Plan.load("text.yaml").groups != Plan.load("facts.yaml").groups
    assert Plan.load("text.yaml").provenance.calibration == "text, facts=0"


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ([], "at least one budget"),
        (["--max-density", "0.01"], "no plan keeps density<=0.01@4096: the smallest feasible value is 0.04688"),
        (["--max-density", "0.5", "--max-length", "1000"], "must be an integer from 1024, the longest profiled"),
        (["--max-density", "half"], "'half'"),
        (["--max-density", "2"], "at most 1"),
        (["--max-kv-gb", "1@x"], "'1@x'"),
        (["--max-density", "0.5", "--source-weight", "prose=1"], "prose"),
        (["--max-density", "0.5", "--source-weight", "text"], "SOURCE=WEIGHT"),
        (["--max-densty", "0.5"], "--max-densty"),
        (["--max-harm", "0.5"], "--minimise go together"),
        (["--max-density", "0.5", "--minimise", "density@512"], "--minimise go together"),
        (["--max-harm", "0.5", "--minimise", "seconds@512"], "found 'seconds@512'"),
        (["--max-harm", "0.5", "--minimise", "decode_ms@512"], "needs measured costs"),
        (["--front", "3", "--measure", "model"], "--measure times one plan"),
        (["--max-density", "0.5", "--kv-dtype", "int8"], "--kv-dtype must be one of float64, float32"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(search, tmp_path, args, says):
    code, out, err = search("-o", "plan.yaml", *args)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert says in err
    assert err.count("\n") == 1
    assert not (tmp_path / "plan.yaml").exists()


def test_least_cost_within_a_harm(search):
    code, _, err = search("-o", "plan.yaml", "--max-harm", "0.3", "--minimise", "kv_gb@1024x2")
    assert code == 0
    plan = Plan.load("plan.yaml")
    assert f"optimal: kv_gb@1024x2 {plan.kv_bytes(1024, 2, dtype='bfloat16') / 1e9:.4g}, gap" in err
    assert plan.provenance is not None
    assert plan.provenance.budget == "harm<=0.3, least kv_gb@1024x2 in bfloat16"


def test_a_front_takes_the_place_of_an_earlier_one(search, tmp_path):
    assert search("-o", "front", "--front", "3")[0] == 0
    plans = {path.name for path in (tmp_path / "front").glob("*.yaml")}
    code, _, err = search("-o", "front", "--front", "2")
    assert code == 0
    [left] = plans - {"density-0.046875.yaml", "density-1.yaml"}
    assert f"left of an earlier front, not in front.txt: {left}" in err
    (tmp_path / "front" / f".{32 * 'a'}.tmp").write_text("what a killed run had not yet renamed")
    assert search("-o", "front", "--front", "2")[0] == 0
    (tmp_path / "front" / "notes.txt").write_text("mine")
    code, _, err = search("-o", "front", "--front", "2")
    assert code == 2
    assert "front/notes.txt" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--front", "1"], "2 plans or more, found 1"),
        (["--front", "3", "--max-density", "0.001"], "smallest feasible value"),
        (["--front", "3", "--time-limit", "-1"], "--time-limit must be over 0"),
        (["--front", "3", "--source-weight", "prose=1"], "prose"),
    ],
)
def test_a_front_that_is_refused_leaves_no_folder(search, tmp_path, args, says):
    code, _, err = search("-o", "front", *args)
    assert code == 2
    assert says in err
    assert err.count("\n") == 1
    assert not (tmp_path / "front").exists()
    code, _, err = search("-o", "no/such/front", "--front", "3")
    assert code == 2
    assert "no/such" in err


def test_a_front_needs_matplotlib_before_it_solves(search, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    code, _, err = search("-o", "front", "--front", "2")
    assert code == 2
    assert err == "error: a PNG needs matplotlib: pip install 'moa-attention[demo]'\n"
    assert not (tmp_path / "front").exists()


def test_unwritable_output(search):
    code, _, err = search("-o", "no/folder/plan.yaml", "--max-density", "0.5")
    assert code == 2
    assert "no/folder" in err


def test_damaged_profiles(search, tmp_path):
    whole = (tmp_path / "profile.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.safetensors").write_text("not a profile")
    for name in ("cut.safetensors", "text.safetensors", "missing.safetensors"):
        code, _, err = search("-o", "plan.yaml", "--max-density", "0.5", profile=name)
        assert code == 2
        assert name in err
        assert err.count("\n") == 1


def test_for_one_of_the_profiled_lengths(search):
    code, _, err = search("-o", "one.yaml", "--lengths", "1024", "--max-density", "0.5")
    assert code == 0
    assert "1024 tokens: density" in err
    assert "512 tokens: density" not in err
    plan = Plan.load("one.yaml")
    assert plan.density(1024) <= 0.5
    assert plan.provenance is not None
    assert plan.provenance.budget == "density<=0.5@1024, for 1024"
    code, _, err = search("-o", "no", "--max-density", "0.5", "--lengths", "600")
    assert code == 2
    assert "found [600]" in err
    assert search("-o", "front", "--front", "2", "--lengths", "512")[0] == 0
    assert Plan.load("front/density-1.yaml").provenance.budget == "density<=1@512"
