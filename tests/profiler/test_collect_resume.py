"""Samples of several runs: a run that goes on, and what is not mixed."""

from copy import deepcopy
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from noise import NOISE, SETTINGS
from safetensors.numpy import load_file, save
from tokenizers.processors import TemplateProcessing

from moa.hf.environment import environment
from moa.plans.errors import ProfileError
from moa.plans.model import ModelInfo
from moa.plans.plan import Plan, Predicted, Provenance, Rule
from moa.profiler.collect import _finished, collect
from moa.profiler.profile import Profile
from moa.profiler.settings import Settings, Task


def test_a_killed_run_goes_on_and_gives_the_same_bytes(tmp_path: Path, model: Any, tokenizer: Any) -> None:
    whole, broken = tmp_path / "whole.safetensors", tmp_path / "broken.safetensors"
    collect(model, tokenizer, SETTINGS, NOISE, whole)

    class Killed(Exception):
        pass

    done: list[Task] = []

    def kill(task: Task, measured: bool) -> None:
        done.append(task)
        if len(done) == 3:
            raise Killed

    with pytest.raises(Killed):
        collect(model, tokenizer, SETTINGS, NOISE, broken, progress=kill)
    assert model.config._attn_implementation == "sdpa"
    seen: list[bool] = []
    collect(model, tokenizer, SETTINGS, NOISE, broken, progress=lambda _task, measured: seen.append(measured))
    assert seen == [False] * 3 + [True] * 3
    assert whole.read_bytes() == broken.read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["broken.safetensors", "whole.safetensors"]


def test_a_run_around_the_same_rules_of_another_day_goes_on(tmp_path: Path, model: Any, tokenizer: Any) -> None:
    """The same search on another day writes another date, and other predictions, into a plan of the same rules."""
    output, seen = tmp_path / "p.safetensors", list[bool]()

    class Killed(Exception):
        pass

    def kill(*_: object) -> None:
        raise Killed

    first, again = (
        Plan.dense(model).model_copy(
            update={
                "provenance": Provenance(date=date(2026, 11, day)),
                "predicted": Predicted(lengths=(320,), harm=(float(day),)),
            }
        )
        for day in (1, 2)
    )
    with pytest.raises(Killed):
        collect(model, tokenizer, SETTINGS, NOISE, output, plan=first, progress=kill)
    profile = collect(
        model, tokenizer, SETTINGS, NOISE, output, plan=again,
        progress=lambda _task, measured: seen.append(measured),
    )  # fmt: skip
    assert seen[0] is False  # True stands for measured now
    assert seen[1:] == [True] * len(seen[1:])
    assert profile is not None
    assert profile.meta["environment"] == environment(device=model.device)
    with pytest.raises(ProfileError, match="found the same of"):  # the same samples, although the dates differ
        profile.plus(replace(profile, meta={**profile.meta, "around": first.to_dict()}))
    narrow = Plan.from_rules(model, {}, defaults=Rule(alpha=128, beta=0))
    profile.check_plus(replace(profile, meta={**profile.meta, "around": narrow.to_dict()}))


def test_samples_of_another_run_are_not_mixed_in(tmp_path: Path, model: Any, tokenizer: Any) -> None:
    output = tmp_path / "p.safetensors"
    folder = Path(f"{output}.partial")
    folder.mkdir()
    (folder / "settings.json").write_text("{}")
    with pytest.raises(ProfileError, match="another run"):
        collect(model, tokenizer, SETTINGS, NOISE, output)


def test_a_damaged_list_of_settings_is_said_and_its_samples_are_not_trusted(tmp_path, model, tokenizer) -> None:
    output = tmp_path / "p.safetensors"
    folder = Path(f"{output}.partial")
    folder.mkdir()
    for content in (b"", b'{"chat": tr', b"\xff\xfe", b"\0" * 64):
        (folder / "settings.json").write_bytes(content)
        with pytest.raises(ProfileError, match=r"settings\.json is damaged, so nobody knows of which run"):
            collect(model, tokenizer, SETTINGS, NOISE, output)
        assert (folder / "settings.json").read_bytes() == content


def test_a_damaged_sample_is_set_aside_and_measured_again(tmp_path, model, tokenizer, caplog) -> None:
    settings, sources = Settings((256,), samples=2), NOISE[:1]
    whole = collect(model, tokenizer, settings, sources, tmp_path / "whole.safetensors")
    output = tmp_path / "p.safetensors"

    def stop(task: Task, _measured: bool) -> None:
        if task.index == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        collect(model, tokenizer, settings, sources, output, progress=stop)
    folder = Path(f"{output}.partial")
    first = folder / "noise.256.0.safetensors"
    good, table = first.read_bytes(), load_file(first)
    damage = [good[:cut] for cut in (0, 7, 8, 40, len(good) // 2, len(good) - 1)]
    damage += [good + b"\0", b"\0" * len(good), save({"cut": table["cut"]})]
    others = ({"cut": table["cut"][:, :1]}, {"cut": table["cut"] * np.nan}, {"tokens": np.array([0])})
    damage += [save({**table, **other}) for other in others]
    damage.append(good[:-9] + bytes([good[-9] ^ 1]) + good[-8:])  # another number
    for content in damage:
        first.write_bytes(content)
        caplog.clear()
        assert not _finished(first)
        assert first.with_suffix(".damaged").read_bytes() == content
        assert [f"{first}: damaged" in said for said in caplog.messages] == [True]
        assert not first.exists()
    first.write_bytes(damage[4])
    steps: list[bool] = []
    again = collect(model, tokenizer, settings, sources, output, progress=lambda _, measured: steps.append(measured))
    assert steps == [True, False]
    assert output.read_bytes() == (tmp_path / "whole.safetensors").read_bytes()
    assert again.tokens == whole.tokens


def test_other_documents_or_weights_do_not_join_a_run(tmp_path: Path, model: Any, tokenizer: Any) -> None:
    output, sources = tmp_path / "p.safetensors", [replace(s, digest="a") for s in NOISE]

    def stop(_task: Task, _measured: bool) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        collect(model, tokenizer, SETTINGS, sources, output, progress=stop)
    with pytest.raises(ProfileError, match="another run"):
        collect(model, tokenizer, SETTINGS, [replace(s, digest="b") for s in NOISE], output)
    other = deepcopy(model)
    with torch.no_grad():
        next(other.parameters()).add_(1)
    with pytest.raises(ProfileError, match="another run"):
        collect(other, tokenizer, SETTINGS, sources, output)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"variants": SETTINGS.variants[:2]}, "same sinks"),
        ({"variants": SETTINGS.variants[::-1]}, "same sinks"),
        ({"estimator": "mass"}, "one estimator of known, found effect and mass|one estimator of noise"),
        ({}, "the same of known, noise in both: measure with another --seed"),
    ],
)
def test_a_profile_that_cannot_be_added_is_refused_before_measuring(
    tmp_path: Path, model: Any, tokenizer: Any, change: dict[str, Any], message: str
) -> None:
    settings = replace(SETTINGS, lengths=(256,), samples=1)
    earlier = collect(model, tokenizer, settings, NOISE, tmp_path / "earlier.safetensors")
    assert earlier is not None
    output = tmp_path / "p.safetensors"
    with pytest.raises(ProfileError, match=message):
        collect(model, tokenizer, replace(settings, **change), NOISE, output, add=earlier)
    assert [path.name for path in tmp_path.iterdir()] == ["earlier.safetensors"]
    other = replace(settings, seed=1)
    both = collect(model, tokenizer, other, NOISE, output, add=earlier)
    assert both is not None
    assert both.samples == dict.fromkeys(earlier.samples, 2)
    with pytest.raises(ProfileError, match="another --seed"):  # the second of those added
        collect(model, tokenizer, other, NOISE, tmp_path / "again.safetensors", add=both)
    longer = collect(model, tokenizer, replace(settings, lengths=(320,)), NOISE, output, add=earlier)
    assert longer is not None  # the seed is the same, the samples are not
    assert longer.lengths == (256, 320)


def test_samples_that_begin_otherwise_are_not_mixed(tmp_path: Path, model: Any, tokenizer: Any) -> None:
    own, output = deepcopy(tokenizer), tmp_path / "p.safetensors"
    template = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", own.bos_token_id)])
    own.backend_tokenizer.post_processor = template

    def stop(_task: Task, _measured: bool) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        collect(model, tokenizer, SETTINGS, NOISE, output, progress=stop)
    with pytest.raises(ProfileError, match="another run"):
        collect(model, own, SETTINGS, NOISE, output)
    plain = collect(model, tokenizer, SETTINGS, NOISE, output)
    assert plain is not None
    assert "start" not in plain.meta  # as in profiles made before it was recorded
    other = replace(SETTINGS, seed=1)
    with pytest.raises(ProfileError, match=rf"begin alike, found tokens \[\] and \[{own.bos_token_id}\]"):
        collect(model, own, other, NOISE, tmp_path / "q.safetensors", add=plain)
    first = collect(model, own, other, NOISE, tmp_path / "q.safetensors")
    assert first is not None
    assert first.meta["start"] == [own.bos_token_id]
    assert first.plus(replace(first, meta={**first.meta, "seed": 2})).meta["start"] == [own.bos_token_id]


def test_documents_are_not_mixed_with_those_that_a_profile_does_not_name(tmp_path: Path, model: Any) -> None:
    cuts = {("data", 256): np.zeros((1, 2, 2, 4, 4), np.float32)}
    parts = [
        Profile(ModelInfo.of(model), (("sink_window", 64),), cuts, {("data", 256): 9}, {("data", 256): 1}, meta)
        for meta in (
            {"seed": 0, "sources": {"data": ["sampled", "nll"]}},
            {"seed": 1, "sources": {"data": ["sampled", "nll"]}, "documents": {"data": "a"}},
            {"seed": 2, "sources": {"data": ["sampled", "nll"]}, "documents": {"data": "b"}},
        )
    ]
    assert parts[1].plus(parts[2]).samples == {("data", 256): 2}
    for one, two in ((0, 1), (1, 0)):
        with pytest.raises(ProfileError, match="which documents data is"):
            parts[one].plus(parts[two])
