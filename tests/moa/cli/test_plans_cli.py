"""`moa plans`: shipped plans, and those made here."""

import json

import pytest
from typer.testing import CliRunner

from moa.cli.main import app
from moa.hf.known import remember
from moa.plans.plan import Plan


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MOA_CACHE", str(tmp_path))


def test_shipped_plans_and_those_made_here_are_listed(fresh) -> None:
    run = CliRunner(env={"COLUMNS": "200"}).invoke
    shown = run(app, ["plans"])
    assert shown.exit_code == 0, shown.output
    assert "smollm2-135m-instruct-0.25" in shown.output
    assert "0.250" in shown.output
    model = fresh()
    path = remember(Plan.uniform(model, 0.5, at=2048), model)
    rows = json.loads(run(app, ["plans", "--json"]).output)
    assert [row["name"] for row in rows][-1] == str(path)
    assert rows[-1]["fingerprint"] == path.stem
    assert [rows[-1][key] for key in ("longest", "density", "read", "budget")] == [None] * 4
    (reading,) = (row for row in rows if row["name"] == "smollm2-135m-instruct-read-0.125")
    assert (reading["density"], reading["reads"]) == (1.0, True)
    assert 0.12 < reading["read"] <= 0.125
    assert "1.000" in shown.output
    assert "0.125" in shown.output.partition("smollm2-135m-instruct-read-0.125")[2].splitlines()[0]
    for row in rows:
        assert Plan.load(row["name"]).fingerprint() == row["fingerprint"]
    assert str(path) in run(app, ["plans"]).output
    assert str(path) in CliRunner(env={"COLUMNS": "60"}).invoke(app, ["plans"]).output
