"""The profile's file: read as written, and whatever is wrong with it said in one line."""

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import save_file

from moa.plans.errors import ProfileError
from moa.plans.model import ModelInfo
from moa.profiler.profile import Profile

MODEL = ModelInfo(
    architecture="LlamaForCausalLM", layers=2, query_heads=4, kv_heads=2, head_size=8, rope={"theta": 10000.0}
)


VARIANTS = (("sink_window", 64), ("keydiff_window", 128))


def make() -> Profile:
    cuts = {("text", n): np.random.default_rng(n).random((2, 2, 2, n // 64, n // 64), np.float32) for n in (256, 512)}
    return Profile(MODEL, VARIANTS, cuts, dict.fromkeys(cuts, 9), dict.fromkeys(cuts, 1), {"seed": 3, "loss": None})


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("profile") / "profile.safetensors"
    make().save(path)
    return path


def test_read_as_written(path: Path) -> None:
    wrote, read = make(), Profile.load(path)
    assert (read.model, read.variants, read.tokens, read.samples, read.meta) == (
        wrote.model, wrote.variants, wrote.tokens, wrote.samples, wrote.meta,
    )  # fmt: skip
    assert read.cuts.keys() == wrote.cuts.keys()
    for cut, table in wrote.cuts.items():
        np.testing.assert_array_equal(read.cuts[cut], table)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(part=st.floats(0, 1, exclude_max=True))
@example(part=0.0)  # nothing at all
@example(part=1 - 2**-20)
def test_a_truncated_file_is_refused(path: Path, tmp_path: Path, part: float) -> None:
    whole = path.read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[: int(part * len(whole))])
    with pytest.raises(ProfileError, match="damaged or truncated"):
        Profile.load(tmp_path / "cut.safetensors")


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(0, 7000), byte=st.integers(0, 255))
@example(place=2500, byte=1)
def test_a_changed_byte_gives_an_error_or_the_same_profile(path: Path, tmp_path: Path, place: int, byte: int) -> None:
    content, wrote = bytearray(path.read_bytes()), make()
    content[place % len(content)] = byte
    (tmp_path / "bad.safetensors").write_bytes(content)
    with suppress(ProfileError):
        read = Profile.load(tmp_path / "bad.safetensors")
        assert (read.model, read.tokens, read.meta) == (wrote.model, wrote.tokens, wrote.meta)
        assert all((read.cuts[cut] == table).all() for cut, table in wrote.cuts.items())


def test_a_profile_from_before_there_were_digests_is_read(path: Path, tmp_path: Path) -> None:
    rewrite(path, tmp_path / "old.safetensors", lambda header: None)
    with safe_open(tmp_path / "old.safetensors", framework="numpy") as file:
        assert "digest" not in file.metadata()["profile"]
    assert Profile.load(tmp_path / "old.safetensors").tokens == make().tokens


def rewrite(path: Path, to: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """The file with another header."""
    with safe_open(path, framework="numpy") as file:
        header = json.loads(file.metadata()["profile"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    change(header)
    header.pop("digest")
    save_file(tensors, to, {"profile": json.dumps(header)})


def older(header: dict[str, Any], **sinks: list[int]) -> None:
    """The header as moa 0.1 wrote it, which had a list of sizes for each of the two patterns that there were."""
    del header["variants"]
    header.update(format="moa-profile-1", **sinks)


@pytest.mark.parametrize(
    ("sinks", "variants"),
    [
        ({"sinks": [64], "keydiff": [128]}, (("sink_window", 64), ("keydiff_window", 128))),
        ({"sinks": [128, 64], "keydiff": []}, (("sink_window", 128), ("sink_window", 64))),
        ({"sinks": [64, 192]}, (("sink_window", 64), ("sink_window", 192))),
    ],
)
def test_headers_of_the_first_format_are_read(
    path: Path, tmp_path: Path, sinks: dict[str, list[int]], variants: tuple[tuple[str, int], ...]
) -> None:
    rewrite(path, tmp_path / "old.safetensors", lambda header: older(header, **sinks))
    old, new = Profile.load(tmp_path / "old.safetensors"), Profile.load(path)
    assert old.variants == variants
    assert old.model == new.model
    for cut, table in new.cuts.items():
        np.testing.assert_array_equal(old.cuts[cut], table)
    old.save(tmp_path / "new.safetensors")
    assert Profile.load(tmp_path / "new.safetensors").variants == variants


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda h: h.update(format="moa-profile-9"), "format: .*'moa-profile-9'"),
        (lambda h: h.update(colour="blue"), "colour: unknown key"),
        (lambda h: h["model"].update(heads=3), "model.heads: unknown key"),
        (lambda h: h["model"].update(kv_heads=3), "query_heads 4 must be a multiple of kv_heads 3"),
        (lambda h: h.pop("model"), "model: is missing"),
        (lambda h: h.update(variants=[]), "variants: "),
        (lambda h: h["variants"][1].append(3), "variants.1: "),
        (lambda h: h["variants"][1].__setitem__(1, 100), "variants.1.1: .*multiple of 64, found 100"),
        (lambda h: h["variants"][1].__setitem__(0, "quest"), "variants.1.0: pattern must be 'sink_window'.*'quest'"),
        (lambda h: h["variants"].pop(), r"cut.text.256 must be float32 \[1, 2, 2, 4, 4\]"),
        (lambda h: h.update(sinks=[64]), "sinks: unknown key"),
        (lambda h: older(h, sinks=[], keydiff=[64, 64]), "sinks: "),
        (lambda h: older(h, sinks=[64, 100]), "sinks.1: .*multiple of 64, found 100"),
        (lambda h: older(h), "sinks: is missing"),
        (lambda h: h.update(cuts=[]), "cuts: "),
        (lambda h: h.update(cuts=7), "cuts: "),
        (lambda h: h["cuts"][0].update(tokens=0), "cuts.0.tokens: .*found 0"),
        (lambda h: h["cuts"][0].update(tokens="many"), "cuts.0.tokens: "),
        (lambda h: h["cuts"][0].update(length=0), "cuts.0.length: "),
        (lambda h: h["cuts"][0].update(source="books"), "cut.books.256"),
        (lambda h: h.update(meta=None), "meta: "),
    ],
)
def test_a_wrong_header_is_refused_by_name(path: Path, tmp_path: Path, change: Any, says: str) -> None:
    rewrite(path, tmp_path / "bad.safetensors", change)
    with pytest.raises(ProfileError, match=says) as caught:
        Profile.load(tmp_path / "bad.safetensors")
    assert "bad.safetensors" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_harms_that_are_not_finite_are_refused(tmp_path: Path, value: float) -> None:
    profile = make()
    for table in profile.cuts.values():
        table[0, 0, 0, -1, 1] = value
    profile.save(tmp_path / "p.safetensors")
    with pytest.raises(ProfileError, match="not finite"):
        Profile.load(tmp_path / "p.safetensors")


@pytest.mark.parametrize("metadata", [None, {}, {"format": "pt"}, {"profile": "[]"}, {"profile": "{"}])
def test_another_safetensors_file_is_refused(tmp_path: Path, metadata: dict[str, str] | None) -> None:
    save_file({"weight": np.zeros(4, np.float32)}, tmp_path / "model.safetensors", metadata)
    with pytest.raises(ProfileError, match=r"not a profile|broken header"):
        Profile.load(tmp_path / "model.safetensors")


def test_a_save_that_fails_leaves_the_old_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    before = path.read_bytes()
    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(ProfileError, match="No space left"):
        make().save(path)
    assert path.read_bytes() == before


def test_profiles_add_up_sample_by_sample(tmp_path: Path) -> None:
    one = make()
    cuts = {("facts", 512): one.cuts["text", 512] * 3}
    other = replace(
        one, cuts=cuts, tokens={("facts", 512): 5}, samples={("facts", 512): 1}, estimators={"facts": "effect"}
    )
    for first, second in ((one, other), (other, one)):
        both = first.plus(second)
        assert set(both.cuts) == set(one.cuts) | set(cuts)
        assert both.estimators == {"facts": "effect"}
    twice = one.plus(one)
    for cut in one.cuts:
        np.testing.assert_array_equal(twice.cuts[cut], 2 * one.cuts[cut])
        assert twice.tokens[cut] == 2 * one.tokens[cut]
        assert twice.samples[cut] == 2 * one.samples[cut]
    twice.save(tmp_path / "p.safetensors")
    assert Profile.load(tmp_path / "p.safetensors").cuts.keys() == one.cuts.keys()
    for changed, says in (
        ({"variants": VARIANTS[::-1]}, "same sinks"),
        ({"model": one.model.model_copy(update={"layers": 9})}, "one model"),
        ({"estimators": {"text": "mass"}}, "one estimator of text, found fisher and mass"),
    ):
        with pytest.raises(ProfileError, match=says):
            one.plus(replace(one, **changed))


def test_samples_are_known_again_in_a_sum() -> None:
    one, two = (replace(make(), meta={"seed": seed, "sources": {"text": []}}) for seed in (0, 1))
    both = one.plus(two)
    for known in (one, two):
        for first, second in ((both, known), (known, both)):
            with pytest.raises(ProfileError, match="the same of text in both"):
                first.plus(second)


def scored(score: float, tokens: int) -> Profile:
    return replace(make(), retrieval=np.full((2, 2), score, np.float32), retrieval_tokens=tokens)


def test_copy_scores_are_kept_and_add_up_by_tokens(tmp_path: Path) -> None:
    scored(0.5, 30).save(tmp_path / "p.safetensors")
    read = Profile.load(tmp_path / "p.safetensors")
    assert read.retrieval is not None
    assert (read.retrieval == 0.5).all()
    both = read.plus(scored(0.9, 10))
    assert both.retrieval_tokens == 40
    np.testing.assert_allclose(both.retrieval, np.full((2, 2), 0.6), rtol=1e-6)
    for one, other in ((read, make()), (make(), read)):
        both = one.plus(other)
        np.testing.assert_array_equal(both.retrieval, read.retrieval)
        assert both.retrieval_tokens == 30
    assert make().plus(make()).retrieval is None


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            lambda p: replace(p, retrieval=p.retrieval[:1]),
            r"retrieval must be float32 \[2, 2\], found float32 \[1, 2\]",
        ),
        (lambda p: replace(p, retrieval=p.retrieval.astype(np.float64)), "retrieval must be float32"),
        (lambda p: replace(p, retrieval=p.retrieval + 1), "not from 0 to 1"),
        (lambda p: replace(p, retrieval=p.retrieval * np.float32("nan")), "not from 0 to 1"),
        (lambda p: replace(p, retrieval_tokens=-1), "retrieval_tokens: .*found -1"),
    ],
)
def test_wrong_copy_scores_are_refused(tmp_path: Path, change: Callable[[Profile], Profile], says: str) -> None:
    change(scored(0.5, 30)).save(tmp_path / "bad.safetensors")
    with pytest.raises(ProfileError, match=says):
        Profile.load(tmp_path / "bad.safetensors")


def test_copy_scores_that_the_header_promises_must_be_there(path: Path, tmp_path: Path) -> None:
    rewrite(path, tmp_path / "bad.safetensors", lambda h: h.update(retrieval_tokens=3))
    with pytest.raises(ProfileError, match=r"damaged or truncated.*retrieval"):
        Profile.load(tmp_path / "bad.safetensors")
