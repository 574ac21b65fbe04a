import os
import re
import stat
from pathlib import Path

import pytest

from moa.plans.replace import replace

ROOT = Path(__file__).parents[2]


def test_a_file_is_made_and_replaced(tmp_path: Path) -> None:
    for content in (b"one", b"another"):
        replace(tmp_path / "file", content)
        assert (tmp_path / "file").read_bytes() == content
        assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("step", ["moa.plans.replace.to_disk", "os.replace"])
def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"precious")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(step, full)
        with pytest.raises(OSError, match="No space left"):
            replace(path, b"half of it")
    assert path.read_bytes() == b"precious"
    assert os.listdir(tmp_path) == ["file"]


def test_content_is_on_the_disk_before_the_name_and_the_name_before_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    fsync, rename = os.fsync, os.replace

    def synced(descriptor: int) -> None:
        is_folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        if not is_folder:
            assert os.fstat(descriptor).st_size == 4
        done.append("folder" if is_folder else "file")
        fsync(descriptor)

    def renamed(source: str, target: str) -> None:
        done.append("name")
        rename(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", renamed)
    replace(tmp_path / "file", b"four")
    assert done == ["file", "name", "folder"]


def test_whole_files_are_written_by_this_function_alone() -> None:
    """What writes otherwise appends (the two files of lines), or is no file that is kept."""
    writes = re.compile(
        r"""write_text\(|write_bytes\(|save_file\(|json\.dump\(|savefig\(|open\([^)]*["'](?:w|x|a|r\+)[bt+]*["']"""
    )
    known = {
        "plans/replace.py": 1, "plans/lines.py": 2, "moa/evaluation/journal.py": 1,
        "moa/report/plan.py": 1, "benchmarks/pictures.py": 1,  # a picture into memory
        "moa/bench/timing.py": 1, "benchmarks/peers/press.py": 1, "search/quiet.py": 1,  # /proc and /dev/null
        "benchmarks/peers/theirs.py": 1,  # a pipe
    }  # fmt: skip
    found = {}
    for folder in ("moa", "profiler", "search", "plans", "kernels", "benchmarks"):
        for path in (ROOT / folder).rglob("*.py"):
            if count := len(writes.findall(path.read_text())):
                found[str(path.relative_to(ROOT))] = count
    assert found == known
