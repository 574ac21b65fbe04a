"""What collecting measures of each sample: its settings, order and seeds, and the tables that follow."""

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from noise import NOISE, SETTINGS, SLOPES

from moa.kernels.torch.operations import attend
from moa.plans.errors import MoaError, ModelMismatch, ProfileError
from moa.plans.patterns import PATTERNS, Rule
from moa.plans.plan import Plan
from moa.profiler.backward import response_hidden
from moa.profiler.collect import _seed, collect
from moa.profiler.profile import Profile
from moa.profiler.recorder import recording
from moa.profiler.settings import Settings, tasks
from moa.profiler.sources import SOURCES
from moa.search.grid import Grid
from moa.search.harm import slope
from moa.search.lengths import Lengths


def test_shards_give_the_single_process_table(tmp_path: Path, model: Any, tokenizer: Any) -> None:
    whole, shared = tmp_path / "whole.safetensors", tmp_path / "shared.safetensors"
    collect(model, tokenizer, SETTINGS, NOISE, whole)
    assert collect(model, tokenizer, SETTINGS, NOISE, shared, rank=1, world=2) is None
    collect(model, tokenizer, SETTINGS, NOISE, shared, rank=0, world=2)
    assert whole.read_bytes() == shared.read_bytes()


def test_profile_holds_what_was_asked(tmp_path: Path, model: Any, tokenizer: Any) -> None:
    profile = collect(model, tokenizer, SETTINGS, NOISE, tmp_path / "p.safetensors")
    assert profile is not None
    assert profile.lengths == (256, 320)
    assert profile.sources == ("noise", "known")
    assert profile.cuts["noise", 320].shape == (3, 2, 2, 5, 5)
    assert profile.variants == (("sink_window", 64), ("sink_window", 128), ("keydiff_window", 64))
    assert profile.tokens["known", 256] == 2 * 255
    assert (profile.cuts["known", 256] < 0).any()  # an effect keeps its sign
    table = profile.cuts["noise", 320]
    assert (table[0, ..., 4, 2:] > 0).all()  # real cuts do harm
    assert (table[..., 0] < 1e-12).all()  # edge 0 keeps everything, up to rounding squared
    assert (table[1, ..., :3] < 1e-12).all()  # a sink of 128 reaches edge 2
    assert (np.triu(np.ones((5, 5)), 1) * table == 0).all()  # no row lies before its edge
    loaded = Profile.load(tmp_path / "p.safetensors")
    assert (loaded.model, loaded.variants) == (profile.model, profile.variants)
    other = loaded.only(["keydiff_window"])
    assert other.variants == (("keydiff_window", 64),)
    np.testing.assert_array_equal(other.cuts["noise", 320], table[2:])
    assert (table[2, ..., 4, 2:] != table[0, ..., 4, 2:]).all()  # other keys, other harm
    with pytest.raises(ProfileError, match="patterns of this profile are sink_window, keydiff_window, found quest"):
        loaded.only(["quest"])
    with pytest.raises(ProfileError, match="patterns of this profile are sink_window, keydiff_window, found none"):
        loaded.only([])
    assert loaded.estimators == {"noise": "fisher", "known": "effect"}
    np.testing.assert_array_equal(loaded.cuts["noise", 320], table)


def test_the_model_is_left_as_it_was(tmp_path: Path, model: Any, tokenizer: Any) -> None:
    ids = torch.arange(100)[None]
    before = model(ids).logits
    keys = {name: set(vars(module)) for name, module in model.named_modules()}
    collect(model, tokenizer, Settings((256,), samples=1), NOISE[:1], tmp_path / "p.safetensors")
    assert torch.equal(model(ids).logits, before)
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert not any(module.training for module in model.modules())
    assert {name: set(vars(module)) for name, module in model.named_modules()} == keys


def test_around_the_dense_plan_nothing_slopes(tmp_path: Path, model: Any, tokenizer: Any) -> None:
    model.double()
    profile = collect(model, tokenizer, SLOPES, NOISE[:1], tmp_path / "p.safetensors", plan=Plan.dense(model))
    assert profile is not None
    assert np.abs(profile.cuts["noise", 320]).max() < 1e-6  # logits are float32


def test_a_slope_is_the_derivative_of_the_divergence(
    tmp_path: Path, model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against central differences: one group's output moved from full attention towards what a rule leaves of it."""
    model.double()
    plan, layer, head, n = Plan.uniform(model, 0.6, at=320), 0, 1, 320
    profile = collect(model, tokenizer, SLOPES, NOISE[:1], tmp_path / "p.safetensors", plan=plan)
    assert profile is not None
    rules = Grid([Rule(alpha=128, beta=0)])
    found = slope(profile, rules, ("noise", n)).reshape(2, 2)[layer, head] * profile.tokens["noise", n]
    sample = NOISE[0].sample(tokenizer, n, random.Random(_seed(SLOPES, tasks(SLOPES, NOISE[:1])[0], "text")), True)
    first, calls, move = torch.from_numpy(rules.first(n)).to(torch.int32).expand(2, -1), [0], [0.0]

    def moved(q: Any, k: Any, v: Any, **how: Any) -> Any:
        out = attend(q, k, v, **how)
        if calls[0] == layer:
            full = torch.ones_like(first)
            cut, whole = (attend(q, k, v, **{**how, "seen": how["seen"]._replace(first=f)}) for f in (first, full))
            own = slice(head * q.shape[1] // 2, (head + 1) * q.shape[1] // 2)
            out[:, own] += move[0] * (cut - whole)[:, own]
        calls[0] += 1
        return out

    monkeypatch.setattr("moa.kernels.torch.operations.attend", moved)

    def divergence(by: float) -> float:
        calls[0], move[0] = 0, by
        with recording(model, [("sink_window", 64)], plan=plan) as recorder, torch.no_grad():
            with recorder.dense():
                wanted = model.lm_head(response_hidden(model, sample)).log_softmax(-1)
            given = model.lm_head(response_hidden(model, sample)).log_softmax(-1)
        return float((wanted.exp() * (wanted - given)).sum())

    step = 1e-4
    assert found == pytest.approx((divergence(step) - divergence(-step)) / (2 * step), rel=1e-3)


def test_every_sample_has_its_own_seeds() -> None:
    todo = tasks(SETTINGS, NOISE)
    uses = [(task, use) for task in todo for use in ("text", "labels")]
    seeds = [_seed(settings, *use) for settings in (SETTINGS, SLOPES) for use in uses]
    assert len(set(seeds)) == 2 * len(todo)  # those of a sample and a use, whatever else is measured
    assert not set(seeds) & {_seed(replace(SETTINGS, seed=1), task, "text") for task in todo}


def test_slopes_are_measured_at_every_length() -> None:
    settings = replace(SLOPES, lengths=(256, 320))
    assert [(t.source.name, t.length) for t in tasks(settings, NOISE)] == [
        ("noise", 256), ("known", 256), ("noise", 320), ("known", 320),
    ]  # fmt: skip


def test_sampled_labels_repeat_by_seed(tmp_path: Path, model: Any, tokenizer: Any) -> None:
    def table(seed: int) -> Any:
        settings = Settings((256,), samples=1, seed=seed)
        profile = collect(model, tokenizer, settings, NOISE[:1], tmp_path / f"{seed}.safetensors")
        assert profile is not None
        return profile.cuts["noise", 256]

    assert np.array_equal(table(1), table(1))
    assert not np.array_equal(table(1), table(2))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lengths": (8192,)}, "over the model's maximum of 4096"),
        ({"lengths": (100,)}, "at least 256"),
        ({"samples": 0}, "samples must be at least 1, found 0"),
        ({"variants": (("sink_window", 65),)}, "sinks of sink_window must be positive multiples of 64, found 65"),
        ({"variants": (("quest", 64),)}, f"patterns to measure are {', '.join(PATTERNS)}, found 'quest'"),
        (
            {"variants": (("keydiff_window", 64),) * 2},
            "variants must differ, found keydiff_window:64, keydiff_window:64",
        ),
        ({"variants": ()}, "at least one pattern"),
        ({"estimator": "magic"}, "fisher, effect"),
        ({"loss": "kl"}, "give --around PLAN"),
    ],
)
def test_settings_that_cannot_be_measured(
    tmp_path: Path, model: Any, tokenizer: Any, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(MoaError, match=message):
        collect(model, tokenizer, Settings(**{"lengths": (256,), **change}), NOISE, tmp_path / "p.safetensors")
    assert not list(tmp_path.iterdir())


def test_tasks_run_from_short_to_long() -> None:
    order = [t.key for t in tasks(Settings((512, 256), samples=1), [SOURCES["text"], SOURCES["facts"]])]
    assert order == ["text.256.0", "facts.256.0", "text.512.0"]  # recall: once
    order = [t.key for t in tasks(Settings((512, 256), samples=1, estimator="fisher"), [SOURCES["facts"]])]
    assert order == ["facts.256.0", "facts.512.0"]


def test_around_a_plan_the_model_runs_under_it(tmp_path: Path, model: Any, tokenizer: Any) -> None:
    settings, dense = Settings((320,), samples=1, loss="nll"), Plan.dense(model)
    narrow = Plan.from_rules(model, {}, defaults=Rule(alpha=128, beta=0))
    found = [
        collect(model, tokenizer, settings, NOISE, tmp_path / f"{i}.safetensors", plan=plan)
        for i, plan in enumerate((None, dense, narrow))
    ]
    for cut, table in found[0].cuts.items():
        np.testing.assert_allclose(found[1].cuts[cut], table, rtol=1e-3, atol=1e-6)
    # The first layer's attention is over the same keys and values; what follows it, and so the gradient, is not.
    changed = found[2].cuts["known", 320][0]
    assert np.abs(changed[0] - found[0].cuts["known", 320][0, 0]).max() > 1e-4
    assert found[2].meta["around"] == narrow.to_dict()
    other = Plan.dense(narrow.model.model_copy(update={"layers": 3}))
    with pytest.raises(ModelMismatch):
        collect(model, tokenizer, settings, NOISE, tmp_path / "other.safetensors", plan=other)


def test_a_profile_knows_how_long_texts_the_model_takes(tmp_path: Path, model: Any, tokenizer: Any) -> None:
    path = tmp_path / "p.safetensors"
    collect(model, tokenizer, replace(SETTINGS, samples=1), NOISE[:1], path)
    profile, most = Profile.load(path), model.config.max_position_embeddings
    assert profile.meta["max_length"] == most
    assert Lengths.of(profile).longest == min(4 * max(SETTINGS.lengths), most)
    with pytest.raises(MoaError, match=f"to {most}, found {most + 1}"):
        Lengths.of(profile, longest=most + 1)
