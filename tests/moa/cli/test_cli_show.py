import json
import sys
from pathlib import Path

import pytest

from moa.cli import main as cli
from moa.plans.model import ModelInfo
from moa.plans.plan import FULL, Plan, Predicted, Rule

INFO = ModelInfo(
    architecture="LlamaForCausalLM", layers=2, query_heads=4, kv_heads=2, head_size=64, rope={"theta": 1e4}
)
NARROW = Rule(alpha=128, beta=0)


@pytest.fixture
def show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Runs `moa show` beside two plan files, returns (code, out, err)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "140")
    Plan.from_rules(INFO, {0: [NARROW, FULL], 1: [NARROW] * 2}).save("half.yaml")
    predicted = Predicted(lengths=(512, 2048), density=(0.4, 0.1))
    Plan.from_rules(INFO, {0: [NARROW] * 2, 1: [NARROW] * 2}, predicted=predicted).save("narrow.yaml")

    def run(*args: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["moa", "show", *args])
        code = cli.main()
        return code, *capsys.readouterr()

    return run


def test_one_plan(show):
    code, out, err = show("half.yaml")
    assert (code, err) == (0, "")
    assert "1,024" in out
    assert "4,096" in out
    assert f"{Plan.load('half.yaml').density(4096):.3f}" in out
    assert "░░██" in out
    assert "differ" not in out


def test_what_is_read_has_columns_where_a_plan_reads_less_than_it_keeps(show):
    _, out, _ = show("half.yaml")
    assert "read" not in out
    plan = Plan.from_rules(INFO, {0: [NARROW, FULL.model_copy(update={"read": 1 / 8})], 1: [NARROW] * 2})
    plan.save("reads.yaml")
    code, out, err = show("reads.yaml")
    assert (code, err) == (0, "")
    assert f"{plan.read_density(4096):.3f}" in out
    assert plan.read_density(4096) < plan.density(4096) - 0.15
    assert "0.125" in out
    code, out, _ = show("half.yaml", "reads.yaml")
    assert code == 0
    assert "1 → 0.125" in out
    assert "of 4 groups differ: 0 at 1,024, 0 at 4,096, 1 in what they read" in " ".join(out.split())


def test_the_time_of_a_step_has_a_column_where_a_plan_predicts_it(show):
    times = {"decode_ms": (21.25, 48.5), "device": "abacus"}
    predicted = Predicted(lengths=(1024, 2048), measured_to=1024, **times)
    Plan.from_rules(INFO, {0: [NARROW] * 2, 1: [NARROW] * 2}, predicted=predicted).save("timed.yaml")
    code, out, err = show("timed.yaml", "half.yaml", "--lengths", "2048")
    assert (code, err) == (0, "")
    assert "step predicted, ms" in out
    assert "48.5" in out
    assert "times predicted for abacus" in " ".join(out.split())
    assert json.loads(show("timed.yaml", "--json")[1])[0]["costs"][0]["decode_ms"] == 21.25
    assert "predicted, ms" not in show("half.yaml")[1]


def test_default_lengths_are_those_the_plan_was_made_for(show):
    _, out, _ = show("narrow.yaml")
    assert "512" in out
    assert "2,048" in out
    assert "1,024" not in out
    _, out, _ = show("narrow.yaml", "--lengths", "4096,1024")
    assert out.index("1,024") < out.index("4,096")
    assert "2,048" not in out


def test_bytes_are_in_the_plans_own_dtype_or_the_one_named(show):
    predicted = Predicted(lengths=(4096,), kv_bytes=(1,), kv_dtype="float32")
    plan = Plan.from_rules(INFO, {0: [NARROW] * 2, 1: [FULL] * 2}, predicted=predicted)
    plan.save("wide.yaml")
    assert Plan.load("wide.yaml") == plan
    shares = []
    for args, dtype in ((["wide.yaml"], "float32"), (["wide.yaml", "--kv-dtype", "float16"], "float16"),
                        (["half.yaml", "wide.yaml"], "bfloat16")):  # fmt: skip
        _, out, _ = show(*args, "--lengths", "4096")
        held, dense = plan.kv_bytes(4096, dtype=dtype), plan.model.dense_kv_bytes(4096, dtype=dtype)
        assert f"KV cache in {dtype}" in out
        assert f"{held / 2**20:.1f}" in out
        shares += [line for line in out.splitlines() if f"{held / dense:.3f}" in line]
    assert len(shares) >= 3  # a share of dense is the same in every dtype


def test_two_plans_side_by_side(show):
    code, out, err = show("half.yaml", "narrow.yaml", "--lengths", "4096")
    assert (code, err) == (0, "")
    assert "1 half" in out
    assert "2 narrow" in out
    assert "4,096 → 192" in out
    assert "of 4 groups differ: 1 at 4,096" in out
    one_line = [line for line in out.splitlines() if "··██" in line]
    assert "····" in one_line[0]  # the second plan's map stands beside the first's
    assert "··--" in one_line[0]


def test_the_same_plan_twice(show):
    code, out, _ = show("half.yaml", "half.yaml", "--lengths", "1024")
    assert code == 0
    assert "of 4 groups differ: 0 at 1,024" in out


def test_png(show, tmp_path):
    code, out, _ = show("half.yaml", "--png", "plan.png")
    assert code == 0
    assert "wrote plan.png" in out
    assert (tmp_path / "plan.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["no-such.yaml"], "no-such"),
        (["half.yaml", "other.yaml"], "layers: 2 against 3"),
        (["half.yaml", "--lengths", "many"], "many"),
        (["half.yaml", "--lengths", "0,1024"], "found 0"),
        (["half.yaml", "--png", "no/folder/plan.png"], "no/folder"),
        (["half.yaml", "--png", "."], "folder"),
        (["half.yaml", "--color"], "--color"),
        (["half.yaml", "--kv-dtype", "int8"], "--kv-dtype must be one of"),
        (["broken.yaml"], "broken.yaml"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(show, tmp_path, args, says):
    Plan.dense(INFO.model_copy(update={"layers": 3})).save("other.yaml")
    Path("broken.yaml").write_text("version: [1")
    code, out, err = show(*args)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert says in err
    assert err.count("\n") == 1


def test_without_matplotlib(show, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    code, out, err = show("half.yaml", "--png", "plan.png")
    assert (code, out) == (2, "")
    assert "moa-attention[demo]" in err


def test_a_name_keeps_its_figures(show):
    Plan.from_rules(INFO, {0: [NARROW] * 2, 1: [FULL] * 2}).save("plan-0.25.yaml")
    _, out, _ = show("plan-0.25.yaml", "half.yaml")
    assert "1 plan-0.25" in out
    assert "2 half" in out
