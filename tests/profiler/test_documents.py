"""The user's files: read by their own names, only the columns that count, and refused in one short line."""

import codecs
import json
import random
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from datasets import Dataset
from pyarrow import parquet

from moa.plans.errors import MoaError
from moa.profiler.documents import document_source, load_documents
from moa.profiler.files import read_text

NAMES = [
    "docs[1]", "docs*", "docs?", "**", "a b", "100%41", "x#y", "file:docs", "zip:::docs", "hf:docs", "{a,b}", "~docs",
    "$HOME", "docs\n2", "-docs", "é",
]  # fmt: skip


@pytest.mark.parametrize("ending", [".jsonl", ".json", ".txt", ".parquet"])
@pytest.mark.parametrize("name", NAMES)
def test_a_file_is_the_one_of_that_very_name(
    name: str, ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def write(stem: str, text: str) -> None:
        path = Path(f"{stem}{ending}")
        if ending == ".parquet":
            with path.open("wb") as file:
                parquet.write_table(pa.table({"text": [text]}), file)
        else:
            path.write_text(text if ending == ".txt" else json.dumps({"text": text}))

    for other in ("docs1", "docs2", "docs", "a", "b", "100A"):
        write(other, "another file")
    for folder in ("", "a folder [0-9]/"):
        Path(folder).mkdir(exist_ok=True)
        write(f"{folder}{name}", "this file")
        assert load_documents(f"{folder}{name}{ending}") == [(None, "this file")]
        assert load_documents(f"./{folder}{name}{ending}") == [(None, "this file")]
        assert load_documents(str((tmp_path / f"{folder}{name}{ending}").absolute())) == [(None, "this file")]


@pytest.mark.parametrize("name", ["https://host/docs1.jsonl", "hf://datasets/a/docs1.jsonl", "file://docs1.jsonl"])
def test_a_url_is_no_file(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("docs1.jsonl").write_text('{"text": "another file"}')
    with pytest.raises(MoaError, match=f"no data file at {name}"):
        load_documents(name)


def test_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "real[1].txt").write_text("x")
    (tmp_path / "link.txt").symlink_to(tmp_path / "real[1].txt")
    assert load_documents(str(tmp_path / "link.txt")) == [(None, "x")]


@pytest.mark.parametrize("name", ["docs", "a/docs"])
def test_the_hub_is_not_a_folder_here(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).mkdir(parents=True)
    (Path(name) / "train.jsonl").write_text('{"text": "another file"}')
    with pytest.raises(MoaError, match=f"cannot read data hub:{name}: {name} is here too"):
        load_documents(f"hub:{name}")


@pytest.mark.parametrize("name", ["", "a/b/c", "https://host/x", "hf://datasets/a/b", "docs*", "a::b", "../x", "/tmp"])
def test_the_hub_takes_names_alone(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: pytest.fail("was asked"))
    with pytest.raises(MoaError, match="cannot read data hub:"):
        load_documents(f"hub:{name}")


def test_rows_of_the_hub_are_read_likewise(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"good": ["a", "b"], "bad": ["a", ["b"] * 9999]}
    for name, texts in found.items():
        rows = Dataset.from_list([{"text": [t] if name == "bad" else t, "other": i} for i, t in enumerate(texts[:1])])
        monkeypatch.setattr("datasets.load_dataset", lambda *_, rows=rows, **__: rows)
        if name == "good":
            assert load_documents("hub:x") == [(None, "a")]
            continue
        with pytest.raises(MoaError, match="1 of 1 have none, the first is row 1: "):
            load_documents("hub:x")

    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("x" * 9999)

    monkeypatch.setattr("datasets.load_dataset", fails)
    with pytest.raises(MoaError) as error:
        load_documents("hub:x")
    assert len(str(error.value)) < 300


@pytest.mark.parametrize("ending", [".jsonl", ".json"])
def test_other_columns_may_hold_anything(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"d{ending}"
    others: list[dict[str, Any]] = [{}, {"n": 1}, {"n": "one"}, {"n": [1, "a", None]}, {"n": {"b": {}}}, {"n": 10**30}]
    filler = "x" * 2_000_000  # over the 10 MB from which columns are guessed
    rows = [{"text": f"{i}", "filler": filler, **other} for i, other in enumerate(others)]
    path.write_text("".join(json.dumps(row) + "\n\n" for row in [*rows, {"text": "6", "later": True}]))
    assert load_documents(str(path)) == [(None, str(i)) for i in range(7)]


def test_a_list_of_rows(tmp_path: Path) -> None:
    path = tmp_path / "d.json"
    path.write_text(json.dumps([{"prompt": "a", "response": "b"}, {"response": "d", "prompt": "c", "x": 1}], indent=1))
    assert load_documents(str(path)) == [("a", "b"), ("c", "d")]


def test_only_the_columns_that_count_are_read_of_parquet(tmp_path: Path) -> None:
    path = tmp_path / "d.parquet"
    table = {
        "text": pa.array(["a", "b"]).dictionary_encode(), "n": pa.array([[1], None], pa.list_(pa.int8())),
        "at": pa.array([0, 1], pa.timestamp("ns")), "raw": pa.array([b"\xff", b""]),
    }  # fmt: skip
    parquet.write_table(pa.table(table), path)
    assert load_documents(str(path)) == [(None, "a"), (None, "b")]
    for texts in (["a", None], [1, 2], [b"a", b"b"], [["a" * 99999], []], [{"a": "b"}, None]):
        parquet.write_table(pa.table({"text": texts}), path)
        with pytest.raises(MoaError, match="must have text in every row of the column text") as error:
            load_documents(str(path))
        assert len(str(error.value)) < 300


@pytest.mark.parametrize("raw", ["\ufeffone\ntwo", "one\r\ntwo", "one\rtwo"])
def test_marks_and_line_ends_are_no_text(raw: str, tmp_path: Path) -> None:
    path = tmp_path / "d.txt"
    path.write_bytes(raw.encode())
    assert read_text(path) == "one\ntwo"
    assert load_documents(str(path)) == [(None, "one\ntwo")]


def test_marks_and_line_ends_are_no_rows(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    row = b'{"text": "one\\ntwo \xe2\x80\xa8 three"}\r\n'
    path.write_bytes(codecs.BOM_UTF8 + row + b"\r\n" + codecs.BOM_UTF8 + row.strip())
    assert load_documents(str(path)) == [(None, "one\ntwo \u2028 three")] * 2
    path = path.with_suffix(".json")
    path.write_bytes(codecs.BOM_UTF8 + b'[{"text": "one"}]')
    assert load_documents(str(path)) == [(None, "one")]


LONG = "secret " * 20_000
BAD = {
    "utf16.txt": (
        "some text".encode("utf-16"),
        "cannot read data .*: must be UTF-8 text: it begins with the .* UTF-16",
    ),
    "utf16-bare.txt": ("some text".encode("utf-16-le"), "must be UTF-8 text: a NUL stands at character 2"),
    "latin.txt": (b"caf\xe9", "must be UTF-8 text: unexpected end of data at byte 3"),
    "utf16.jsonl": ('{"text": "a"}'.encode("utf-16"), "line 1 must be UTF-8 text: it begins with"),
    "latin.jsonl": (b'{"text": "a"}\n{"text": "caf\xe9"}', "line 2 must be UTF-8 text: invalid continuation byte at"),
    "nul.jsonl": (b'{"text": "a"}\n\0\0\0\0', "line 2 must be JSON: Expecting value: character 1"),
    "cut.jsonl": (f'{{"text": "a"}}\n{{"text": "{LONG}'.encode(), "line 2 must be JSON: Unterminated string .* 10"),
    "gzip.jsonl": (b"\x1f\x8b\x08\0", "line 1 must be UTF-8 text"),
    "list.jsonl": (f'{{"text": "a"}}\n["{LONG}"]'.encode(), "row 2 must be an object with columns, found \\['secret"),
    "number.json": (b'[{"text": "a"}, 7]', "row 2 must be an object with columns, found 7"),
    "cut.json": (b'[\n{"text": "a"},\n{"text": ', "must be JSON: Expecting value: line 3, character 10"),
    "digits.jsonl": (b'{"text": "a", "n": ' + b"1" * 5000 + b"}", "line 1 must be JSON that Python reads: Exceeds"),
    "deep.jsonl": (b'{"text": ' + b"[" * 200_000, "line 1 must be JSON that Python reads"),
    "nested.jsonl": (json.dumps({"text": [LONG]}).encode(), "1 of 1 have none, the first is row 1: \\['secret"),
    "object.jsonl": (json.dumps({"text": {LONG: LONG}}).encode(), "the first is row 1: {'secret"),
    "lost.jsonl": (b'{"text": "a"}\n{}\n{"text": 5}', "2 of 3 have none, the first is row 2: None"),
    "half.jsonl": (b'{"text": "a \\ud83d\\ude00"}\n{"text": "a \\ud83d"}', r"first is row 2: 'a \\ud83d'"),
    "columns.jsonl": (
        json.dumps({LONG: 1, "b": 2}).encode(),
        "needs a column text, or prompt and response; found b, sec",
    ),
    "prompt.jsonl": (b'{"prompt": "a"}', "needs a column text, or prompt and response; found prompt"),
    "cut.parquet": (b"PAR1" + b"x" * 100, "cannot read data .*cut.parquet: "),
    "docs.jsonl.gz": (b"\x1f\x8b", "data must be .jsonl, .json, .txt, .parquet or hub:NAME, found"),
}


@pytest.mark.parametrize("name", list(BAD))
def test_what_cannot_be_read_is_said_in_a_short_line(name: str, tmp_path: Path) -> None:
    raw, says = BAD[name]
    path = tmp_path / name
    path.write_bytes(raw)
    with pytest.raises(MoaError, match=says) as error:
        load_documents(str(path))
    assert len(str(error.value)) < 400 + len(str(path))


def test_an_empty_text_is_no_document(tokenizer: Any, tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in ("", "x" * 300, "")))
    sample = document_source(str(path), tokenizer, [256]).sample(tokenizer, 256, random.Random(0), True)
    assert tokenizer.decode(sample.ids) == "x" * 256
    path.write_text('{"text": ""}\n')
    with pytest.raises(MoaError, match="found no documents"):
        document_source(str(path), tokenizer, [256])


def test_a_local_file_needs_no_cache_of_the_hub(tmp_path, monkeypatch):
    """Where the hub's cache cannot be written, `datasets` fails as it is imported."""
    monkeypatch.setitem(sys.modules, "datasets", None)
    path = tmp_path / "d.jsonl"
    path.write_text('{"text": "one"}\n')
    assert load_documents(str(path)) == [(None, "one")]
