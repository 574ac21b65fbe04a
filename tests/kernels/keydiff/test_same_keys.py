"""Equal stored keys, equal sinks: to the last bit, whatever the calls, the batch, the back-end and the precision."""

import numpy as np
import pytest
import torch

from moa.kernels.keydiff.selection import PINNED, scores

CASES = [
    ("reference", torch.float64), ("reference", torch.bfloat16), ("torch", torch.float32), ("torch", torch.float16),
    ("numba", torch.bfloat16), ("numba", torch.float16), ("numba", torch.float32), ("numba", torch.float64),
]  # fmt: skip
N, SHORT, SIZE = 509, 331, 16
WAYS = {
    "one pass": [(N, SHORT)],
    "odd chunks": [(137, 1), (138, 66), (203, 129), (466, 130), (N, SHORT)],
    "one text after the other": [(0, SHORT), (N, SHORT)],
    "steps": [(n, min(n - 20, SHORT)) for n in (211, 300)] + [(300 + i, 280 + i) for i in range(1, 52)] + [(N, SHORT)],
    "steps to the end": [(N - 70, SHORT - 70)] + [(N - 70 + i, SHORT - 70 + i) for i in range(1, 71)],
    "drafts taken back": [(190, 250), (193, 256), (230, 300), (255, 265), (258, 270), (N, SHORT), (N - 5, SHORT - 60),
                          (N, SHORT)],
}  # fmt: skip


@pytest.fixture
def rules(kit):
    """A constant window of the least size under a sink of two blocks, a growing one."""
    return kit.Rules(np.array([128, 64]), np.array([192, 100]), np.array([0, 60]))


def best(keys, sink, edge):
    """What a sink holds when everything before `edge` has left: by one stable sort of the whole text's scores."""
    score = scores(keys[:edge])
    score[:PINNED] = torch.inf
    return score, sorted(sorted(range(edge), key=lambda j: (-score[j], j))[:sink])


@pytest.mark.parametrize(("name", "dtype"), CASES)
@pytest.mark.parametrize("way", WAYS)
def test_however_a_text_is_cut_into_calls(kit, rules, name, dtype, way):
    fill = 0.0 if name == "torch" else float("nan")  # its decode multiplies whole slabs
    keys = kit.texts_of_ties([N, SHORT], 2, SIZE, len(way), dtype)
    found = kit.sinks_after(name, keys, [list(ends) for ends in WAYS[way]], rules, fill)
    for i, (position, score, k, v) in enumerate(found):
        text, group = keys[i // 2][:, i % 2], i % 2
        first = rules.seen(len(text)).first[group, (len(text) - 1) // 64]
        every, at = best(text, int(rules.sink[group]), 64 * int(first))
        assert position.tolist() == at
        assert torch.equal(score, every[at])
        assert torch.equal(k, text[at])
        assert torch.equal(v, 2 * text[at])


def test_texts_have_ties_where_a_sink_ends(kit):
    """So that the order of equals matters: the worst key held and the best one not held have one score."""
    for dtype in (torch.bfloat16, torch.float16, torch.float32, torch.float64):
        every, at = best(kit.texts_of_ties([N], 2, SIZE, 0, dtype)[0][:, 1], 64, 320)
        assert every[at].min() == max(every[j] for j in range(320) if j not in at)
