"""Plans in folders and in repositories of the hub, of which a folder takes the place."""

import inspect
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from moa.plans.errors import PlanError
from moa.plans.model import ModelInfo
from moa.plans.plan import FULL, Plan, Rule

MODEL = ModelInfo(
    architecture="LlamaForCausalLM", layers=2, query_heads=4, kv_heads=2, head_size=8, rope={"type": "default"}
)
WIDE = Plan.from_rules(MODEL, {0: [FULL, Rule(alpha=128, beta=0)]}, defaults=FULL)
NARROW = Plan.from_rules(MODEL, {}, defaults=Rule(alpha=128, beta=0))


REAL = huggingface_hub.HfApi


class Hub:
    """The calls of `huggingface_hub.HfApi` that we make, on folders; each call must fit the real one's signature."""

    def __init__(self, root: Path) -> None:
        self.root, self.calls = root, list[tuple[str, dict[str, Any]]]()

    def __getattr__(self, name: str) -> Any:
        real = getattr(REAL, name)

        def call(**arguments: Any) -> Any:
            inspect.signature(real).bind(None, **arguments)
            self.calls.append((name, arguments))
            return getattr(self, f"do_{name}")(**arguments)

        return call

    def do_list_repo_files(self, repo_id: str, revision: str | None) -> list[str]:
        if not (self.root / repo_id).is_dir():
            raise OSError("404 Client Error: repository not found")
        return [path.name for path in (self.root / repo_id).iterdir()]

    def do_hf_hub_download(self, repo_id: str, filename: str, revision: str | None) -> str:
        return str(shutil.copy(self.root / repo_id / filename, self.root / "download"))

    def do_create_repo(self, repo_id: str, private: bool | None, exist_ok: bool) -> None:
        (self.root / repo_id).mkdir(parents=True, exist_ok=exist_ok)

    def do_upload_file(self, path_or_fileobj: bytes, path_in_repo: str, repo_id: str, commit_message: str) -> str:
        (self.root / repo_id / path_in_repo).write_bytes(path_or_fileobj)
        return f"https://hub/{repo_id}/blob/main/{path_in_repo}"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    found = Hub(tmp_path / "hub")
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: found)
    return found


def test_a_folder_keeps_plans_by_name(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    assert WIDE.save_pretrained(folder) == folder / "moa-plan.yaml"
    assert NARROW.save_pretrained(str(folder), "0.25") == folder / "moa-plan-0.25.yaml"
    assert Plan.from_pretrained(folder) == WIDE
    assert Plan.from_pretrained(str(folder), "0.25") == NARROW
    with pytest.raises(PlanError, match=r"no moa-plan-0.5.yaml in .*there: moa-plan-0.25.yaml, moa-plan.yaml\)"):
        Plan.from_pretrained(folder, "0.5")
    (folder / "moa-plan.yaml").write_text("version: 1")
    with pytest.raises(PlanError, match=r"moa-plan.yaml, line 1: model: is missing"):
        Plan.from_pretrained(folder)


def test_a_folder_has_no_revisions_and_a_file_is_no_folder(tmp_path: Path) -> None:
    WIDE.save_pretrained(tmp_path / "model")
    with pytest.raises(PlanError, match=r"a revision is one of a repository of the hub; .*model is a folder"):
        Plan.from_pretrained(tmp_path / "model", revision="main")
    with pytest.raises(PlanError, match=r"cannot write plan .*moa-plan.yaml: (File exists|Not a directory)"):
        WIDE.save_pretrained(tmp_path / "model" / "moa-plan.yaml")


@pytest.mark.parametrize("name", ["a/b", "..\\x", "é", " "])
def test_names_are_parts_of_a_file_s(tmp_path: Path, name: str) -> None:
    with pytest.raises(PlanError, match="a plan's name is letters, digits"):
        WIDE.save_pretrained(tmp_path, name)


def test_a_repository_keeps_plans_by_name(hub: Hub) -> None:
    assert WIDE.push_to_hub("me/model").endswith("me/model/blob/main/moa-plan.yaml")
    assert NARROW.push_to_hub("me/model", "0.25", private=True).endswith("moa-plan-0.25.yaml")
    assert [name for name, _ in hub.calls] == ["create_repo", "upload_file"] * 2
    assert hub.calls[0][1] == {"repo_id": "me/model", "private": None, "exist_ok": True}
    assert hub.calls[2][1]["private"] is True
    assert Plan.from_pretrained("me/model") == WIDE
    assert Plan.from_pretrained("me/model", "0.25", revision="v1") == NARROW
    assert hub.calls[-1][1] == {"repo_id": "me/model", "filename": "moa-plan-0.25.yaml", "revision": "v1"}
    with pytest.raises(PlanError, match=r"no moa-plan-x.yaml in me/model \(plans there: moa-plan-0.25.yaml, moa-plan"):
        Plan.from_pretrained("me/model", "x")
    (hub.root / "me/model/moa-plan.yaml").write_text("version: 2")
    with pytest.raises(PlanError, match=r"moa-plan.yaml of me/model, line 1: version"):
        Plan.from_pretrained("me/model")


def test_what_the_hub_refuses_is_one_line(hub: Hub) -> None:
    with pytest.raises(PlanError, match="hub, 'me/none': 404 Client Error"):
        Plan.from_pretrained("me/none")


def test_names_that_no_repository_has_are_refused_without_the_hub() -> None:
    with pytest.raises(PlanError, match="hub, 'a/b/c': Repo id must be"):
        Plan.from_pretrained("a/b/c")


def test_an_expanded_plan_is_a_plan_file_with_every_rule(tmp_path: Path) -> None:
    document = WIDE.to_dict(expand=True)
    assert document["layers"][0]["heads"][1] == {
        "pattern": "sink_window",
        "sink": 64,
        "read": 1,
        "alpha": 128,
        "beta": 0,
    }
    assert [len(layer["heads"]) for layer in document["layers"].values()] == [2, 2]
    assert Plan.from_dict(document) == WIDE
