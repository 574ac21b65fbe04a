"""`moa.apply(model, "auto")`: plans made here for the same weights, and shipped ones."""

import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig

import moa
from moa.hf.known import known_plan, remember
from moa.plans.errors import MoaError, PlanError
from moa.plans.plan import Plan, Predicted

LONGEST = 2048


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MOA_CACHE", str(tmp_path))
    return tmp_path


def window(model: object, density: float) -> Plan:
    plan = Plan.uniform(model, density, at=LONGEST)
    return plan.model_copy(update={"predicted": Predicted(lengths=(512, LONGEST))})


def test_the_widest_plan_within_the_budget_for_the_same_weights(fresh) -> None:
    model, other = fresh(), fresh(seed=1)
    for density in (0.125, 0.25, 0.5):
        remember(window(model, density), model)
    with moa.apply(model, "auto") as applied:
        assert applied.plan == window(model, 0.25)
    with moa.apply(model, "auto", budget=0.4) as applied:
        assert applied.plan == window(model, 0.25)
    assert known_plan(model, 1.0) == window(model, 0.5)
    assert known_plan(fresh(), 0.2) == window(model, 0.125)
    with pytest.raises(MoaError, match=r"density 0.25 or less is known .*\(known: none\).*moa compress MODEL"):
        moa.apply(other, "auto")
    with pytest.raises(MoaError, match=r"no plan of density 0.1 .*\(known: 0.125, 0.25, 0.5\).*--budget 0.1"):
        moa.apply(model, "auto", budget=0.1)


def test_a_plan_that_reads_less_than_it_keeps_comes_after_the_others(fresh) -> None:
    model = fresh()
    reading = Plan.from_rules(model, {}, defaults=window(model, 0.25).defaults.reading(128))
    remember(reading.model_copy(update={"predicted": Predicted(lengths=(512, LONGEST))}), model)
    assert known_plan(model, 0.25).reads()
    remember(window(model, 0.125), model)
    assert known_plan(model, 0.25) == window(model, 0.125)


def test_a_plan_that_does_not_say_for_which_texts_is_for_all_that_the_model_takes(
    fresh, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, plan = fresh(), Plan.uniform(fresh(), 0.25, at=1024)
    remember(plan, model)
    assert known_plan(model, 0.125) == plan
    with pytest.raises(MoaError, match=r"\(known: 0.125\)"):
        known_plan(model, 0.1)
    monkeypatch.setattr("moa.hf.known.longest_text", lambda config: None)  # as of a config that does not say
    with pytest.raises(MoaError, match=r"\(known: 1\)"):
        known_plan(model, 0.9)
    assert known_plan(model, 1.0) == plan


@pytest.mark.parametrize(("name", "finds"), [("SmolLM2-135M-Instruct", True), ("SmolLM2-135M", False)])
def test_shipped_plans_are_for_the_same_shape_and_name(name: str, finds: bool, tmp_path: Path) -> None:
    plan = Plan.load("smollm2-135m-instruct-0.25")
    LlamaConfig(
        architectures=["LlamaForCausalLM"], hidden_size=576, num_hidden_layers=30, num_attention_heads=9,
        num_key_value_heads=3, head_dim=64, rope_parameters={"rope_theta": 100000.0, "rope_type": "default"},
        vocab_size=16, intermediate_size=16,
    ).save_pretrained(tmp_path / name)  # fmt: skip
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tmp_path / name))
    assert not plan.model.differences(Plan.dense(model).model)
    if finds:
        assert known_plan(model, 0.3).fingerprint() == plan.fingerprint()
        return
    with pytest.raises(MoaError, match=f"known for {name} "):
        known_plan(model, 0.3)


def test_a_plan_in_the_model_s_own_folder(save_tiny, tmp_path: Path) -> None:
    save_tiny(tmp_path / "model")
    model, _ = moa.load_model(tmp_path / "model")
    window(model, 0.2).save_pretrained(tmp_path / "model", "0.2")
    Plan.dense(Plan.load("smollm2-135m-instruct-0.25").model).save_pretrained(tmp_path / "model", "other")
    with moa.apply(model, "auto") as applied:
        assert applied.plan == window(model, 0.2)
    with pytest.raises(MoaError, match=r"no plan of density 0.1 .*\(known: 0.188\); make one"):
        moa.apply(model, "auto", budget=0.1)


def test_a_plan_in_the_model_s_repository_where_no_other_fits(fresh, monkeypatch: pytest.MonkeyPatch) -> None:
    model, asked = fresh(), list[str]()
    model.config._name_or_path = "owner/model"

    def all_in_repo(repo: str) -> list[Plan]:
        asked.append(repo)
        return [window(model, 0.25), Plan.load("smollm2-135m-instruct-0.25")]

    monkeypatch.setattr("moa.hf.known.hub.all_in_repo", all_in_repo)
    assert known_plan(model, 0.3) == window(model, 0.25)
    assert asked == ["owner/model"]
    remember(window(model, 0.2), model)
    assert known_plan(model, 0.3) == window(model, 0.2)
    assert asked == ["owner/model"]

    def offline(repo: str) -> list[Plan]:
        raise PlanError("hub, 'owner/model': no network")

    monkeypatch.setattr("moa.hf.known.hub.all_in_repo", offline)
    with pytest.raises(MoaError, match=r"\(known: 0.188; hub, 'owner/model': no network\); make one"):
        known_plan(model, 0.1)


def test_what_auto_refuses(fresh, cache: Path) -> None:
    model = fresh()
    with pytest.raises(MoaError, match="a budget is for the plan auto"):
        moa.apply(model, Plan.dense(model), budget=0.5)
    with pytest.raises(MoaError, match="budget must be a density over 0 and at most 1, found 25"):
        moa.apply(model, "auto", budget=25)
    path = remember(window(model, 0.25), model)
    path.write_text("version: 1")
    with pytest.raises(MoaError, match=str(path)):
        moa.apply(model, "auto")
    shutil.rmtree(cache / "plans")
    (cache / "plans").write_text("no folder")
    with pytest.raises(OSError, match="plans"):
        remember(window(model, 0.25), model)
