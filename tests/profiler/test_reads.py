"""What a profile says of reads: tables by sample, layer and variant, and their place in the file."""

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from noise import NOISE, SETTINGS, noise

from moa.kernels.paged.effects import effects
from moa.kernels.paged.selection import keys_read
from moa.kernels.paged.summaries import of_text
from moa.plans.errors import MoaError, ProfileError
from moa.profiler.backward import response_hidden, run_backward
from moa.profiler.calibration import Sample, Source
from moa.profiler.collect import collect
from moa.profiler.profile import Profile
from moa.profiler.reads import ROWS, SHARES, Effects, rows_of
from moa.profiler.recorder import recording
from moa.profiler.settings import Settings, tasks

READS = replace(SETTINGS, reads=True)


def test_rows_predict_responses_of_the_second_half_and_go_evenly_through_them() -> None:
    ids = tuple(range(1000))
    assert rows_of(Sample(ids, tuple(range(1, 1000)))) == rows_of(Sample(ids, tuple(range(501, 1000))))
    rows = np.array(rows_of(Sample(ids, tuple(range(1, 1000)))))
    assert len(rows) == ROWS
    assert rows[0] >= 500
    assert rows[-1] == 998
    assert set(np.diff(rows)) == {3, 4}
    assert rows_of(Sample(ids, (400, 700, 701, 990))) == (699, 700, 989)
    assert rows_of(Sample(ids, (999,))) == (998,)


VARIANTS = [("sink_window", 64), ("keydiff_window", 64), ("sink_window", 128)]


def sample_of(length: int) -> Sample:
    return noise(None, length, random.Random(1), True)


def measured(model: Any, sample: Sample) -> Effects:
    with recording(model, VARIANTS) as recorder:
        recorder.pulled = found = Effects(sample, VARIANTS)
        run_backward(model, sample, "given", "nll", torch.Generator())
        recorder.take()
    return found


def test_every_variant_has_the_reads_of_its_pattern(model: Any) -> None:
    found = measured(model, sample_of(320))
    signed, squared = found.table(squared=False), found.table(squared=True)
    assert signed.shape == squared.shape == (3, len(SHARES), 2, 2)
    assert np.array_equal(signed[0], signed[2])  # a sink of first keys changes nothing of what is read
    assert (signed[0, 1] != signed[1, 1]).all()
    assert (squared[0, -1] > squared[0, 0]).all()
    assert (np.sign(signed) == np.sign(signed[:1])).mean() < 1


@torch.no_grad()
def test_squares_are_summed_row_by_row(model: Any) -> None:
    sample = sample_of(320)
    with recording(model, VARIANTS) as recorder:
        found = Effects(sample, VARIANTS)
        seen: list[Any] = []
        recorder.pulled = lambda *given: (seen.append(given), found(*given))[0]
        with torch.enable_grad():
            run_backward(model, sample, "given", "nll", torch.Generator())
        recorder.take()
    rows = torch.tensor(rows_of(sample))
    wanted = {
        layer: effects(*qkvd, rows=rows, shares=SHARES, given=[64], softmax=softmax).square().sum(-1)[0].numpy()
        for layer, *qkvd, softmax in seen
    }
    for layer, table in wanted.items():
        np.testing.assert_allclose(found.table(squared=True)[1, :, layer], table, rtol=1e-5)


def test_an_effect_is_the_derivative_of_the_loss(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against central differences: one group's output, at the rows measured, moved to that of the keys read."""
    model.double()
    sample, layer, head, share = sample_of(320), 0, 1, 2
    found = measured(model, sample).table(squared=False)[1, share, layer, head]
    move = [0.0]

    class Moved:
        @staticmethod
        def apply(q: Any, k: Any, v: Any, softmax: Any, _recorder: Any, at: int, _last: bool) -> Any:
            wide_k, wide_v = (x.repeat_interleave(2, 0) for x in (k, v))
            scores = q @ wide_k.mT * softmax.scale
            later = torch.ones(scores.shape[1:], dtype=torch.bool).triu(1)
            out = scores.masked_fill(later, -torch.inf).softmax(-1) @ wide_v
            if at != layer:
                return out
            own = slice(2 * head, 2 * head + 2)
            for row in rows_of(sample):
                read = keys_read(
                    q[own, row] * softmax.scale, of_text(k[head]), share=SHARES[share], given=64, length=row + 1,
                    kept=row + 1,
                ).nonzero()[:, 0]  # fmt: skip
                cut = scores[own, row, read].softmax(-1) @ v[head, read]
                out[own, row] += move[0] * (cut - out[own, row])
            return out

    monkeypatch.setattr("moa.profiler.recorder._Recorded", Moved)

    def loss(by: float) -> float:
        move[0] = by
        with recording(model, VARIANTS), torch.no_grad():
            told = model.lm_head(response_hidden(model, sample)).log_softmax(-1)
        return -float(told.gather(1, torch.tensor(sample.ids)[list(sample.response), None]).sum())

    step = 0.01  # norms are float32
    assert found == pytest.approx((loss(step) - loss(-step)) / (2 * step), rel=1e-3)


def test_a_profile_has_reads_where_they_are_asked_for(tmp_path: Path, model: Any, tokenizer: Any) -> None:
    plain = collect(model, tokenizer, SETTINGS, NOISE, tmp_path / "plain.safetensors")
    profile = collect(model, tokenizer, READS, NOISE, tmp_path / "reads.safetensors")
    assert plain is not None
    assert profile is not None
    assert plain.reads is None
    assert plain.cuts.keys() == profile.cuts.keys() - {("known", 320)}
    for cut, table in plain.cuts.items():
        np.testing.assert_array_equal(profile.cuts[cut], table)
    assert profile.meta == plain.meta
    reads = profile.reads
    assert reads is not None
    assert reads.shares == SHARES
    assert reads.tables.keys() == profile.cuts.keys()
    assert reads.rows["known", 320] == 2 * ROWS
    assert (reads.tables["noise", 320] >= 0).all()
    assert (reads.tables["known", 320] < 0).any()  # an effect keeps its sign
    loaded = Profile.load(tmp_path / "reads.safetensors")
    assert loaded.reads is not None
    assert (loaded.reads.shares, loaded.reads.rows) == (reads.shares, reads.rows)
    for cut, table in reads.tables.items():
        np.testing.assert_array_equal(loaded.reads.tables[cut], table)
    other = loaded.only(["keydiff_window"])
    assert other.reads is not None
    np.testing.assert_array_equal(other.reads.tables["noise", 320], reads.tables["noise", 320][2:])


def test_reads_add_up_sample_by_sample(tmp_path: Path, model: Any, tokenizer: Any) -> None:
    one = collect(model, tokenizer, replace(READS, lengths=(320,)), NOISE, tmp_path / "p.safetensors")
    assert one is not None
    one = replace(one, meta={})
    assert one.reads is not None
    without = replace(one, reads=None)
    for a, b, times in ((one, one, 2), (one, without, 1), (without, one, 1)):
        both = a.plus(b)
        assert both.reads is not None
        assert both.reads.rows["noise", 320] == times * one.reads.rows["noise", 320]
        np.testing.assert_array_equal(both.reads.tables["noise", 320], times * one.reads.tables["noise", 320])
    assert without.plus(without).reads is None
    other = replace(one, reads=replace(one.reads, shares=SHARES[::-1]))
    with pytest.raises(ProfileError, match=r"reads of the same shares, found 128/256, .* and 8/256"):
        one.plus(other)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"selection": "pages of 64"}, "reads.selection: must be 'pages 16 and 4', .* found 'pages of 64'"),
        ({"shares": [128, 64]}, r"read.known.320 must be float32 \[3, 2, 2, 2\]"),
        ({"shares": [256]}, "reads.shares.0: "),
        ({"tables": [{"source": "books", "length": 320, "rows": 1}]}, "no table 'read.books.320'"),
    ],
)
def test_a_wrong_header_is_refused_by_name(
    tmp_path: Path, model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], says: str
) -> None:
    settings = replace(READS, lengths=(320,), samples=1)
    profile = collect(model, tokenizer, settings, NOISE[1:], tmp_path / "p.safetensors")
    assert profile is not None
    header = profile.reads.header() | change  # type: ignore[union-attr]
    monkeypatch.setattr("moa.profiler.read_tables.ReadTables.header", lambda _self: header)
    profile.save(tmp_path / "bad.safetensors")
    with pytest.raises(ProfileError, match=says):
        Profile.load(tmp_path / "bad.safetensors")


def test_what_cannot_be_measured_is_refused(model: Any) -> None:
    with pytest.raises(MoaError, match="reads are measured by the estimators fisher and effect, found 'mass'"):
        replace(READS, estimator="mass").check(model)
    model.config.head_dim = 10
    with pytest.raises(MoaError, match="a head size that is a multiple of 4, found 10"):
        READS.check(model)


def test_tasks_are_measured_at_the_longest_length_too() -> None:
    recall = Source("known", noise, "given", "margin", "effect")
    order = [t.key for t in tasks(Settings((512, 1024, 256), samples=1, reads=True), [recall, NOISE[0]])]
    assert order == ["known.256.0", "noise.256.0", "noise.512.0", "known.1024.0", "noise.1024.0"]
