"""Page summaries, selection and attention over what is read, one page and one key at a time, from the definition."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from moa.kernels.call import Reading
from moa.plans.reading import choices, fetched, opened


def rounded(x):
    """A float32 as the nearest bfloat16."""
    return np.float32(torch.tensor(x).bfloat16().float())


def summary(keys):
    """The numbers of the mean, its scale and the spread of the keys [4 or 16, D] of a page, float32."""
    keys, size = keys.astype(np.float32), keys.shape[1]
    slow = [*range(size // 4, size // 2), *range(3 * size // 4, size)]
    totals, squares = [], []
    for channel in slow:
        column = keys[:, channel]

        def fours(x):
            parts = [((x[i] + x[i + 1]) + x[i + 2]) + x[i + 3] for i in range(0, len(x), 4)]
            return parts[0] if len(parts) == 1 else fours(parts)

        mean = fours(column) / np.float32(len(keys))
        totals.append(mean)
        squares.append(fours([(x - mean) * (x - mean) for x in column]))
    while len(squares) % 2 == 0:
        half = len(squares) // 2
        squares = [a + b for a, b in zip(squares[:half], squares[half:], strict=True)]
    total = squares[0]
    for more in squares[1:]:
        total = total + more
    scale = rounded(max(max(map(abs, totals)) / np.float32(7), np.float32(2.0**-60)))
    numbers = [int(np.clip(np.rint(mean / scale), -7, 7)) for mean in totals]
    return numbers, scale, rounded(np.sqrt(total / np.float32(len(keys))))


def score(queries, keys):
    """Every head's score of one page, from queries [heads, D] times the scale."""
    size = queries.shape[1]
    slow = [*range(size // 4, size // 2), *range(3 * size // 4, size)]
    numbers, scale, spread = summary(keys)
    return [float(q[slow] @ (np.array(numbers) * float(scale)) + np.linalg.norm(q[slow]) / 2 * spread) for q in queries]


def best(scores, count):
    """Which pages have the greatest sum of their heads' softmax; of equal ones the first."""
    scores = np.array(scores)
    weight = np.exp(np.maximum(scores - scores.max(0), -80))
    total = (weight / weight.sum(0)).sum(1)
    return sorted(sorted(range(len(total)), key=lambda i: (-total[i], i))[:count])


def chosen(queries, keys, share, given, length):
    """Which of the keys [kept, D] that a row sees it reads."""
    kept, size = keys.shape
    among, count = int(choices(kept, given)), int(fetched(share, length, kept, given, size))
    if count == 4 * among:
        return np.ones(kept, bool)
    read = np.ones(kept, bool)
    read[given : given + 16 * among] = False
    if count:
        pages = [given // 16 + i for i in range(among)]
        opens = best([score(queries, keys[16 * c : 16 * c + 16]) for c in pages], int(opened(count, among)))
        fine = [4 * pages[i] + j for i in opens for j in range(4)]
        for i in best([score(queries, keys[4 * f : 4 * f + 4]) for f in fine], count):
            read[4 * fine[i] : 4 * fine[i] + 4] = True
    return read


def sees(rules, group, row):
    """Which keys the row at a position sees, by the table of its rule."""
    at = np.arange(row + 1)
    first = rules.seen(row).first[group, row // 64].item()
    return (at < rules.sink[group]) | (at // 64 >= first)


def rows(whole, rules, reading, past, total, scale):
    """The attention of tokens past … total of each text, and which keys each row of each group reads of its own."""
    outs, masks = [], []
    for q, k, v, begin, end in zip(whole.q, whole.k, whole.v, past, total, strict=True):
        heads = q.shape[1] // k.shape[1]
        for row in range(begin, end):
            for g in range(k.shape[1]):
                seen = np.flatnonzero(sees(rules, g, row))
                mine = q[row, g * heads : (g + 1) * heads] * scale
                share, given = (int(x[g]) for x in reading)
                read = chosen(mine.numpy(), k[seen, g].numpy(), share, given, row + 1)
                at = torch.from_numpy(seen[read])
                outs.append((mine @ k[at, g].T).softmax(-1) @ v[at, g])
                masks.append(at)
    return torch.cat(outs).view(-1, *whole.q[0].shape[1:]), masks


def summarised(kit, whole, rules, lengths, **options):
    """A store of these texts (`store_of`) and the summaries of all full pages that it holds; other bytes are 255."""
    store = kit.store_of(whole, rules, lengths, **options)
    size = store.k.shape[1]
    store.summaries = torch.full((len(store.k) // 64, 5 * (size + 16)), 255, dtype=torch.uint8)
    for s, length in enumerate(lengths):
        for g, sink in enumerate(rules.sink // 64):
            blocks = int(store.capacity[s, g]) // 64
            for page, step in ((16, 1), (4, 4)):
                for i in range(length // page):
                    j = page * i // 64
                    if not kit.sees(rules, g, max(length, 64 * j), 64 * j):
                        continue
                    block = int(store.base[s, g]) // 64 + (j if j < sink else sink + (j - sink) % (blocks - sink))
                    inside = page * i % 64 // page
                    quad, lane = (0, inside) if step == 1 else (1 + inside // 4, inside % 4)
                    here = store.summaries[block].view(5, -1)[quad]
                    keys = whole.k[s][page * i : page * i + page, g].to(store.k.dtype).float().numpy()
                    numbers, scale, spread = summary(keys)
                    for c in range(size // 4):
                        here[4 * c + lane] = (numbers[c] & 15) | (numbers[size // 4 + c] & 15) << 4
                    both = here[size:].view(torch.bfloat16)
                    both[lane], both[4 + lane] = float(scale), float(spread)
    return store


def reading(*groups):
    """Of pairs (share in 1/256, first keys always read)."""
    share, given = zip(*groups, strict=True)
    return Reading(torch.tensor(share, dtype=torch.int32), torch.tensor(given, dtype=torch.int32))


@pytest.fixture(scope="session")
def paged():
    return SimpleNamespace(summary=summary, chosen=chosen, rows=rows, summarised=summarised, reading=reading, best=best)
