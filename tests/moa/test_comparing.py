"""`moa compare`: plans and runs beside each other, on one page without a network."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

import moa
from moa.plans.errors import MoaError, ModelMismatch
from moa.plans.plan import Plan, Predicted
from moa.report import plots

TASKS = {"single": 2, "turns": 1, "text": 1}


@pytest.fixture(scope="module")
def place(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two plans, an evaluation of both, and one of the second."""
    folder = tmp_path_factory.mktemp("place")
    model, tokenizer = moa.load_model(model_folder)
    for name, density in (("half", 0.5), ("quarter", 0.4)):
        plan = Plan.uniform(model, density, at=1024)
        plan.model_copy(update={"predicted": Predicted(lengths=(512, 1024))}).save(folder / f"{name}.yaml")
    files = [folder / "half.yaml", folder / "quarter.yaml"]
    for name, plans, seed in (("both", files, 0), ("one", files[1:], 1)):
        moa.evaluate_plans(
            (model, tokenizer), plans, lengths=[1100], tasks=TASKS, uniform=False, seed=seed,
            output=folder / f"{name}.json",
        )  # fmt: skip
    return folder


@pytest.fixture
def here(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(place)
    return place


def test_plans_and_runs_are_on_one_page(here: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    found = moa.compare_runs(["half.yaml", "quarter.yaml", "both.json", "one.json"], page)
    assert list(found.plans) == ["half", "quarter"]
    assert found.lengths == (512, 1024)
    assert [row["row"] for row in found.rows] == [
        "both: dense", "both: half", "both: quarter", "one: dense", "one: quarter"
    ]  # fmt: skip
    assert found.differ() == ["seed differs: 0 in both, 1 in one"]
    said = re.sub(r"<script.*?</script>", "", page.read_text(), flags=re.S)
    assert said.startswith("<!doctype html>")
    assert (
        said.count("plotly-graph-div") == 2 + 2 + 5 + 1
    )  # maps, growth, needles of five rows, perplexity at one length
    assert not re.search(r'(src|href)="?(https?:)?//', said)
    for words in ("From half to quarter", "seed differs: 0 in both, 1 in one", "Where runs come from", "one: quarter"):
        assert words in said
    assert len(re.findall(r'"y":\[[^]]*\],"type":"scatter"', page.read_text())) >= 5
    figures = json.loads(json.dumps(found.figures()))
    assert figures["plans"][1]["fingerprint"] == Plan.load("quarter.yaml").fingerprint()


def test_plans_that_read_less_have_a_map_of_what_they_read(here: Path, tmp_path: Path) -> None:
    plan = Plan.load("half.yaml")
    rules = {layer: [rule.model_copy(update={"read": 0.25}) for rule in of] for layer, of in plan.groups.items()}
    Plan.from_rules(plan.model, rules).save(tmp_path / "reads.yaml")
    moa.compare_runs(["half.yaml", tmp_path / "reads.yaml"], tmp_path / "page.html", lengths=[1024])
    page = (tmp_path / "page.html").read_text()
    assert "<h2>What each head keeps and reads</h2>" in page
    assert page.count('"text":"read"') == 1  # above the second map of the second plan
    moa.compare_runs(["half.yaml", "quarter.yaml"], tmp_path / "page.html")
    assert "keeps and reads" not in (tmp_path / "page.html").read_text()


def test_the_finest_perplexity_is_drawn(here: Path) -> None:
    rows = json.loads(Path("both.json").read_text())["rows"]
    coarse = [{**row, "text": {k: v for k, v in row["text"].items() if "position" not in k}} for row in rows]
    pictures = [plots.perplexities(of)[0] for of in (rows, coarse)]
    points = [[len(json.loads(x)) for x in re.findall(r'"x":(\[[^]]*\])', picture)] for picture in pictures]
    assert points == [[32] * 3, [4] * 3]


def test_a_folder_of_compress_is_a_plan_and_a_run(here: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "plan.yaml").write_bytes(Path("half.yaml").read_bytes())
    with pytest.raises(MoaError, match=r"out has no figures.json: run moa compress MODEL -o .*out to its end"):
        moa.compare_runs([tmp_path / "out", "quarter.yaml"])
    (tmp_path / "out" / "figures.json").write_bytes(Path("both.json").read_bytes())
    found = moa.compare_runs([tmp_path / "out", "quarter.yaml"])
    assert (list(found.plans), list(found.runs)) == (["out", "quarter"], ["out"])
    assert not found.differ()


def test_names_are_numbered_where_two_are_equal_and_text_on_the_page(here: Path, tmp_path: Path) -> None:
    odd = tmp_path / "<b>x.yaml"
    odd.write_bytes(Path("half.yaml").read_bytes())
    found = moa.compare_runs(["half.yaml", "half.yaml", odd], tmp_path / "page.html", lengths=[640])
    assert list(found.plans) == ["1 half", "2 half", "3 <b>x"]
    assert "<b>x" not in re.sub(r"<script.*?</script>", "", (tmp_path / "page.html").read_text(), flags=re.S)
    assert found.lengths == (640,)


@pytest.mark.parametrize(
    ("sources", "kind", "says"),
    [
        (["half.yaml"], MoaError, "two or more plans or runs to compare, found 1"),
        (["half.yaml", "smollm2-135m-instruct-0.5"], ModelMismatch, "half and smollm2-.* are of different"),
        (["half.yaml", "none.yaml"], MoaError, "no plan file none.yaml"),
        (["half.yaml", "broken.json"], MoaError, "broken.json is no result of moa eval"),
        (["half.yaml", "odd.json"], MoaError, "of odd a figure is missing or of another kind"),
        (["half.yaml", "bare.json"], MoaError, "bare.json is damaged"),
    ],
)  # fmt: skip
def test_what_is_refused(here: Path, sources: list[str], kind: type[MoaError], says: str) -> None:
    whole: dict[str, Any] = json.loads(Path("both.json").read_text())
    Path("broken.json").write_text("{}")
    Path("odd.json").write_text(json.dumps({**whole, "rows": [{"row": "dense", "length": 512}]}))
    Path("bare.json").write_text(json.dumps({**whole, "model": {}}))
    with pytest.raises(kind, match=says):
        moa.compare_runs(sources)


def test_the_command_prints_what_is_on_the_page(here: Path, tmp_path: Path, moa_in: Any) -> None:
    line = ["compare", "half.yaml", "both.json", "-o", str(tmp_path / "page.html")]
    code, out, err = moa_in(here, *line)
    assert (code, err) == (0, f"wrote {tmp_path / 'page.html'}\n")
    assert "Costs, KV cache" in out
    assert "both: quarter" in out
    code, out, _ = moa_in(here, *line, "--json")
    assert code == 0
    assert {"plans", "runs", "rows"} == json.loads(out).keys()
    (tmp_path / "page.html").write_text("mine")
    code, _, err = moa_in(here, *line)
    assert code == 2
    assert "is not a comparison, so it is not replaced" in err
