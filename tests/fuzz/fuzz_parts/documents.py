"""Changes inside JSON-like documents: a key less, a key more, a value of another kind, at any depth."""

from collections.abc import Callable, Iterator
from random import Random
from typing import Any

ODD: tuple[Any, ...] = (
    None, "", "x", " ", -1, 0, 1, 2, 3, 7, 64, 0.5, -0.5, 1e308, float("nan"), float("inf"), [], {}, [None], [0], [1,
    1],
    {"a": 1}, True, False, 2**31, 2**63, 2**70, "1", "0.5", "é\u2028", "x" * 5000, [[[]]], [1] * 1000,
)  # fmt: skip


def places(document: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of everything inside."""
    if isinstance(document, dict):
        inside = list(document.items())
    else:
        inside = list(enumerate(document)) if isinstance(document, list) else []
    for key, value in inside[:300]:
        yield (*path, key)
        yield from places(value, (*path, key))


def mutated(document: Any, rng: Random, values: tuple[Any, ...] = ODD) -> tuple[Any, str]:
    """The document with one change, and the change in words; `document` itself is changed."""
    path = rng.choice(list(places(document)) or [()])
    if not path:
        value = rng.choice(values)
        return value, f"all is {value!r}"[:60]
    parent = document
    for key in path[:-1]:
        parent = parent[key]
    last, where = path[-1], ".".join(map(str, path))
    ways: list[Callable[[], str]] = [
        lambda: _delete(parent, last, where),
        lambda: _set(parent, last, rng.choice(values), where),
        lambda: _set(parent, last, rng.choice(values), where),
        lambda: _set(parent, last, [parent[last]], where),
        lambda: _set(parent, last, str(parent[last]), where),
        lambda: _number(parent, last, where, rng),
    ]
    return document, rng.choice(ways)()


def _delete(parent: Any, key: Any, where: str) -> str:
    del parent[key]
    return f"no {where}"


def _set(parent: Any, key: Any, value: Any, where: str) -> str:
    parent[key] = value
    return f"{where} is {value!r}"[:60]


def _number(parent: Any, key: Any, where: str, rng: Random) -> str:
    value = parent[key]
    if isinstance(value, bool) or not isinstance(value, int | float):
        return _set(parent, key, rng.choice(ODD), where)
    return _set(parent, key, rng.choice([value + 1, value - 1, -value, value * 2, value * 10**6, float(value)]), where)
