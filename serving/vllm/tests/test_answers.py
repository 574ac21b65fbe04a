"""What vLLM answers under a plan is what `moa.apply` answers."""

import pytest
from tiny import NEW, PROMPTS, Answer, pool, prompt
from vllm import SamplingParams
from vllm.sampling_params import RequestOutputKind

from moa.plans.plan import Plan
from moa_vllm.groups import kept, on_ranks, sort

TOLERANCE = 1e-4
"""Of logprobs in float32; where the two best tokens are nearer than that, either may come."""


def ask(llm, prompts=PROMPTS, **sampling):
    usual = {"temperature": 0, "max_tokens": NEW, "ignore_eos": True, "logprobs": 1}
    settings = SamplingParams(**(usual | sampling))
    return llm.generate([{"prompt_token_ids": ids} for ids in prompts], settings, use_tqdm=False)


def check(found, wanted: list[Answer], new: int = NEW) -> None:
    for request, answer in zip(found, wanted, strict=True):
        for output in request.outputs:
            for i, token in enumerate(output.token_ids):
                assert output.logprobs[i][token].logprob == pytest.approx(answer.logprobs[i], abs=TOLERANCE), i
                if token != answer.tokens[i]:
                    assert answer.gaps[i] < TOLERANCE, i
                    break
            else:
                assert len(output.token_ids) == new


both = pytest.mark.parametrize("plan", ["windows", "keydiffs"])


@both
def test_requests_of_different_lengths_at_once(engine, wanted, plan):
    llm = engine(plan)
    free = pool(llm).get_num_free_blocks()
    check(ask(llm), wanted(plan))
    assert pool(llm).get_num_free_blocks() == free


@both
@pytest.mark.parametrize("chunk", [100, 256])
def test_chunks(engine, wanted, plan, chunk):
    """Chunks of 100 tokens begin and end within blocks, beside requests that generate."""
    check(ask(engine(plan, max_num_batched_tokens=chunk)), wanted(plan))


@both
def test_preemption(engine, plans, wanted, plan):
    """The pool holds all prompts but not what they grow to, so some requests begin again; sinks move then, too."""
    prompts = [prompt(190, seed) for seed in range(6)]
    groups = sort(on_ranks(Plan.load(plans[plan]), 1), 256).rules
    at_once, next_block = 3 * len(groups), sum(4 - int(kept(rules).gap(192 // 64)) for rules in groups)
    assert at_once < next_block
    llm = engine(plan, max_model_len=256, num_gpu_blocks_override=1 + len(prompts) * at_once + 4)
    check(ask(llm, prompts), wanted(plan, prompts))
    preempted = [m.value for m in llm.get_metrics() if m.name == "vllm:num_preemptions"]
    assert sum(preempted) > 0


def test_a_prefix_that_was_read_before(engine, wanted):
    llm = engine("windows", enable_prefix_caching=True)
    check(ask(llm), wanted("windows"))
    again = ask(llm)
    check(again, wanted("windows"))
    cached = [request.num_cached_tokens for request in again]
    assert cached[0] == 640  # of 700
    assert cached[1] == 64


def test_sinks_that_move_are_not_shared(engine, wanted):
    llm = engine("keydiffs", enable_prefix_caching=True)
    for _ in range(2):
        found = ask(llm)
        check(found, wanted("keydiffs"))
        assert not any(request.num_cached_tokens for request in found)


@both
def test_several_answers_and_stop_strings(engine, wanted, plan):
    llm = engine(plan)
    check(ask(llm, n=2, temperature=1, top_k=1), wanted(plan))
    answer = wanted(plan)[0]
    last = f"w{answer.tokens[5]}"
    first = next(i for i, token in enumerate(answer.tokens) if f"w{token}" == last)
    [request] = ask(llm, PROMPTS[:1], stop=[last])
    assert request.outputs[0].finish_reason == "stop"
    assert len(request.outputs[0].token_ids) == first + 1


def test_streaming(engine, wanted):
    """Each token comes once, in the step that computes it."""
    llm = engine("windows")
    asked = SamplingParams(temperature=0, max_tokens=NEW, ignore_eos=True, output_kind=RequestOutputKind.DELTA)
    for i, ids in enumerate(PROMPTS):
        llm.llm_engine.add_request(str(i), {"prompt_token_ids": ids}, asked)
    found: list[list[int]] = [[] for _ in PROMPTS]
    while llm.llm_engine.has_unfinished_requests():
        for request in llm.llm_engine.step():
            assert len(request.outputs[0].token_ids) == 1
            found[int(request.request_id)] += request.outputs[0].token_ids
    for tokens, answer in zip(found, wanted("windows"), strict=True):
        other = next((i for i in range(NEW) if tokens[i] != answer.tokens[i]), None)
        assert other is None or answer.gaps[other] < TOLERANCE


def test_compiled(engine, wanted):
    check(ask(engine("keydiffs", enforce_eager=False)), wanted("keydiffs"))


def test_without_a_plan_nothing_changes(engine):
    from vllm.model_executor.layers.attention import Attention

    llm = engine(None)
    [layers] = llm.apply_model(lambda model: [type(m) for m in model.modules() if isinstance(m, Attention)])
    assert set(layers) == {Attention}


@both
def test_two_ranks(engine, wanted, plan):
    """Each rank has one KV head of every layer, with a rule of its own."""
    llm = engine(plan, tensor_parallel_size=2, distributed_executor_backend="mp", max_num_batched_tokens=256)
    check(ask(llm), wanted(plan))
