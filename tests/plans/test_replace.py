import os
from pathlib import Path

import pytest

from moa.plans.replace import replace


def test_a_file_is_made_and_replaced(tmp_path: Path) -> None:
    for content in (b"one", b"another"):
        replace(tmp_path / "file", content)
        assert (tmp_path / "file").read_bytes() == content
        assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("step", ["pathlib.Path.write_bytes", "os.replace"])
def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"precious")

    def full(begun: Path, *_: object) -> None:
        with open(begun, "wb") as file:  # a write gets as far as this
            file.write(b"hal")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(step, full)
        with pytest.raises(OSError, match="No space left"):
            replace(path, b"half of it")
    assert path.read_bytes() == b"precious"
    assert os.listdir(tmp_path) == ["file"]
