"""Copy scores: where they are known exactly, against transformers' own attention weights, and through a whole run."""

import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from moa.cli import main as cli
from moa.plans.errors import MoaError
from moa.plans.plan import Plan
from moa.profiler.calibration import Sample, Source, whole_text
from moa.profiler.collect import collect
from moa.profiler.profile import Profile
from moa.profiler.retrieval import Copies, scores
from moa.profiler.settings import Settings, Task
from moa.profiler.sources import SOURCES

# Needle at 2 to 5, answers 10, 11, 12 and a 99 that no needle holds; rows 8 to 11 predict them.
SAMPLE = Sample((7, 10, 1, 10, 11, 12, 2, 11, 3, 10, 11, 12, 99), (9, 10, 11, 12), ((3, 6),) * 4)


def looks(heads: dict[int, dict[int, int]], count: int, n: int) -> torch.Tensor:
    """Queries [count, n, n] of which head h looks at key heads[h][row] most, keys being one-hot; elsewhere at key 0."""
    q = torch.zeros(count, n, n)
    q[:, :, 0] = 0.5
    for head, rows in heads.items():
        for row, key in rows.items():
            q[head, row, key] = 1.0
    return q


def test_a_copy_is_the_same_token_within_the_needle() -> None:
    n = len(SAMPLE.ids)
    heads = {
        0: {8: 3, 9: 4, 10: 5},  # copies all three
        1: {8: 1, 9: 7, 10: 5},  # the right tokens, two of them outside the needle
        2: {8: 4, 9: 5, 10: 3},  # in the needle, the wrong tokens
        3: {9: 3, 10: 4, 11: 5},  # a row late: what the row itself holds
    }
    q, k = looks(heads, 4, n), torch.eye(n).expand(2, n, n)
    copies = Copies(SAMPLE)
    copies(0, q, k)
    copies(4, q.flip(0), k)
    copies(4, q, k)  # a layer that runs again does not count
    assert copies.tokens == 3
    table = copies.table({0: 0, 4: 4})
    np.testing.assert_array_equal(table, [[3, 1, 0, 0], [0, 0, 1, 3]])
    found, tokens = scores([(table, 3), (table, 5)], 2)
    assert tokens == 8
    np.testing.assert_allclose(found, [[6 / 8, 0], [0, 6 / 8]])
    copies(2, q[[2, 2, 2, 0]], k)
    shared = copies.table({0: 0, 2: 2, 4: 2})  # the heads of both layers that read the keys of layer 2
    np.testing.assert_array_equal(shared, [[3, 1, 0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 3, 1, 3]])
    np.testing.assert_allclose(scores([(shared, 3)], 2)[0], [[1, 0], [0, 1]])


def test_keys_to_come_are_not_looked_at() -> None:
    n = len(SAMPLE.ids)
    q = looks({0: {8: 3}}, 1, n)
    q[:, 8, 9:] = 2.0
    copies = Copies(SAMPLE)
    copies(0, q, torch.eye(n)[None])
    assert copies.table({0: 0}).tolist() == [[1]]


def eager_counts(model: Any, sample: Sample) -> np.ndarray[Any, Any]:
    """Tokens copied [layers, query_heads], token by token from the weights that transformers returns."""
    model.set_attn_implementation("eager")
    with torch.no_grad():
        weights = model(torch.tensor([sample.ids]), output_attentions=True).attentions
    model.set_attn_implementation("sdpa")
    counts = np.zeros((len(weights), weights[0].shape[1]), np.int64)
    for i, (start, stop) in zip(sample.response, sample.needles, strict=True):
        for layer, table in enumerate(weights):
            for head, row in enumerate(table[0, :, i - 1]):
                top = int(row.argmax())
                counts[layer, head] += start <= top < stop and sample.ids[top] == sample.ids[i]
    return counts


def copying(tokenizer: Any, length: int, rng: random.Random, chat: bool) -> Sample:
    """A needle of most of the text and answers of few different tokens, so that random heads copy now and then."""
    ids = tuple(rng.randrange(3) for _ in range(length))
    response = tuple(range(length - 90, length))
    return Sample(ids, response, ((5, length - 100),) * len(response))


def noise(tokenizer: Any, length: int, rng: random.Random, chat: bool) -> Sample:
    return whole_text([rng.randrange(200) for _ in range(length)])


SETTINGS = Settings((256, 320), samples=2, retrieval_score=True)
TEXT, ASKING = Source("noise", noise, "sampled", "nll"), Source("copying", copying, "given", "margin", "effect")


def test_through_a_run_that_is_killed(tmp_path: Path, model: Any, tokenizer: Any) -> None:
    drawn: list[Sample] = []

    def keep(*args: Any) -> Sample:
        drawn.append(copying(*args))
        return drawn[-1]

    whole, broken = tmp_path / "whole.safetensors", tmp_path / "broken.safetensors"
    profile = collect(model, tokenizer, SETTINGS, [TEXT, Source("copying", keep, "given", "margin", "effect")], whole)
    assert profile is not None
    samples = list(dict.fromkeys(drawn))
    assert len(samples) == 2
    counts = np.sum([eager_counts(model, sample) for sample in samples], axis=0)
    assert 0 < counts.sum() < 90 * 2 * counts.size
    assert profile.retrieval_tokens == 2 * 90
    assert profile.retrieval is not None
    np.testing.assert_allclose(profile.retrieval, counts.reshape(2, 2, 2).max(2) / 180, rtol=1e-6)

    def kill(task: Task, _measured: bool) -> None:
        if task.source.name == "copying":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        collect(model, tokenizer, SETTINGS, [TEXT, ASKING], broken, progress=kill)
    collect(model, tokenizer, SETTINGS, [TEXT, ASKING], broken)
    assert broken.read_bytes() == whole.read_bytes()
    plain = collect(model, tokenizer, Settings((256, 320), samples=2), [TEXT, ASKING], tmp_path / "plain.safetensors")
    assert plain is not None
    assert plain.retrieval is None
    for cut, table in profile.cuts.items():
        np.testing.assert_array_equal(plain.cuts[cut], table)


def test_needs_a_source_that_asks_and_the_dense_model(tmp_path: Path, model: Any, tokenizer: Any) -> None:
    for sources, plan, says in (
        ([TEXT], None, "of facts, pairs, lines; found noise"),
        ([TEXT, ASKING], Plan.dense(model), "dense model"),
    ):
        with pytest.raises(MoaError, match=says):
            collect(model, tokenizer, SETTINGS, sources, tmp_path / "p.safetensors", plan=plan)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("chat", [True, False])
@pytest.mark.parametrize("name", [name for name, source in SOURCES.items() if source.recalls])
def test_needles_are_the_statements_of_the_answers(tokenizer: Any, name: str, chat: bool) -> None:
    sample = SOURCES[name].sample(tokenizer, 4096, random.Random(1), chat)
    text = tokenizer.convert_ids_to_tokens(sample.ids)
    assert len(sample.needles) == len(sample.response)
    for needle in set(sample.needles):
        asked = [i for i, its in zip(sample.response, sample.needles, strict=True) if its == needle]
        statement = "".join(text[slice(*needle)])
        assert "".join(text[i] for i in asked).removeprefix("Ġ") in statement
        assert statement.count("Ċ") in (1, 2)  # the line, and what ends it
        assert statement.endswith("Ċ")
        assert needle[1] <= min(sample.response)
    assert Copies(sample).tokens > 0.8 * len(sample.response)
    assert Copies(SOURCES["text"].sample(tokenizer, 1024, random.Random(1), chat)).tokens == 0


def test_no_tensor_of_length_by_length() -> None:
    n, largest = 4096, 0

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
        ) -> Any:
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            largest = max([largest, *(x.numel() for x in tree_leaves(out) if isinstance(x, torch.Tensor))])
            return out

    sample = Sample(tuple(i % 5 for i in range(n)), tuple(range(n - 1000, n)), ((0, 100),) * 1000)
    with Sizes():
        Copies(sample)(0, torch.rand(2, n, 4), torch.rand(1, n, 4))
    assert largest == 2 * 64 * n  # 64 rows of both heads


def test_the_command_writes_scores(model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "p.safetensors"
    line = ["profile", str(model_folder), "-o", str(path), "--lengths", "1024", "--samples", "1", "--source", "pairs"]
    for flags, there in (([], False), (["--retrieval-score"], True)):
        monkeypatch.setattr(sys, "argv", ["moa", *line, *flags])
        assert cli.main() == 0
        read = Profile.load(path)
        assert (read.retrieval is not None) == (read.retrieval_tokens > 0) == there
