"""`moa refine` within budgets of reads: plans are measured as decoding runs them."""

from dataclasses import replace

import numpy as np
import pytest
from optuna import get_all_study_names

from moa.plans.plan import Plan
from moa.profiler.profile import Profile
from moa.profiler.read_tables import ReadTables
from moa.search.storage import open_storage


@pytest.fixture
def reading(made_up):
    """The profile made up, with reads."""
    rng = np.random.default_rng(1)
    tables = {cut: rng.exponential(1.0, (1, 2, 2, 2)).astype(np.float32) for cut in made_up.cuts}
    return replace(made_up, reads=ReadTables((64, 16), tables, dict.fromkeys(tables, 9)))


def test_trials_and_rounds_keep_budgets_of_reads(refine, model_folder, reading, tmp_path):
    path, plan, journal = tmp_path / "profile.safetensors", tmp_path / "plan.yaml", tmp_path / "trials.log"
    reading.save(path)
    options = (
        str(path), str(model_folder), "-o", str(plan), "--max-read", "0.5@512", "--lengths", "512", "--trials", "2",
        "--rounds", "1", "--round-samples", "1", "--storage", str(journal),
    )  # fmt: skip
    done = refine(*options)
    assert done.exit_code == 0, done.output
    found = Plan.load(plan)
    assert found.read_density(512) <= 0.5
    assert found.reads()
    assert "round 1: " in done.output
    assert Profile.load(tmp_path / "plan.round-1.safetensors").estimators == {"text": "effect"}
    assert len(get_all_study_names(open_storage(str(journal)))) == 1
    for table in reading.reads.tables.values():
        table *= 2
    (tmp_path / "plan.round-1.safetensors").unlink()
    reading.save(path)  # other tables of reads are another study
    done = refine(*options[:-4], "--round-samples", "1", "--storage", str(journal), "--rounds", "0")
    assert done.exit_code == 0, done.output
    assert len(get_all_study_names(open_storage(str(journal)))) == 2


def test_nats_are_those_of_plans_that_read(refine, model_folder, reading, tmp_path):
    path, plan = tmp_path / "profile.safetensors", tmp_path / "plan.yaml"
    reading.save(path)
    done = refine(
        str(path), str(model_folder), "-o", str(plan), "--lengths", "512", "--minimise", "read@512", "--calibrate", "3",
        "--max-harm", "100", "--trials", "1",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "nats per token at 512 tokens" in done.output
    assert "read 0.80: objective" in done.output
    least = Plan.load(plan).read_density(512)
    assert least < 192 / 512  # of the narrowest window, which nothing else would read less of
