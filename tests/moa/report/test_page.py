"""`moa report`: one page, without a network, that a real browser draws without an error."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

import moa
from moa.plans.errors import MoaError
from moa.report import plots

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PLOTS = 2 + 3 + 1
"""Heat map, growth, needles of three rows, perplexity at one length."""


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
                  "uniform like plan", "moa compress MODEL -o . --budget 0.5 --minutes 0.001"):  # fmt: skip
        assert words in said
    kept = re.search(r'"heat-map",\s*(\[\{.*?\}\]),', page, re.S)
    assert kept
    assert "z" in json.loads(kept[1])[0]


def test_times_are_the_third_number(folder: Path) -> None:
    figures = json.loads((folder / "figures.json").read_text())
    time = {"kind": "decode", "length": 576, "batch": 1, "predicted": 2.0, "measured": None, "dense": 5.0}
    edit(folder, speed={**figures["speed"], "times": [time]})
    said = without_script(moa.write_report(folder).read_text())
    assert "2.50 x as fast" in said
    assert "<td>decode of 1 x 576 tokens</td><td>ms</td><td>2.0</td><td>-</td>" in said


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
    line = [
        BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom",
        "--virtual-time-budget=20000", f"--window-size={width},4000", f"--user-data-dir={tmp_path}",
        (whole / "report.html").as_uri(),
    ]  # fmt: skip
    done = subprocess.run(line, capture_output=True, text=True, timeout=300, check=True)
    assert not [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert done.stdout.count('class="plotly-graph-div js-plotly-plot"') == PLOTS
    widths = [int(found) for found in re.findall(r'<svg class="main-svg"[^>]* width="(\d+)"', done.stdout)]
    assert len(widths) >= PLOTS
    assert max(widths) < width
