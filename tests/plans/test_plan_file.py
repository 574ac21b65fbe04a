"""The plan file: precedence, form, byte stability, and one clear line for every way to break it."""

import datetime
import json
import os

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from moa.plans import file as plan_file
from moa.plans.errors import PlanError
from moa.plans.model import ModelInfo
from moa.plans.patterns import FULL, PATTERNS, KeyDiffWindow, Rule, SinkWindow
from moa.plans.plan import Plan, Predicted, Provenance

TEXT = """\
version: 1
model: {architecture: Any, layers: 4, query_heads: 9, kv_heads: 3, head_size: 64, rope: {theta: 1.5}, name: S}
defaults: {pattern: sink_window, sink: 64, alpha: 128, beta: 0}
layers:
  1: {heads: [default, default, {alpha: 0, beta: 1}]}
  3: {alpha: 256, beta: 0.25}
predicted: {lengths: [1024, 2048], density: [0.31, 0.26], kl: [0.011, 0.018]}
provenance: {tool: 0.1.0, profile: 'sha256:ab', budget: density<=0.25@2048, seed: 0, date: 2026-11-23}
"""

MODEL = ModelInfo(
    architecture="Any", layers=4, query_heads=9, kv_heads=3, head_size=64,
    rope={"theta": 1.5}, name="S",
)  # fmt: skip
SLIDING = ModelInfo.model_validate(MODEL.model_dump() | {"sliding": {"window": 32, "layers": [0, 2]}})


def parse(text):
    return Plan(**dict(plan_file.parse(text, "plan.yaml")))


def test_the_design_s_example():
    plan = parse(TEXT)
    default = Rule(sink=64, alpha=128, beta=0)
    assert plan.model == MODEL
    assert plan.groups == {
        0: (default,) * 3,
        1: (default, default, FULL),
        2: (default,) * 3,
        3: (Rule(alpha=256, beta=0.25),) * 3,
    }
    assert plan.predicted == Predicted(lengths=(1024, 2048), density=(0.31, 0.26), kl=(0.011, 0.018))
    assert plan.provenance.date == datetime.date(2026, 11, 23)
    assert plan_file.render(plan) == TEXT


def test_later_wins():
    entry = "3: {alpha: 256, beta: 0.25, heads: [default, {beta: 0.5}, {sink: 128, alpha: -64}]}"
    plan = parse(TEXT.replace("3: {alpha: 256, beta: 0.25}", entry))
    assert plan.groups[3] == (
        Rule(sink=64, alpha=256, beta=0.25),  # the layer's entry over the defaults
        Rule(sink=64, alpha=256, beta=0.5),  # the head over the layer's entry
        Rule(sink=128, alpha=-64, beta=0.25),
    )


def test_form_is_compact():
    a, b, c = Rule(alpha=256, beta=0), Rule(alpha=512, beta=0), Rule(sink=128, alpha=512, beta=1 / 256)
    plan = Plan.from_rules(MODEL, {0: [a, a, a], 1: [b, b, b], 2: [b, c, b], 3: [a, b, c]}, defaults=a)
    assert plan.to_dict()["layers"] == {
        1: {"alpha": 512},
        2: {"alpha": 512, "heads": ["default", {"sink": 128, "beta": 0.00390625}, "default"]},
        3: {"heads": ["default", {"alpha": 512}, {"sink": 128, "alpha": 512, "beta": 0.00390625}]},
    }
    assert "layers" not in Plan.dense(MODEL).to_dict()


RULES = st.builds(
    SinkWindow,
    sink=st.integers(1, 3).map(lambda s: s * 64),
    alpha=st.sampled_from([-64, 0, 128, 2**31 - 1]),
    beta=st.integers(0, 256).map(lambda k: k / 256),
    read=st.sampled_from([1, 1, 1 / 8, 255 / 256]),
)
FLOATS = st.floats(0, 1e6)


@st.composite
def plans(draw):
    model = draw(st.sampled_from([MODEL, SLIDING])).model_copy(update={"name": draw(st.text())})
    few = st.sampled_from(draw(st.lists(RULES, min_size=1, max_size=3)))
    lengths = sorted(draw(st.sets(st.integers(1, 2**20), min_size=1, max_size=3)))
    figures = [draw(FLOATS) for _ in lengths]
    return Plan.from_rules(
        model,
        {layer: [draw(few) for _ in range(3)] for layer in model.ruled_layers},
        defaults=draw(st.none() | few),
        predicted=draw(st.none() | st.just(Predicted(lengths=lengths, density=figures, kv_bytes=lengths))),
        provenance=draw(st.none() | st.builds(Provenance, note=st.text(), date=st.none() | st.dates())),
    )


@pytest.mark.parametrize("name", ["\x85", "a\u2028b", "\u2029", "é", "a\nb"])
def test_names_with_odd_characters_come_back(name):
    plan = Plan.dense(MODEL.model_copy(update={"name": name}))
    assert parse(plan_file.render(plan)) == plan


@settings(deadline=None)
@given(plans())
def test_round_trips(plan):
    text = plan_file.render(plan)
    again = parse(text)
    assert again == plan
    assert plan_file.render(again) == text
    assert Plan.from_dict(json.loads(json.dumps(plan.to_dict()))) == again
    assert yaml.safe_load(text)["version"] == 1


def test_save_and_load_keep_the_bytes(tmp_path):
    path = tmp_path / "plan.yaml"
    path.write_text(TEXT)
    Plan.load(path).save(tmp_path / "again.yaml")
    assert (tmp_path / "again.yaml").read_bytes() == path.read_bytes()
    Plan.load(str(path)).save(path)
    assert path.read_text() == TEXT
    assert sorted(os.listdir(tmp_path)) == ["again.yaml", "plan.yaml"]


def test_a_save_that_fails_loses_nothing(tmp_path, monkeypatch):
    path = tmp_path / "plan.yaml"
    path.write_text("precious")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(PlanError, match=r"^cannot write plan .*plan\.yaml: No space left on device$"):
        parse(TEXT).save(path)
    assert path.read_text() == "precious"
    assert os.listdir(tmp_path) == ["plan.yaml"]


def test_a_missing_folder_and_a_folder_for_a_file_are_refused(tmp_path):
    with pytest.raises(PlanError, match=r"cannot write plan .*No such file or directory"):
        parse(TEXT).save(tmp_path / "none" / "plan.yaml")
    with pytest.raises(PlanError, match=r"cannot write plan .*Is a directory"):
        parse(TEXT).save(tmp_path)
    with pytest.raises(PlanError, match=r"cannot read plan .*Is a directory"):
        Plan.load(tmp_path)
    with pytest.raises(PlanError, match=r"no plan file .*none\.yaml and no shipped plan of that name"):
        Plan.load(tmp_path / "none.yaml")


def test_shipped_plans_are_found_by_name_and_files_come_first(tmp_path, monkeypatch):
    (tmp_path / "small.yaml").write_text(TEXT)
    monkeypatch.setattr(plan_file.resources, "files", lambda _: tmp_path)
    monkeypatch.chdir(tmp_path)
    assert Plan.load("small") == parse(TEXT)
    with pytest.raises(PlanError, match=r"no plan file big .* \(shipped: small\)"):
        Plan.load("big")
    (tmp_path / "small").write_text(TEXT.replace("alpha: 128", "alpha: 192"))
    assert Plan.load("small").defaults.alpha == 192


def test_patterns_stand_side_by_side():
    entry = "3: {pattern: keydiff_window, heads: [default, {alpha: 256, beta: 0.25}, {pattern: sink_window}]}"
    text = TEXT.replace("3: {alpha: 256, beta: 0.25}", entry)
    plan = parse(text)
    other = KeyDiffWindow(alpha=128, beta=0)
    assert plan.groups[3] == (other, KeyDiffWindow(alpha=256, beta=0.25), Rule(alpha=128, beta=0))
    assert other != Rule(alpha=128, beta=0)
    assert plan.holds(3) == ("keydiff", "keydiff", "first")
    assert set(plan.holds(1)) == {"first"}
    assert parse(plan_file.render(plan)) == plan
    plain = parse(text.replace("pattern: keydiff_window, ", ""))
    assert (plan.density(2000), plan.kv_bytes(2000)) == (plain.density(2000), plain.kv_bytes(2000))


def test_rules_read_all_they_keep_unless_they_say_otherwise():
    text = TEXT.replace("alpha: 128, beta: 0}", "alpha: 128, beta: 0, read: 0.0625}")
    text = text.replace("{alpha: 256, beta: 0.25}", "{read: 1, heads: [default, {read: 0.25}, {beta: 0.25}]}")
    plan = parse(text)
    assert [plan.rule(3, head).read for head in range(3)] == [1, 0.25, 1]
    assert plan.rule(0, 0).read256 == 16
    assert plan.reads(3)
    assert [parse(TEXT).reads(layer) for layer in range(4)] == [False] * 4
    assert "read: 1," in plan_file.render(plan)
    assert parse(plan_file.render(plan)) == plan
    assert "read" not in plan_file.render(Plan.from_rules(MODEL, {}, defaults=Rule(alpha=128, beta=0, read=1)))
    plain = {layer: [rule.model_copy(update={"read": 1}) for rule in of] for layer, of in plan.groups.items()}
    assert plan.fingerprint() != Plan.from_rules(MODEL, plain).fingerprint()


def test_plans_that_read_say_by_which_selection(tmp_path):
    plan = Plan.from_rules(MODEL, {1: [FULL, FULL.reading(32), FULL]}, defaults=FULL)
    plan.save(tmp_path / "plan.yaml")
    text = (tmp_path / "plan.yaml").read_text()
    assert text.splitlines()[2:] == [
        "selection: pages 16 and 4",
        "defaults: {pattern: sink_window, sink: 64, alpha: 0, beta: 1}",
        "layers:",
        "  1: {heads: [default, {read: 0.125}, default]}",
    ]
    assert Plan.load(tmp_path / "plan.yaml") == plan == Plan.from_dict(plan.to_dict(expand=True))
    assert plan.to_dict(expand=True)["selection"] == "pages 16 and 4"
    assert "selection" not in {**plan.whole.to_dict(), **plan.whole.to_dict(expand=True)}
    by_hand = parse(text.replace("selection: pages 16 and 4\n", ""))
    assert by_hand == plan
    assert plan_file.render(by_hand) == text
    with pytest.raises(PlanError, match=r"^plan: selection: must be 'pages 16 and 4', as plans read here, found 'old'"):
        Plan.from_dict(plan.to_dict() | {"selection": "old"})


def test_every_shipped_plan_is_valid():
    for name, shipped in plan_file.shipped().items():
        text = shipped.read_text(encoding="utf-8")
        assert plan_file.render(plan_file.parse(text, name)) == text


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefg", "bcdefgh", strict=True)
)
"""Small, and nine to the power of eight parts when its aliases are written out."""


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("version: 1", "version: 2", "line 1: version: input should be 1, found 2"),
        ("version: 1\n", "", "line 1: version: is missing"),
        ("layers: 4,", "layers: four,", "line 2: model.layers: input should be a valid integer"),
        (
            "defaults:",
            "selection: pages 8\ndefaults:",
            "line 3: selection: must be 'pages 16 and 4', as plans read here, found 'pages 8': make it anew",
        ),
        ("defaults:", "selection: [16, 4]\ndefaults:", r"line 3: selection: must be 'pages .*, found \[16, 4\]"),
        ("kv_heads: 3", "kv_heads: 2", "line 2: model: query_heads 9 must be a multiple of kv_heads 2"),
        ("head_size: 64, ", "", "line 2: model.head_size: is missing"),
        (
            "sink_window",
            "sink_widow",
            f"line 3: defaults: pattern must be {', '.join(map(repr, PATTERNS))}, found 'sink_wid",
        ),
        ("pattern: sink_window, ", "", "line 3: defaults: needs the key 'pattern'"),
        ("sink: 64", "sink: 100", "line 3: defaults.sink: must be a positive multiple of 64, found 100"),
        ("sink: 64, alpha: 128", "sink: 64, alpah: 128", "line 3: defaults.alpah: unknown key"),
        ("layers:\n", "layers: []\nold:\n", "line 4: layers: input should be a valid dictionary"),
        ("default, default,", "default,", "line 5: layers.1.heads: must be a list of 3, one per KV head"),
        ("[default,", "[defualt,", "line 5: layers.1.heads.0: must be `default` or a mapping"),
        ("{alpha: 0,", "{alpah: 0,", "line 5: layers.1.heads.2.alpah: unknown key"),
        ("  3:", "  9:", r"line 6: layers.9: takes no rules; the layers that do are \[0, 1, 2, 3\]"),
        ("  3:", "  1:", "line 6: not valid YAML: the key 1 is there twice"),
        ("  3:", "  '1':", "line 6: not valid YAML: the key 1 is there twice"),
        ("  3:", "  03:", "line 6: not valid YAML: YAML reads 03 as 3; write numbers as plain decimals"),
        ("  3:", "  0x3:", "line 6: not valid YAML: YAML reads 0x3 as 3"),
        ("  3:", "  08:", "layers: a layer is named by its number, found '08'"),
        ("  3:", "  3.0:", r"line 6: not valid YAML: a key is a name, or the number of a layer, found 3\.0"),
        ("  3:", "  yes:", "line 6: not valid YAML: a key is a name, or the number of a layer, found yes"),
        ("alpha: 256,", "alpha: 0400,", "line 6: not valid YAML: YAML reads 0400 as 256"),
        ("  3: {alpha: 256, beta: 0.25}", "  3: 5", "line 6: layers.3: input should be a valid dictionary"),
        (
            "3: {alpha: 256,",
            "3: {pattern: keydiff_window, sink: 1,",
            r"layers.3.sink: must be a positive multiple of 64",
        ),
        ("beta: 0.25}", "beta: 0.3}", "line 6: layers.3.beta: must be a multiple of 1/256, found 0.3;"),
        ("beta: 0.25}", "beta: 0.25, read: 0.3}", "line 6: layers.3.read: must be a multiple of 1/256, found 0.3;"),
        ("beta: 0.25}", "beta: 0.25, read: 0}", "line 6: layers.3.read: input should be greater than 0"),
        ("beta: 0.25}", "beta: 0.25, read: 2}", "line 6: layers.3.read: must be a number from 0 to 1, found 2"),
        ("kl: [0.011, 0.018]", "kl: [0.011]", "line 7: predicted: kl has 1 figures for 2 lengths"),
        ("seed: 0", "sed: 0", "line 8: provenance.sed: unknown key"),
        ("2026-11-23", "2026-13-23", "not valid YAML: month must be in 1..12"),
        ("predicted:", "more: 1\npredicted:", "line 7: more: unknown key"),
        ("[1024,", "[1024", "line 7"),
        ("tool: 0.1.0", "tool: !!python/name:os.system x", "line 8: not valid YAML: could not determine"),
        (TEXT, "", "line 1: a plan is a mapping with the keys version, model, selection, defaults"),
        (TEXT, "- 1\n", r"line 1: a plan is a mapping .*, found \[1\]"),
        (TEXT, "a: &a [*a]\n", "line 1: a: unknown key"),
        ("version: 1\n", BOMB + "version: *h\n", "with its aliases written out it has more than 1000000 parts"),
        (TEXT, BOMB + "layers: {1: {heads: *h}}", "more than 1000000 parts"),
        (TEXT, "a\x00b", "not valid YAML"),
        (TEXT, "[" * 5000, "not valid YAML"),
    ],
)
def test_what_breaks_the_schema_is_said_in_one_line(old, new, message):
    assert old in TEXT
    with pytest.raises(PlanError, match=message) as caught:
        parse(TEXT.replace(old, new, 1))
    assert str(caught.value).startswith("plan.yaml")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 250


@settings(deadline=None)
@given(st.integers(0, len(TEXT) - 1))
def test_a_truncated_file_gives_an_error_or_a_plan_but_nothing_else(end):
    try:
        plan = parse(TEXT[:end])
    except PlanError:
        return
    assert plan.model == MODEL


def test_bytes_that_are_no_text(tmp_path):
    (tmp_path / "plan.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(PlanError, match=r"plan\.yaml: not UTF-8 text"):
        Plan.load(tmp_path / "plan.yaml")


def test_layers_without_rules_take_none():
    text = plan_file.render(Plan.dense(SLIDING)) + "layers: {0: {alpha: 64}}\n"
    with pytest.raises(PlanError, match=r"layers.0: takes no rules; the layers that do are \[1, 3\]"):
        parse(text)


def test_from_dict_names_the_place():
    document = parse(TEXT).to_dict() | {"layers": {"1": {"beta": 2}}}
    with pytest.raises(PlanError, match=r"^plan: layers\.1\.beta: must be a number from 0 to 1, found 2$"):
        Plan.from_dict(document)
