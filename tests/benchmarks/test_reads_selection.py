"""`benchmarks/reads_selection.py`: bytes counted by hand, choices of a loop, a model that reads everything."""

from importlib import import_module
from pathlib import Path

import pytest
import torch


@pytest.fixture
def parts(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    return import_module("reads_parts.selection")


def test_bytes_of_summaries(parts):
    sizes = {
        ("mean", 16, "page", "all"): 128, ("bounds", 16, "page", "all"): 256, ("norm", 16, "page", "all"): 130,
        ("norm", 4, "page", "all"): 36, ("spread", 4, "page", "slow 32"): 36, ("mean", 2, "channel", "slow 32"): 8,
        ("truth", 16, "page", "all"): 0,
    }  # fmt: skip
    for (kind, bits, scale, channels), size in sizes.items():
        assert parts.Summary(8, kind, 0.5, bits, scale, channels).nbytes(64) == size


def test_a_budget_counts_floor_pages_and_summaries(parts):
    norm = parts.Summary(4, "norm", 0.5, 4)
    lengths = torch.tensor([2050])
    one = parts.budget(parts.Selector(norm, sink=8, recent=16), lengths, 1 / 8, 64)
    assert [int(x) for x in one[:4]] == [2, 508, 39, 506]  # of 256 tokens 26 are floor, 71 summaries
    assert float(one.share) == pytest.approx(((26 + 39 * 4) * 256 + 506 * 36) / (2050 * 256))
    coarse = parts.Summary(16, "norm", 0.5, 4)
    two = parts.budget(parts.Selector(norm, coarse=coarse, sink=8, recent=16), lengths, 1 / 8, 64)
    pages = int((2050 * 32 - 26 * 256 - 506 * 9) / (1024 + 4 * 36))
    assert [int(x) for x in two[:4]] == [2, 508, pages, 4 * pages]
    assert float(two.share) == pytest.approx(
        ((26 + 4 * pages) * 256 + 506 * 9 + 4 * pages * 36) / (2050 * 256)
    )  # the sink's two pages and the newest four are of the coarse pages, too
    none = parts.budget(parts.Selector(norm, sink=8, recent=16), lengths, 1 / 64, 64)
    assert int(none.pages) == 0
    assert float(none.share) == pytest.approx(26 / 2050)  # no summary is read


def test_choices_are_those_of_a_loop(parts):
    torch.manual_seed(0)
    q, keys, lengths = torch.randn(2, 3, 2, 16), torch.randn(2, 203, 16), torch.tensor([201, 202, 203])
    selector = parts.Selector(parts.Summary(4, "truth"), group="sum", sink=8, recent=16)
    chosen, share = parts.choose(selector, q, keys, lengths, 1 / 3)
    for g in range(2):
        for r, n in enumerate(lengths.tolist()):
            first, last = 2, n // 4 - 4
            logits = keys[g, : n // 4 * 4] @ q[g, r].T
            score = logits.unflatten(0, (-1, 4)).logsumexp(1).sum(-1)[first:last]
            pages = int((n / 3 - (n - 4 * (last - first))) / 4)
            best = (first + score.argsort(descending=True)[:pages]).tolist()
            wanted = {*range(8), *range(4 * last, n), *(4 * p + i for p in best for i in range(4))}
            assert set(chosen[g, r].nonzero().flatten().tolist()) == wanted
            assert float(share[r]) == pytest.approx(len(wanted) / n)


@pytest.mark.parametrize("kind", ["mean", "bounds", "spread", "norm", "cumulant"])
def test_scores_of_pages_of_equal_keys_are_their_logits(parts, kind):
    torch.manual_seed(0)
    q, keys = torch.randn(1, 2, 3, 16), torch.randn(1, 10, 16).repeat_interleave(4, 1)
    wanted = torch.einsum("grhd,gpd->grhp", q, keys[:, ::4])
    for bits, tolerance in ((16, 0.1), (8, 0.1), (4, 2.0)):
        found = parts.score(q, keys, parts.Summary(4, kind, 0.5, bits), 0)
        torch.testing.assert_close(found, wanted, atol=tolerance, rtol=0)


@torch.inference_mode()
def test_a_model_that_reads_all_pages_is_the_dense_one(parts, fresh):
    reader_of = import_module("reads_parts.model").Reader
    ids = torch.arange(90) % 50
    model = fresh()
    wanted = model(ids[None]).logits[0, 80:].log_softmax(-1)
    reader = reader_of(model)
    cache = reader.text(ids[:80].tolist())
    selector = parts.Selector(parts.Summary(4, "mean"), free=True, sink=4, recent=8)
    for given, read in ((None, 1.0), (selector, 1.0)):
        torch.testing.assert_close(reader.rows(cache, ids[80:].tolist(), given, read), wanted, atol=1e-4, rtol=1e-4)
    assert cache.get_seq_length() == 80
    less = reader.rows(cache, ids[80:].tolist(), selector, 1 / 2)
    assert (less - wanted).abs().max() > 1e-3
    assert max(reader.shares) <= 1 / 2
