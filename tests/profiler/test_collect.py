import random
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save
from tokenizers.processors import TemplateProcessing

from moa.hf.logits import HEAD_CHUNK
from moa.kernels.torch.operations import attend
from moa.plans.errors import MoaError, ModelMismatch, ProfileError
from moa.plans.model import ModelInfo
from moa.plans.patterns import KeyDiffWindow, Rule
from moa.plans.plan import Plan
from moa.profiler.backward import response_hidden, run_backward
from moa.profiler.calibration import SOURCES, Sample, Source, whole_text
from moa.profiler.collect import _finished, _seed, collect
from moa.profiler.profile import Profile
from moa.profiler.recorder import recording
from moa.profiler.settings import Settings, Task, tasks
from moa.runtime.applied import apply
from moa.search.grid import Grid
from moa.search.harm import slope
from moa.search.lengths import Lengths

SETTINGS = Settings(
    lengths=(320, 256), samples=2, variants=(("sink_window", 64), ("sink_window", 128), ("keydiff_window", 64))
)


def noise(tokenizer: Any, length: int, rng: random.Random, chat: bool) -> Sample:
    return whole_text([rng.randrange(200) for _ in range(length)])


NOISE = [Source("noise", noise, "sampled", "nll"), Source("known", noise, "given", "margin", "effect")]


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


@pytest.mark.parametrize(
    ("labels", "loss"), [("given", "nll"), ("given", "margin"), ("greedy", "margin"), ("given", "kl")]
)
def test_gradient_in_chunks_is_that_of_the_whole_loss(model: Any, labels: Any, loss: Any) -> None:
    sample = whole_text([i * 7 % 200 for i in range(HEAD_CHUNK + 70)])
    ids = torch.tensor([sample.ids])
    model.double()
    for layer in model.model.layers:
        layer.self_attn.scaling /= 2  # not that of the head size
    grads = []
    hook = model.model.layers[0].register_full_backward_hook(lambda _m, _i, out: grads.append(out[0]))
    other = torch.randn(len(sample.response), model.config.hidden_size, dtype=torch.float64)
    with recording(model, [("sink_window", 64)]):
        run_backward(model, sample, labels, loss, torch.Generator(), other if loss == "kl" else None)
    model.get_input_embeddings().weight.requires_grad_(False)
    out = model(inputs_embeds=model.get_input_embeddings()(ids).requires_grad_()).logits[0, :-1].float()
    label = ids[0, 1:, None] if labels == "given" else out.argmax(-1, keepdim=True)
    wanted = out.gather(1, label)
    if loss == "kl":
        p = model.lm_head(other).float().softmax(-1)
        lost = p * (p.log() - out.log_softmax(-1))
    elif loss == "nll":
        lost = out.logsumexp(-1, keepdim=True) - wanted
    else:  # what the model gets wrong does not count
        lost = (out.scatter(1, label, -torch.inf).amax(-1, keepdim=True) - wanted).clamp(max=0)
        assert (labels == "greedy") == bool((lost < 0).all())
    lost.sum().backward()
    hook.remove()
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-5, atol=1e-6)


SLOPES = Settings((320,), samples=1, estimator="effect", loss="kl")


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
            cut, whole = (attend(q, k, v, **{**how, "first": f}) for f in (first, full))
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
        ({"variants": (("quest", 64),)}, "patterns to measure are sink_window, keydiff_window, found 'quest'"),
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


def test_tasks_run_from_short_to_long() -> None:
    order = [t.key for t in tasks(Settings((512, 256), samples=1), [SOURCES["text"], SOURCES["facts"]])]
    assert order == ["text.256.0", "facts.256.0", "text.512.0"]  # recall: once
    order = [t.key for t in tasks(Settings((512, 256), samples=1, estimator="fisher"), [SOURCES["facts"]])]
    assert order == ["facts.256.0", "facts.512.0"]


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


@pytest.mark.parametrize("kind", [Rule, KeyDiffWindow])
def test_gradients_under_a_plan_are_those_of_the_runtime(model: Any, kind: type[Rule]) -> None:
    """A small step along the gradient changes the loss of the model under the plan by what the gradient says."""
    plan = Plan.from_rules(
        model, {0: [kind(alpha=128, beta=0), Rule(alpha=192, beta=0)]}, defaults=kind(alpha=128, beta=0)
    )
    sample = whole_text([i * 7 % 200 for i in range(320)])
    model.double()
    embeddings: list[torch.Tensor] = []
    hook = model.get_input_embeddings().register_forward_hook(lambda _m, _i, out: embeddings.append(out))
    with recording(model, [("sink_window", 64)], plan=plan):
        run_backward(model, sample, "given", "nll", torch.Generator())
    hook.remove()
    step = torch.zeros(320, embeddings[0].shape[-1], dtype=torch.float64)
    step[:100] = torch.randn(100, step.shape[-1], generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def loss(scale: float) -> float:
        shift = model.get_input_embeddings().register_forward_hook(lambda _m, _i, out: out + scale * step)
        with torch.no_grad(), apply(model, plan):
            logits = model(torch.tensor([sample.ids]), use_cache=False).logits[0, :-1]
        shift.remove()
        return float(torch.nn.functional.cross_entropy(logits, torch.tensor(sample.ids[1:]), reduction="sum"))

    slope = (loss(1e-5) - loss(-1e-5)) / 2e-5
    assert embeddings[-1].grad is not None
    assert float((embeddings[-1].grad[0] * step).sum()) == pytest.approx(slope, rel=1e-3)  # norms are float32
    model.float()


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


def test_a_profile_knows_how_long_texts_the_model_takes(tmp_path: Path, model: Any, tokenizer: Any) -> None:
    path = tmp_path / "p.safetensors"
    collect(model, tokenizer, replace(SETTINGS, samples=1), NOISE[:1], path)
    profile, most = Profile.load(path), model.config.max_position_embeddings
    assert profile.meta["max_length"] == most
    assert Lengths.of(profile).longest == min(4 * max(SETTINGS.lengths), most)
    with pytest.raises(MoaError, match=f"to {most}, found {most + 1}"):
        Lengths.of(profile, longest=most + 1)
