"""`moa serve`: what it sets for vLLM and says, what it refuses, and transformers' server under a plan."""

import importlib
import json
import sys
import types

import pytest
from typer.testing import CliRunner

import moa
from moa import serving
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


def command(path, *options):
    notes: list[str] = []
    found = serving.vllm_command("here", Plan.load(path), path, options, notes.append)
    return found, " ".join(notes)


def test_vllm_gets_the_plan_and_defaults_that_are_said(plan):
    found, notes = command(plan, "--port", "1")
    assert found[1:5] == ["-m", "vllm.entrypoints.openai.api_server", "--model", "here"]
    assert json.loads(found[found.index("--additional-config") + 1]) == {"moa_plan": plan}
    assert found[-4:] == ["--max-num-batched-tokens", str(serving.CHUNK), "--port", "1"]
    assert "--max-num-batched-tokens 256" in notes
    assert "prefix" not in notes


def test_prefix_caching_is_off_where_sinks_move(model, tmp_path):
    path = save(model, tmp_path / "other.yaml", pattern="keydiff_window")
    found, notes = command(path)
    assert "--no-enable-prefix-caching" in found
    assert "--no-enable-prefix-caching: keydiff_window" in notes
    assert "--no-enable-prefix-caching" not in command(path, "--enable-prefix-caching")[0]


def test_defaults_stand_back(plan):
    found, notes = command(plan, "--max-num-batched-tokens=2048")
    assert "--max-num-batched-tokens" not in found
    assert notes == ""


def test_a_plan_by_its_name_stays_a_name():
    name = "smollm2-135m-instruct-0.25"
    found, _ = command(name)
    assert json.loads(found[found.index("--additional-config") + 1]) == {"moa_plan": name}


def test_a_gpu_is_said_to_be_untried(plan, monkeypatch):
    monkeypatch.setattr(serving.torch.cuda, "is_available", lambda: True)
    assert "never run on a GPU" in command(plan)[1]
    assert serving.cpu_cache({}, print) == {}


def test_memory_on_a_cpu_is_set_unless_it_is_given():
    notes: list[str] = []
    found = serving.cpu_cache({}, notes.append)
    assert int(found[serving.CPU_CACHE]) >= 1
    assert f"{serving.CPU_CACHE}=" in notes[0]
    assert serving.cpu_cache({serving.CPU_CACHE: "2"}, notes.append) == {}


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
    assert command[-6:] == ["--host", "127.0.0.1", "--port", "8123", "--max-num-seqs", "8"]
    assert environment["SOMETHING"] == "5"


def test_transformers_takes_no_further_options(model, plan):
    with pytest.raises(MoaError, match=r"further options are vLLM's, found --max-num-seqs 8"):
        moa.serve_model(model, plan, engine="transformers", options=["--max-num-seqs", "8"])


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
