"""`moa serve`: what it sets for vLLM and says, what it refuses, and transformers' server under a plan."""

import importlib
import inspect
import sys
import types

import pytest
from typer.testing import CliRunner

import moa
from moa import serving, vllm_server
from moa.cli.main import app
from moa.hf import server
from moa.plans.errors import MoaError, ModelMismatch, Unsupported
from moa.plans.patterns import Rule
from moa.plans.plan import Plan


@pytest.fixture
def model(tmp_path, save_tiny):
    save_tiny(tmp_path / "model")
    return str(tmp_path / "model")


def save(model, path, **rule):
    Plan.from_rules(serving.load_config(model), {}, defaults=Rule(**{"alpha": 128, "beta": 0, **rule})).save(path)
    return str(path)


@pytest.fixture
def plan(model, tmp_path):
    return save(model, tmp_path / "plan.yaml")


def test_another_models_plan_is_refused_before_anything_starts(model):
    with pytest.raises(ModelMismatch):
        moa.serve_model(model, "smollm2-135m-instruct-0.25")


def test_vllm_takes_no_plans_with_reads(model, tmp_path):
    path = save(model, tmp_path / "reads.yaml", alpha=1024, read=0.25)
    with pytest.raises(Unsupported, match="vLLM under a plan with reads"):
        moa.serve_model(model, path, engine="vllm")


def test_an_engine_that_is_not_installed(model, plan, monkeypatch):
    monkeypatch.setattr(serving, "find_spec", lambda name: None if name == "moa_vllm" else object())
    with pytest.raises(MoaError, match=r"engine vllm needs moa_vllm: docs/serve\.md"):
        moa.serve_model(model, plan, engine="vllm")


def test_engines_have_names(model, plan):
    with pytest.raises(MoaError, match="engine must be one of vllm, transformers, found 'tgi'"):
        moa.serve_model(model, plan, engine="tgi")


def test_vllm_takes_the_place_of_the_process(model, plan, monkeypatch):
    monkeypatch.setattr(serving, "find_spec", lambda name: object())
    started: list[tuple] = []
    monkeypatch.setattr(serving.os, "execve", lambda *given: started.append(given))
    monkeypatch.setenv("SOMETHING", "5")
    moa.serve_model(model, plan, port=8123, options=["--max-num-seqs", "8"])
    [(program, command, environment)] = started
    assert program == command[0] == sys.executable
    assert " ".join(command).find("--host 127.0.0.1 --port 8123 --max-num-seqs 8") > 0
    assert environment["SOMETHING"] == "5"
    assert environment[vllm_server.CPU_CACHE]


def test_transformers_takes_no_further_options(model, plan):
    with pytest.raises(MoaError, match=r"further options are vLLM's, found --max-num-seqs 8"):
        moa.serve_model(model, plan, engine="transformers", options=["--max-num-seqs", "8"])


def test_transformers_server_is_what_we_wrap():
    manager = pytest.importorskip("transformers.cli.serving.model_manager").ModelManager
    serve = importlib.import_module("transformers.cli.serve").Serve
    inspect.signature(serve).bind(force_model="m", host="h", port=1, continuous_batching=False)
    assert "model_id_and_revision" in inspect.signature(manager._load_model).parameters
    assert "_load_model" in manager.load_model_and_processor.__code__.co_names


@pytest.fixture
def transformers_server(monkeypatch):
    """Stand-ins for transformers' server: it loads its model and stops."""
    seen = types.SimpleNamespace(settings=None, model=None)

    class ModelManager:
        def _load_model(self, name):
            return moa.load_model(name)[0]

    class Serve:
        def __init__(self, **settings):
            seen.settings = settings
            seen.model = ModelManager()._load_model(settings["force_model"])

    for name, content in {
        "transformers.cli": {}, "transformers.cli.serve": {"Serve": Serve}, "transformers.cli.serving": {},
        "transformers.cli.serving.model_manager": {"ModelManager": ModelManager},
    }.items():  # fmt: skip
        module = types.ModuleType(name)
        module.__dict__.update(content)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(importlib.import_module("transformers.utils.import_utils"), "is_serve_available", lambda: True)
    seen.manager, seen.load = ModelManager, ModelManager._load_model
    return seen


def test_transformers_serves_what_the_plan_is_on(model, plan, transformers_server):
    notes: list[str] = []
    moa.serve_model(model, plan, engine="transformers", port=8123, note=notes.append)
    settings = transformers_server.settings
    assert settings == {"force_model": model, "host": "127.0.0.1", "port": 8123, "continuous_batching": False}
    assert transformers_server.model.config._attn_implementation.startswith("moa")
    assert transformers_server.manager._load_model is transformers_server.load
    assert notes == ["one request at a time; further ones wait"]


def test_transformers_without_its_server(transformers_server, monkeypatch):
    monkeypatch.setattr(importlib.import_module("transformers.utils.import_utils"), "is_serve_available", lambda: False)
    with pytest.raises(MoaError, match=r"pip install 'transformers\[serving\]'"):
        server.serve("m", print, host="h", port=1)


def test_the_command(model, plan, monkeypatch):
    asked = {}
    monkeypatch.setattr(moa, "serve_model", lambda *args, **kwargs: asked.update(kwargs, given=args), raising=False)
    line = ["serve", model, "--plan", plan, "--engine", "vllm", "--port", "99", "--", "--max-num-seqs", "8"]
    assert CliRunner().invoke(app, line).exit_code == 0
    assert asked["given"] == (model, plan)
    assert asked["options"] == ["--max-num-seqs", "8"]
    assert (asked["engine"], asked["port"]) == ("vllm", 99)
