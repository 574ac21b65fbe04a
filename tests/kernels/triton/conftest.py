import os
import sys
from collections.abc import Callable, Iterable
from itertools import combinations, product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))  # the tests share `piecewise.py`
sys.path.insert(0, str(Path(__file__).parents[1] / "paged"))

from page_oracle import paged  # noqa: F401  (pytest finds fixtures by their names here)

collect_ignore_glob = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["test_*.py"]
FAR = 1 << 30


def pairs(row: tuple[Any, ...]) -> set[Any]:
    """Every two values of a row, each with its place."""
    return set(combinations(enumerate(row), 2))


def cover(*axes: Iterable[Any]) -> list[tuple[Any, ...]]:
    """Rows with one value of each axis in which every two values of two axes meet, chosen greedily, ties in order."""
    rows = {row: pairs(row) for row in product(*axes)}
    chosen, left = [], set().union(*rows.values())
    while left:
        chosen.append(max(rows, key=lambda row: len(rows[row] & left)))
        left -= rows[chosen[-1]]
    return chosen


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "covering(name=values, ...): run so that every two values of two names meet")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    for mark in metafunc.definition.iter_markers("covering"):
        metafunc.parametrize(list(mark.kwargs), cover(*mark.kwargs.values()), ids=name)


def name(value: Any) -> str:
    return getattr(value, "__name__", str(value).removeprefix("torch."))


@pytest.fixture(scope="session", name="cover")
def _cover() -> Callable[..., list[tuple[Any, ...]]]:
    return cover


@pytest.fixture
def far_apart(tmp_path: Path) -> Callable[[Tensor, int], Tensor]:
    """Copies a float16 [_, _, D] with a stride of 2**30 elements in dimension `dim`, of size 3: offsets pass 2**31."""
    room = torch.from_file(str(tmp_path / "sparse"), shared=True, size=2 * FAR + (1 << 20), dtype=torch.float16)
    used = 0

    def place(x: Tensor, dim: int) -> Tensor:
        nonlocal used
        stride = [x.shape[-1], x.shape[-1], 1]
        stride[dim] = FAR
        used += x.numel()
        return room.as_strided(x.shape, stride, used - x.numel()).copy_(x)

    return place


@pytest.fixture
def nothing_is_zero_by_luck(monkeypatch: pytest.MonkeyPatch) -> None:
    plain: Callable[..., Tensor] = torch.empty

    def garbage(*args: Any, **kwargs: Any) -> Tensor:
        found = plain(*args, **kwargs)
        return found.fill_(torch.nan if found.is_floating_point() else 1)

    monkeypatch.setattr(torch, "empty", garbage)
