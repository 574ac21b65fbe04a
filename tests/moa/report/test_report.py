import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from moa.plans.errors import MoaError, ModelMismatch
from moa.plans.model import ModelInfo, Sliding
from moa.plans.patterns import FULL, KeyDiffWindow, Rule
from moa.plans.plan import Plan
from moa.report import plan as report
from moa.report.figures import Figures

NARROW, GROWING = Rule(alpha=128, beta=0), Rule(alpha=0, beta=0.25)
INFO = ModelInfo(
    architecture="LlamaForCausalLM", layers=2, query_heads=4, kv_heads=2, head_size=64, rope={"theta": 1e4}
)
PLAN = Plan.from_rules(INFO, {0: [NARROW, FULL], 1: [GROWING, NARROW]})


def drawn(table: Any, width: int = 120) -> str:
    out = io.StringIO()
    Console(width=width, file=out).print(table)
    return out.getvalue()


def rows(table: Any) -> list[list[str]]:
    """Cells of the table's body."""
    if isinstance(table, Figures):
        return list(map(list, table.rows))
    return [list(map(str, row)) for row in zip(*(column.cells for column in table.columns), strict=True)]


@pytest.mark.parametrize(
    ("rule", "kind"),
    [
        (FULL, "full"),
        (Rule(alpha=5000, beta=1), "full"),
        (Rule(alpha=-63, beta=1), "full"),  # the dropped part is under a block
        (Rule(alpha=-64, beta=1), "growing"),
        (Rule(alpha=2**31 - 1, beta=255 / 256), "growing"),
        (GROWING, "growing"),
        (NARROW, "constant"),
        (Rule(alpha=2**31 - 1, beta=0), "constant"),
    ],
)
def test_growth(rule, kind):
    assert report.growth(rule) == kind


def test_span_map_shades_every_head_at_every_length():
    table = report.span_map(PLAN, [1024, 4096], "plan")
    # spans 192, 1024 | 320, 192 of 1,024 and 192, 4096 | 1088, 192 of 4,096
    assert rows(table) == [["0", "░░██", "··██"], ["1", "▒▒░░", "▒▒··"]]


def test_rules_of_equal_spans_and_other_patterns_or_sinks_differ():
    twin = KeyDiffWindow(alpha=128, beta=0)
    second = Plan.from_rules(INFO, {0: [twin, FULL], 1: [GROWING, Rule(sink=128, alpha=192, beta=0)]})
    table = report.differences(PLAN, second, [1024])
    assert table.caption == "of 4 groups differ: 1 at 1,024, 2 in what their sinks hold"
    assert rows(table)[0] == ["1", "1", "192 → 256", "sink_window 64 → sink_window 128"]
    assert rows(table)[1] == ["0", "0", "192 → 192", "sink_window 64 → keydiff_window 64"]
    assert len(rows(table)) == 2


def test_shades_follow_the_spans():
    info = INFO.model_copy(update={"layers": 1, "query_heads": 12, "kv_heads": 12})
    plan = Plan.from_rules(info, {0: [Rule(alpha=a, beta=0) for a in range(128, 896, 64)]})
    n = 1024
    [[_, marks]] = rows(report.span_map(plan, [n], "plan"))
    assert len(marks) == 12  # one character per head where there are many
    for mark, fraction in zip(marks, plan.spans(n)[0] / n, strict=True):
        assert mark == ("█" if fraction == 1 else "·░▒▓"[sum(fraction >= e for e in (0.125, 0.25, 0.5))])


def test_sliding_layers_are_not_shaded_and_not_counted():
    info = INFO.model_copy(update={"layers": 3, "sliding": Sliding(window=128, layers=(1,))})
    plan = Plan.from_rules(info, {0: [NARROW, FULL], 2: [GROWING, NARROW]})
    assert [row[1] for row in rows(report.span_map(plan, [1024], "plan"))] == ["░░██", "~~~~", "▒▒░░"]
    assert sum(int(row[1]) for row in rows(report.rules(plan, [1024], "plan"))) == 4
    assert report.differences(plan, plan, [1024]).caption == "of 4 groups differ: 0 at 1,024"


def test_rules_are_summarised_by_growth():
    table = report.rules(PLAN, [4096], "plan")
    assert rows(table) == [
        ["full", "1", "0", "1", "0", "1.000"],
        ["growing", "1", "0", "0.25", "0", "0.266"],
        ["constant", "2", "128", "0", "0", "0.047"],
    ]
    other = Plan.from_rules(INFO, {0: [NARROW, FULL], 1: [KeyDiffWindow(alpha=128, beta=0), NARROW]})
    assert rows(report.rules(other, [4096], "plan"))[1] == ["constant", "3", "128", "0", "1", "0.047"]
    both = Plan.from_rules(INFO, {0: [Rule(alpha=192, beta=0)] * 2, 1: [NARROW] * 2})
    assert rows(report.rules(both, [4096], "plan"))[0][:4] == ["constant", "4", "128 to 192", "0"]


def test_costs_are_the_plans_own_figures():
    table = report.costs({"a": PLAN, "dense": Plan.dense(INFO)}, [4096], "bfloat16")
    ours, dense = rows(table)
    bytes_ = PLAN.kv_bytes(4096, dtype="bfloat16")
    assert ours == ["4,096", "a", f"{PLAN.density(4096):.3f}", f"{PLAN.prefill_fraction(4096):.3f}",
                    f"{bytes_ / 2**20:.1f}", f"{bytes_ / INFO.dense_kv_bytes(4096, dtype='bfloat16'):.3f}"]  # fmt: skip
    assert dense[2:] == ["1.000", "1.000", "4.0", "1.000"]


def test_differences_of_two_plans():
    other = Plan.from_rules(INFO, {0: [NARROW, NARROW], 1: [FULL, NARROW]})
    signs = report.difference_map(PLAN, other, [1024, 4096])
    assert rows(signs) == [["0", "··--", "··--"], ["1", "++··", "++··"]]
    table = report.differences(PLAN, other, [1024, 4096])
    assert rows(table) == [["0", "1", "1,024 → 192", "4,096 → 192"], ["1", "0", "320 → 1,024", "1,088 → 4,096"]]
    assert table.caption == "of 4 groups differ: 2 at 1,024, 2 at 4,096"


def test_a_difference_at_a_short_length_alone_is_listed():
    constant = Rule(alpha=1024, beta=0)  # as wide as GROWING at 4,096
    plans = [Plan.from_rules(INFO, {0: [FULL, rule], 1: [FULL, FULL]}) for rule in (GROWING, constant)]
    table = report.differences(*plans, [1024, 4096])
    assert rows(table) == [["0", "1", "320 → 1,024", "1,088 → 1,088"]]
    assert table.caption == "of 4 groups differ: 1 at 1,024, 0 at 4,096"


def test_plans_of_different_models_are_refused():
    other = Plan.dense(INFO.model_copy(update={"layers": 3}))
    report.same_model([PLAN, Plan.dense(INFO)])
    with pytest.raises(ModelMismatch, match="layers: 2 against 3"):
        report.same_model([PLAN, other])


def test_names_are_not_markup():
    assert "[red]plan[/red]" in drawn(report.costs({"[red]plan[/red]": PLAN}, [1024], "bfloat16"))
    assert "[red]plan" in drawn(report.span_map(PLAN, [1024], "[red]plan"))


def test_a_wide_layer_goes_on_below_itself():
    info = INFO.model_copy(update={"query_heads": 64, "kv_heads": 64})
    out = drawn(report.span_map(Plan.dense(info), [1024, 4096], "plan"), width=60)
    assert out.count("█") == 2 * 2 * 64


def test_picture(tmp_path: Path):
    from matplotlib.image import imread

    one, two = tmp_path / "one.png", tmp_path / "two.img"
    report.picture({"$a": PLAN}, [1024, 4096], one)
    report.picture({"$a": PLAN, "b_": Plan.dense(INFO)}, [1024, 4096], two)
    assert one.read_bytes()[:4] == two.read_bytes()[:4] == b"\x89PNG"
    assert imread(two, format="png").shape[0] > imread(one).shape[0]
    dense = tmp_path / "dense.png"
    report.picture({"$a": Plan.dense(INFO)}, [1024, 4096], dense)
    assert not np.array_equal(imread(one), imread(dense))


def test_a_picture_has_what_is_read_below_what_is_kept(tmp_path: Path):
    from matplotlib.image import imread

    keeps, reads = tmp_path / "keeps.png", tmp_path / "reads.png"
    report.picture({"a": PLAN}, [1024], keeps)
    rule = Rule(alpha=0, beta=1, read=0.25)
    report.picture({"a": Plan.from_rules(INFO, {0: [rule, FULL], 1: [GROWING, NARROW]})}, [1024], reads)
    assert imread(reads).shape[0] > 1.5 * imread(keeps).shape[0]


def test_without_matplotlib_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    with pytest.raises(MoaError, match=r"moa-attention\[demo\]"):
        report.picture({"a": PLAN}, [1024], tmp_path / "a.png")
    assert not list(tmp_path.iterdir())
