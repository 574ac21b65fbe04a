"""`moa report`: one page, without a network, that a real browser draws without an error."""

import ast
import html
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

import moa
from moa.cli.main import app
from moa.plans.errors import MoaError
from moa.plans.model import ModelInfo, Sliding
from moa.plans.patterns import FULL, Rule
from moa.plans.plan import Plan
from moa.report import plots

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PLOTS = 2 + 1 + 3 + 1
"""Heat map, growth, front, needles of three rows, perplexity at one length."""


@pytest.fixture(scope="module")
def whole(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("whole") / "out"
    moa.compress(model_folder, output=output, budget=0.5, lengths=(576,), minutes=0.001)
    return output


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    for name in ("plan.yaml", "figures.json"):
        shutil.copy(whole / name, tmp_path)
    return tmp_path


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "figures.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def without_script(page: str) -> str:
    return re.sub(r"<script.*?</script>", "", page, flags=re.S)


def test_compress_writes_the_page_and_report_writes_it_again(whole: Path, folder: Path, moa_in: Any) -> None:
    code, _, err = moa_in(folder, "report", ".")
    assert (code, err) == (0, "wrote report.html\n")
    page = (folder / "report.html").read_text()
    said = without_script(page)
    assert said.count("plotly-graph-div") == PLOTS
    assert not re.search(r'(src|href)="?(https?:)?//', said)
    plan = moa.Plan.load(folder / "plan.yaml")
    for words in (f"{plan.kv_bytes(2304) / plan.model.dense_kv_bytes(2304):.0%} of memory", plan.fingerprint(),
                  "uniform like plan"):  # fmt: skip
        assert words in said
    kept = re.search(r'"heat-map",\s*(\[\{.*?\}\]),', page, re.S)
    assert kept
    assert "z" in json.loads(kept[1])[0]


def lines(page: Path) -> tuple[list[list[str]], str]:
    """The words of each command that a page prints, and its Python."""
    printed = html.unescape(re.findall(r"<pre>(.*?)</pre>", page.read_text(), re.S)[-1])
    commands, _, python = printed.partition("\n\n")
    return [shlex.split(line) for line in commands.splitlines()], python


def parsed(words: list[str]) -> dict[str, Any]:
    """What the command's own parser makes of a line."""
    assert words[0] == "moa"
    return dict(get_command(app).commands[words[1]].make_context(words[1], words[2:]).params)  # type: ignore[attr-defined]


def test_the_commands_of_the_page_ask_what_was_asked(folder: Path, model_folder: Path) -> None:
    commands, python = lines(moa.write_report(folder))
    assert [words[1] for words in commands] == ["compress", "show", "eval", "bench"]
    told = {words[1]: parsed(words) for words in commands}
    again, plan = told["compress"], str(folder / "plan.yaml")
    assert (again["model"], again["output"], again["density"]) == (str(model_folder), folder, 0.5)
    assert (again["minutes"], again["lengths"], again["max_length"]) == (0.001, "576", None)
    assert (again["dtype"], again["seed"]) == ("float32", 0)
    assert told["show"]["plan"] == plan
    assert (told["bench"]["model"], told["bench"]["plan"]) == (str(model_folder), plan)
    assert (told["eval"]["task"], told["eval"]["seed"]) == (["text=1", "single=1", "four=1"], 0)
    assert [told[name]["dtype"] for name in ("eval", "bench")] == ["float32"] * 2
    assert [told[name]["lengths"] for name in ("eval", "bench")] == ["576"] * 2
    assert ast.parse(python)


@pytest.mark.parametrize(
    ("budgets", "said"),
    [
        ({"density": ["0.3"], "read": 0.125}, {"density": 0.3, "max_read": ["0.125"]}),
        ({"kv_gb": ["1@2048", "2"]}, {"density": None, "max_kv_gb": ["1@2048", "2"]}),
        ({"decode_ms": "5@512x2"}, {"max_decode_ms": ["5@512x2"]}),
        ({"density": "0.3@2048"}, None),
        ({"density": [0.3, "0.2@2048"]}, None),
        ({"prefill_ms": 7}, None),
    ],
)
def test_every_budget_is_said_by_the_option_that_takes_it(folder: Path, budgets: Any, said: Any) -> None:
    figures = json.loads((folder / "figures.json").read_text())
    asked = {**figures["asked"], "budgets": budgets, "max_length": 2000, "seed": 7}
    odd = folder / "a 'folder' of $mine"
    odd.mkdir()
    for name in ("plan.yaml", "figures.json"):
        shutil.copy(folder / name, odd)
    edit(odd, asked=asked, named='models/a "name"')
    commands, python = lines(moa.write_report(odd))
    assert all(parsed(words) for words in commands)
    assert all(str(odd) in " ".join(words) for words in commands)
    calls = [node for node in ast.walk(ast.parse(python)) if isinstance(node, ast.Call)]
    if said is None:
        assert [words[1] for words in commands] == ["show", "eval", "bench"]
        call = next(call for call in calls if ast.unparse(call.func) == "moa.compress")
        assert [ast.literal_eval(each) for each in call.args] == ['models/a "name"']
        told = {each.arg: ast.literal_eval(each.value) for each in call.keywords}
        assert told == {
            "output": str(odd), "budget": budgets, "minutes": 0.001, "lengths": [576], "max_length": 2000,
            "dtype": "float32", "seed": 7,
        }  # fmt: skip
        return
    again = parsed(commands[0])
    assert again.items() >= {**said, "max_length": 2000, "seed": 7, "model": 'models/a "name"', "output": odd}.items()
    assert "moa.compress" not in python


def drawn(picture: str) -> tuple[Any, Any]:
    """The traces and the layout of a picture."""
    found = re.search(r"Plotly.newPlot\(\s*\"[^\"]*\",\s*", picture)
    assert found
    data, end = json.JSONDecoder().raw_decode(picture, found.end())
    return data, json.JSONDecoder().raw_decode(picture, picture.index("{", end))[0]


READING = ModelInfo(
    architecture="LlamaForCausalLM", layers=3, query_heads=4, kv_heads=2, head_size=64, rope={"theta": 1e4},
    sliding=Sliding(layers=(1,), window=128),
)  # fmt: skip


def test_what_is_read_has_a_map_of_its_own_on_the_same_slider() -> None:
    keeps = Plan.from_rules(READING, {0: [FULL, FULL], 2: [FULL, Rule(alpha=128, beta=0)]})
    reads = Plan.from_rules(READING, {0: [Rule(alpha=0, beta=1, read=0.25), FULL], 2: [FULL, Rule(alpha=128, beta=0)]})
    assert len(drawn(plots.heat_map(keeps, (1024, 4096)))[0]) == 1
    data, layout = drawn(plots.heat_map(reads, (1024, 4096)))
    kept, read = (trace["z"] for trace in data)
    assert (kept[0], kept[1], read[1]) == ([1, 1], [None, None], [None, None])
    assert 0.2 < read[0][0] <= 0.25
    assert read[0][1] == 1
    assert read[2][1] == kept[2][1] < 0.1
    steps = layout["sliders"][0]["steps"]
    assert [step["args"][1] for step in steps] == [[0, 1]] * 2
    assert [step["args"][0]["z"] for step in steps][1] == [kept, read]
    assert steps[0]["args"][0]["z"][1][0][0] == pytest.approx(reads.read_shares(1024)[0, 0], abs=1e-4)
    read_mean = sum(read[layer][head] for layer in (0, 2) for head in (0, 1)) / 4
    assert read_mean == pytest.approx(reads.read_density(4096), abs=1e-4)


def test_times_are_the_third_number(folder: Path) -> None:
    figures = json.loads((folder / "figures.json").read_text())
    time = {"kind": "decode", "length": 576, "batch": 1, "predicted": 2.0, "measured": None, "dense": 5.0}
    edit(folder, speed={**figures["speed"], "times": [time]})
    said = without_script(moa.write_report(folder).read_text())
    assert "2.50 x as fast" in said
    assert "<td>decode of 1 x 576 tokens, within the budget</td><td>ms</td><td>2.0</td><td>-</td>" in said


def test_the_front_has_the_chosen_plan_on_it(folder: Path) -> None:
    page = moa.write_report(folder).read_text()
    plans = json.loads((folder / "figures.json").read_text())["front"]["plans"]
    others, chosen = drawn(page[page.index('id="front"') :])[0]
    assert others["x"] == [each["cost"] for each in plans]
    [mine] = [each for each in plans if each["chosen"]]
    assert (chosen["x"], chosen["y"], chosen["mode"]) == ([mine["cost"]], [mine["harm"]], "markers")
    said = without_script(page)
    assert said.count("<td>this plan</td>") == 1
    assert f"<td>this plan</td><td>0.5</td><td>{mine['cost']:.4g}</td>" in said


def test_measured_times_stand_beside_predicted_and_dense_ones(folder: Path) -> None:
    said = without_script(moa.write_report(folder).read_text())
    assert re.search(r"<td>decode of 1 x 576 tokens</td><td>ms</td><td>-</td><td>[\d.]+</td><td>[\d.]+</td>", said)
    assert re.search(r"<td>KV cache at [\d,]+ tokens</td><td>MiB</td>(<td>[\d.]+</td>){3}", said)
    run = {"kind": "prefill", "length": 576, "batch": 1, "dense": None, "plan": 3.0, "predicted": 2.0}
    edit(folder, runs=[run])
    said = without_script(moa.write_report(folder).read_text())
    assert "<td>prefill of 1 x 576 tokens</td><td>ms</td><td>2.0</td><td>3.0</td><td>-</td>" in said


def test_a_result_of_an_older_version_lacks_front_and_times(folder: Path) -> None:
    figures = json.loads((folder / "figures.json").read_text())
    for name in ("front", "runs", "named"):
        del figures[name]
    (folder / "figures.json").write_text(json.dumps(figures))
    assert without_script(moa.write_report(folder).read_text()).count("plotly-graph-div") == PLOTS - 1
    assert "report-front.png" not in {path.name for path in moa.write_pictures(folder)}


def test_pictures_are_png_files_beside_the_page(folder: Path, moa_in: Any) -> None:
    from matplotlib.image import imread

    code, _, err = moa_in(folder, "report", ".", "--png")
    names = [f"report-{name}.png" for name in ("heat-map", "growth", "front", "needles", "perplexity")]
    assert (code, err) == (0, f"wrote report.html, {', '.join(names)}\n")
    seen = [imread(folder / name)[..., :3] for name in names]
    assert all(min(each.shape[:2]) > 300 for each in seen)
    assert all((each < 0.5).any(-1).sum() > 1000 for each in seen)
    before = (folder / names[2]).read_bytes()
    figures = json.loads((folder / "figures.json").read_text())
    moved = [{**each, "chosen": i == 0} for i, each in enumerate(figures["front"]["plans"])]
    edit(folder, front={**figures["front"], "plans": moved})
    moa.write_pictures(folder)
    assert (folder / names[2]).read_bytes() != before
    edit(folder, front={"plans": []})
    with pytest.raises(MoaError, match="damaged"):
        moa.write_pictures(folder)


def test_pictures_replace_no_other_file_and_need_matplotlib(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "report-needles.png").write_text("mine")
    with pytest.raises(MoaError, match=r"report-needles.png is not a PNG"):
        moa.write_pictures(folder)
    assert [path.name for path in folder.glob("*.png")] == ["report-needles.png"]
    (folder / "report-needles.png").unlink()
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MoaError, match=r"a PNG needs matplotlib: pip install 'moa-attention\[demo\]'"):
        moa.write_pictures(folder)


def test_needles_of_both_tasks_are_added_up() -> None:
    depths = [{"right": i, "questions": 9} for i in range(5)]
    row = {"row": "plan", "length": 576, "single": {"by_depth": depths}, "four": {"by_depth": depths[::-1]}}
    [picture] = plots.needle_maps([row])
    assert picture.count(r"4\u002f18") == 5  # JSON in a script: no slash


def test_names_are_text(folder: Path) -> None:
    figures = json.loads((folder / "figures.json").read_text())
    odd = "</script><b>bold</b>"
    rows = [{**row, "row": odd} if row["row"].startswith("uniform") else row for row in figures["rows"]]
    edit(folder, model={**figures["model"], "name": odd}, rows=rows)
    page = moa.write_report(folder).read_text()
    assert odd not in page
    assert "&lt;/script&gt;&lt;b&gt;bold" in page


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"rows": [{"row": "plan"}]}, "damaged"),
        ({"rows": 3}, "damaged"),
        ({"quality": {}}, "damaged"),
        ({"plan": "other"}, "other rules than those that figures.json is about"),
    ],
)
def test_what_is_no_result_of_compress(folder: Path, changes: Any, says: str) -> None:
    edit(folder, **changes)
    with pytest.raises(MoaError, match=says):
        moa.write_report(folder)
    assert not (folder / "report.html").exists()


def test_files_that_are_not_there_or_of_something_else(folder: Path) -> None:
    (folder / "report.html").write_text("mine")
    with pytest.raises(MoaError, match=r"report.html is not a report"):
        moa.write_report(folder)
    (folder / "figures.json").write_text("{}")
    with pytest.raises(MoaError, match=r"figures.json is no result of moa compress"):
        moa.write_report(folder)
    (folder / "figures.json").unlink()
    (folder / "figures.json").mkdir()
    with pytest.raises(MoaError, match=r"cannot read .*figures.json: Is a directory$"):
        moa.write_report(folder)
    (folder / "figures.json").rmdir()
    with pytest.raises(MoaError, match=r"run moa compress MODEL -o .* to its end"):
        moa.write_report(folder)


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here to open the page with")
@pytest.mark.parametrize("width", [1200, 500])
def test_a_browser_draws_it_without_an_error(whole: Path, tmp_path: Path, width: int) -> None:
    drawn = browser(whole, tmp_path, "--dump-dom", f"--window-size={width},4000")
    assert drawn.count('class="plotly-graph-div js-plotly-plot"') == PLOTS
    widths = [int(found) for found in re.findall(r'<svg class="main-svg"[^>]* width="(\d+)"', drawn)]
    assert len(widths) >= PLOTS
    assert max(widths) < width


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here to take a screenshot with")
def test_a_screenshot_has_the_page_on_it(whole: Path, tmp_path: Path) -> None:
    from matplotlib.image import imread

    path = tmp_path / "shot.png"
    browser(whole, tmp_path, f"--screenshot={path}", "--window-size=1200,3000", "--force-device-scale-factor=1")
    seen = imread(path)[..., :3]
    assert seen.shape == (3000, 1200, 3)
    blue = (seen[..., 2] - seen[..., 0]) > 0.2
    assert blue[:300].any(1).sum() > 10  # the numbers at the top
    assert blue[300:].any(1).sum() > 500  # maps and curves


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here to print the page with")
def test_it_prints(whole: Path, tmp_path: Path) -> None:
    path = tmp_path / "page.pdf"
    browser(whole, tmp_path, f"--print-to-pdf={path}", "--no-pdf-header-footer")
    content = path.read_bytes()
    assert content.startswith(b"%PDF-")
    assert len(re.findall(rb"/Type ?/Page\b", content)) >= 2
    assert len(content) > 50_000


def browser(folder: Path, profile: Path, *options: str) -> str:
    """Open a folder's page in Chromium, which must not complain, and return what it prints."""
    line = [
        BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--hide-scrollbars",
        "--virtual-time-budget=20000", f"--user-data-dir={profile}", *options, (folder / "report.html").as_uri(),
    ]  # fmt: skip
    done = subprocess.run(line, capture_output=True, text=True, timeout=300, check=True)
    assert not [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return done.stdout
