"""How vLLM's server is started: what is set and said, and what would serve without the plan."""

import json

import pytest
from transformers import DeepseekV3Config, FalconH1Config, JambaConfig

from moa import vllm_server
from moa.plans.errors import MoaError, Unsupported
from moa.plans.patterns import Rule
from moa.plans.plan import Plan


@pytest.fixture
def make(save_tiny, tmp_path):
    """Make a plan of one rule and save it."""
    config = save_tiny(tmp_path / "model").config

    def plan(**rule):
        path = tmp_path / "plan.yaml"
        Plan.from_rules(config, {}, defaults=Rule(**{"alpha": 128, "beta": 0, **rule})).save(path)
        return str(path)

    return plan


@pytest.fixture
def plan(make):
    return make()


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.setattr(vllm_server, "on_gpu", lambda: True)


def command(path, *options):
    notes: list[str] = []
    found = vllm_server.command("here", Plan.load(path), path, options, notes.append)
    return found, " ".join(notes)


def check(path, *options, **environment):
    vllm_server.check(Plan.load(path), options, environment)


def after(found, option):
    return found[found.index(option) + 1]


def test_the_plan_and_defaults_that_are_said(plan):
    found, notes = command(plan, "--port", "1")
    assert found[1:5] == ["-m", "vllm.entrypoints.openai.api_server", "--model", "here"]
    assert json.loads(after(found, "--additional-config")) == {"moa_plan": plan}
    assert after(found, "--max-num-batched-tokens") == str(vllm_server.CHUNK)
    assert after(found, "--port") == "1"
    assert "--max-num-batched-tokens 256" in notes
    assert "prefix" not in notes


def test_prefix_caching_is_off_where_sinks_move(make):
    path = make(pattern="keydiff_window")
    found, notes = command(path)
    assert "--no-enable-prefix-caching" in found
    assert "--no-enable-prefix-caching: keydiff_window" in notes
    assert "--no-enable-prefix-caching" not in command(path, "--enable-prefix-caching")[0]


@pytest.mark.parametrize("option", ["--max-num-batched-tokens=2048", "--max_num_batched_tokens=2048"])
def test_defaults_stand_back(plan, option):
    found, notes = command(plan, option)
    assert "--max-num-batched-tokens" not in found
    assert notes == ""


@pytest.mark.parametrize(("options", "chunk"), [(["--max-num-seqs", "512"], "512"), (["--max_num_seqs=8"], "256")])
def test_a_step_has_a_token_for_each_request(plan, options, chunk):
    """Fewer are refused by vLLM."""
    found, notes = command(plan, *options)
    assert after(found, "--max-num-batched-tokens") == chunk
    assert f"--max-num-batched-tokens {chunk}:" in notes


def test_a_plan_by_its_name_stays_a_name():
    name = "smollm2-135m-instruct-0.25"
    assert json.loads(after(command(name)[0], "--additional-config")) == {"moa_plan": name}


def test_a_gpu_is_said_to_be_untried_and_how_many_requests_run_at_once(plan, gpu):
    assert "never run on a GPU" in command(plan)[1]
    assert "at most 256 requests run at once" in command(plan)[1]
    assert "at once" not in command(plan, "--max-num-seqs", "8")[1]


def test_the_build_for_cpus_serves_on_one_beside_a_gpu(monkeypatch):
    monkeypatch.setattr(vllm_server.torch.cuda, "is_available", lambda: True)
    for found, expected in (("0.32.0", True), ("0.32.0+cpu", False)):
        monkeypatch.setattr(vllm_server, "version", lambda name, found=found: found)
        assert vllm_server.on_gpu() is expected

    def missing(name):
        raise vllm_server.PackageNotFoundError

    monkeypatch.setattr(vllm_server, "version", missing)
    assert not vllm_server.on_gpu()


class TestAdditionalConfig:
    """One place alone is read by vLLM."""

    @pytest.mark.parametrize("given", [["--additional-config", '{"a": 1}'], ['--additional_config={"a": 1}']])
    def test_a_json_object(self, plan, given):
        found, _ = command(plan, *given, "--port", "1")
        assert sum("additional" in option for option in found) == 1
        assert json.loads(after(found, "--additional-config")) == {"a": 1, "moa_plan": plan}
        assert after(found, "--port") == "1"

    @pytest.mark.parametrize("given", [["--additional-config.a.b_c", "1"], ["--additional_config.a.b_c=1"]])
    def test_keys(self, plan, given):
        found, _ = command(plan, *given, "--port", "1")
        told = [option for option in found if "additional" in option]
        assert told == ["--additional-config.a.b_c=1", f"--additional-config.moa_plan={plan}"]

    def test_a_number_of_groups(self, plan):
        found, _ = command(plan, "--additional-config", json.dumps({"moa_plan": plan, "moa_groups": 2}))
        assert json.loads(after(found, "--additional-config")) == {"moa_plan": plan, "moa_groups": 2}

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            (["--additional-config", '{"moa_plan": "other"}'], "another moa_plan than --plan, found 'other'"),
            (["--additional-config.moa_plan", "other"], "another moa_plan than --plan, found 'other'"),
            (["--additional-config.a=1", "--additional-config={}"], "not both"),
            (["--additional-config", "[]"], r"takes a JSON object, found '\[\]'"),
            (["--additional-config", "{"], "takes a JSON object, found '{'"),
            (["--additional-config"], "takes a JSON object, found ''"),
        ],
    )
    def test_what_is_refused(self, plan, given, message):
        with pytest.raises(MoaError, match=message):
            command(plan, *given)


class TestMemory:
    def test_a_third_of_what_is_free_on_a_cpu(self):
        notes: list[str] = []
        found = vllm_server.environment({"A": "b"}, (), notes.append)
        assert found.keys() == {"A", vllm_server.CPU_CACHE}
        assert int(found[vllm_server.CPU_CACHE]) >= 1
        assert f"{vllm_server.CPU_CACHE}=" in notes[0]

    @pytest.mark.parametrize(
        "option", ["--kv-cache-memory-bytes", "--kv_cache_memory_bytes=5", "--gpu-memory-utilization"]
    )
    def test_options_win(self, option):
        notes: list[str] = []
        assert vllm_server.environment({}, [option, "5"], notes.append) == {}
        assert notes == []
        given = {vllm_server.CPU_CACHE: "2"}
        assert vllm_server.environment(given, [option, "5"], notes.append) == {}
        assert "in vLLM it would win over --" in notes[0]

    def test_so_does_the_variable(self):
        given = {vllm_server.CPU_CACHE: "2"}
        assert vllm_server.environment(given, (), print) == given

    def test_a_gpu_has_its_own(self, gpu):
        assert vllm_server.environment({}, (), print) == {}


class TestRefusals:
    def test_plans_with_reads(self, make):
        with pytest.raises(Unsupported, match=r"vLLM under a plan with reads \(layer 0\).*take transformers"):
            check(make(alpha=1024, read=0.25))

    @pytest.mark.parametrize(
        ("config", "found"),
        [
            (DeepseekV3Config, r"latents \(MLA\)"),
            (FalconH1Config, "a state beside them in 32"),
            (JambaConfig, "28 of linear_attention"),
        ],
    )
    def test_layers_of_other_kinds(self, config, found):
        with pytest.raises(Unsupported, match=f"vLLM under a plan: .*found {found}"):
            vllm_server.check(Plan.dense(config()), (), {})

    def test_sinks_that_move_on_a_gpu(self, make, gpu):
        check(make())
        with pytest.raises(Unsupported, match=r"for CPUs so far.*moa search --pattern sink_window"):
            check(make(pattern="keydiff_window"))

    @pytest.mark.parametrize("option", ["--model=x", "--model", "--config", "--config=x"])
    def test_options(self, plan, option):
        check(plan, "--model-impl", "x")
        with pytest.raises(MoaError, match=f"{option.partition('=')[0]} is not taken"):
            check(plan, option)

    @pytest.mark.parametrize(("plugins", "fine"), [("a,moa", True), ("moa", True), ("a", False), ("", False)])
    def test_a_plugin_that_is_switched_off(self, plan, plugins, fine):
        check(plan)
        if fine:
            check(plan, VLLM_PLUGINS=plugins)
        else:
            with pytest.raises(MoaError, match="VLLM_PLUGINS must name moa"):
                check(plan, VLLM_PLUGINS=plugins)
