"""Files of JSON lines after a kill or a power failure."""

import json
from pathlib import Path

import pytest

from moa.plans.errors import MoaError
from moa.plans.lines import TAIL, Lines

ENTRIES = [{"key": f"k{i}", "result": [i, "ü" * i]} for i in range(4)]
WHOLE = b"".join((json.dumps(entry) + "\n").encode() for entry in ENTRIES)
ENDS = [i + 1 for i, byte in enumerate(WHOLE) if byte == ord("\n")]


def lines(path: Path) -> Lines:
    return Lines(path, "a list of results", b'{"key": ', lambda entry: isinstance(entry, dict) and "result" in entry)


def damaged(path: Path) -> list[Path]:
    return sorted(path.parent.glob(f"{path.name}.damaged-*"))


@pytest.mark.parametrize("cut", range(len(WHOLE) + 1))
def test_cut_at_any_byte_the_lines_before_stand_and_the_rest_is_set_aside(tmp_path, caplog, cut):
    path = tmp_path / "r.jsonl"
    path.write_bytes(WHOLE[:cut])
    good = sum(end <= cut for end in ENDS)
    end = ([0, *ENDS])[good]
    assert lines(path).read() == ENTRIES[:good]
    assert path.read_bytes() == WHOLE[:end]
    if cut == end:
        assert not damaged(path)
        assert not caplog.messages
    else:
        [aside] = damaged(path)
        assert aside.read_bytes() == WHOLE[end:cut]
        [said] = caplog.messages
        assert f"{path}: damaged from line {good + 1} on, {cut - end} bytes set aside in {aside}" in said
        assert "\n" not in said
    lines(path).append(ENTRIES[3])
    assert lines(path).read() == [*ENTRIES[:good], ENTRIES[3]]


@pytest.mark.parametrize(
    "tail",
    [b"\0" * 4096, b"\xff\xfe", b"garbage\n", b'{"key": "k9", "result"\n', b'{"key": 1\n' + WHOLE, b"\n", b"nan\n"],
)
def test_a_damaged_rest_is_set_aside_with_all_that_follows(tmp_path, tail):
    path = tmp_path / "r.jsonl"
    path.write_bytes(WHOLE + tail)
    assert lines(path).read() == ENTRIES
    assert path.read_bytes() == WHOLE
    assert damaged(path)[0].read_bytes() == tail
    path.write_bytes(WHOLE + tail)  # once more: what was set aside before stays
    lines(path).read()
    assert [aside.read_bytes() for aside in damaged(path)] == [tail, tail]


def test_to_half_a_line_that_another_left_nothing_is_added(tmp_path):
    path = tmp_path / "r.jsonl"
    mine = lines(path)
    mine.append(ENTRIES[0])
    with path.open("ab") as file:
        file.write(WHOLE[ENDS[0] : ENDS[1] - 5])  # a worker that was killed while it wrote
    mine.append(ENTRIES[2])
    assert lines(path).read() == [ENTRIES[0], ENTRIES[2]]
    assert damaged(path)[0].read_bytes() == WHOLE[ENDS[0] : ENDS[1] - 5]


def test_a_last_line_longer_than_what_is_looked_at_is_whole(tmp_path):
    path, long = tmp_path / "r.jsonl", {"key": "k", "result": "x" * (2 * TAIL)}
    lines(path).append(long)
    lines(path).append(ENTRIES[1])
    lines(path).append(long)
    lines(path).append(ENTRIES[1])
    assert lines(path).read() == [long, ENTRIES[1], long, ENTRIES[1]]
    assert not damaged(path)


@pytest.mark.parametrize("content", [b"", b"\0" * 512])
def test_an_empty_file_and_one_of_zeros_are_begun_anew(tmp_path, content):
    path = tmp_path / "r.jsonl"
    path.write_bytes(content)
    assert lines(path).read() == []
    lines(path).append(ENTRIES[0])
    assert lines(path).read() == ENTRIES[:1]
    assert len(damaged(path)) == bool(content)


@pytest.mark.parametrize(
    ("content", "line"),
    [(b"my notes", 1), (b'{"key', 0), (b'{"ke: 5', 1), (b'{"name": 1}\n', 1), (b"[]\n", 1), (b"null\n", 1),
     (WHOLE + b'{"name": 1}\n', 5), (WHOLE + b"[1]\n" + WHOLE, 5)],
)  # fmt: skip
def test_another_file_stays_as_it_is(tmp_path, content, line):
    path = tmp_path / "r.jsonl"
    path.write_bytes(content)
    if line == 0:
        assert lines(path).read() == []
        return
    with pytest.raises(MoaError, match=f"line {line}: not a list of results"):
        lines(path).read()
    assert path.read_bytes() == content
    assert not damaged(path)
