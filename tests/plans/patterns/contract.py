"""What every pattern keeps to. A test class inherits it and names the pattern and a few of its rules."""

import random
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, LlamaConfig, LlamaForCausalLM
from transformers.masking_utils import sdpa_mask

import moa
from moa.kernels.registry import BACKENDS, REFERENCE, find
from moa.kernels.sink_contents import history
from moa.plans.errors import MoaError
from moa.plans.model import ModelInfo
from moa.plans.patterns import FULL, PATTERNS, Rule, parse, reach
from moa.plans.patterns.terms import IN_PLACE
from moa.plans.plan import Plan
from moa.plans.span import BLOCK
from moa.profiler.backward import run_backward
from moa.profiler.calibration import whole_text
from moa.profiler.estimators import mass
from moa.profiler.recorder import recording
from moa.search.cost import FIXED, Costs, Work, term_names
from moa.search.fit import measure, probes
from moa.search.grid import grid

FAST = [spec.name for spec in BACKENDS if spec is not REFERENCE and (spec.takes("cpu") or spec.emulated)]
"""Those for GPUs too where they are emulated: `test_emulated.py` runs them so."""
READS = [name for name in FAST if "read" in find(name).can]
N = 400
VOCABULARY = 61


class Contract:
    """Each test is of one promise; `kind` is the pattern, `rules` are some of its rules, that cut texts of `N`."""

    kind: ClassVar[type[Rule]]
    rules: ClassVar[tuple[Rule, ...]]

    @pytest.fixture(autouse=True)
    def known(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Patterns of tests are known to their tests alone."""
        monkeypatch.setitem(PATTERNS, self.kind.model_fields["pattern"].default, self.kind)

    @pytest.fixture
    def model(self) -> Any:
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=64, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, head_dim=16, max_position_embeddings=2048, initializer_range=0.2,
        )  # fmt: skip
        return LlamaForCausalLM(config).double().eval()

    def plan(self, model: Any, read: float = 1) -> Plan:
        """Its rules, one after the other, which read a part of all bytes."""
        of = [self.rules[i % len(self.rules)].model_copy(update={"read": float(read)}) for i in range(4)]
        return Plan.from_rules(model, {0: of[:2], 1: of[2:]})

    def test_the_first_block_never_falls_and_rises_by_at_most_one(self) -> None:
        blocks = np.arange(3000)
        sees = reach(self.rules)
        first = sees.first(blocks)
        steps = np.diff(first)
        assert ((steps == 0) | (steps == 1)).all()
        assert (first <= np.maximum(blocks, sees.sink[:, None] // BLOCK)).all()
        assert (first[:, N // BLOCK] > sees.sink // BLOCK).all(), "rules of the contract cut texts of N tokens"
        lengths = np.arange(1, 3000)
        assert (sees.live_blocks(lengths) <= sees.cache_blocks(lengths)).all()
        assert (sees.span(lengths) <= lengths).all()

    def test_a_rule_is_read_as_written(self, model: Any, tmp_path: Path) -> None:
        plan = self.plan(model)
        plan.save(tmp_path / "plan.yaml")
        read = Plan.load(tmp_path / "plan.yaml")
        assert read == plan
        read.save(tmp_path / "again.yaml")
        assert (tmp_path / "again.yaml").read_bytes() == (tmp_path / "plan.yaml").read_bytes()
        for rule in self.rules:
            assert parse(rule.model_dump()) == rule == self.kind.of(rule.numbers)

    @pytest.mark.parametrize("backend", [name for name in FAST if find(name).takes("cpu")])
    def test_back_ends_compute_what_the_reference_does_however_the_text_is_cut(self, model: Any, backend: str) -> None:
        plan, ids = self.plan(model), torch.from_numpy(np.random.default_rng(0).integers(1, VOCABULARY, (2, N)))
        want = self.logits(model, plan, "reference", ids, [N])
        assert not torch.allclose(want, model(ids).logits)
        for sizes in ([N], [130, 1, 63, 64, 65, 77], [N - 3, 1, 1, 1]):
            torch.testing.assert_close(self.logits(model, plan, backend, ids, sizes), want, rtol=1e-9, atol=1e-9)

    @pytest.mark.parametrize("backend", FAST)
    def test_back_ends_in_float32_compute_what_the_reference_does(self, model: Any, backend: str) -> None:
        """By a prefill, a chunk, a few tokens and one; float32 is the widest type that all of them take."""
        model.float()
        plan, ids = self.plan(model), torch.from_numpy(np.random.default_rng(0).integers(1, VOCABULARY, (2, N)))
        want = self.logits(model, plan, "reference", ids, [N])
        found = self.logits(model, plan, backend, ids, [N - 90, 80, 9, 1])
        torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-4)
        assert (want - model(ids).logits).abs().max() > 0.1

    @pytest.mark.parametrize("backend", [name for name in READS if find(name).takes("cpu")])
    def test_back_ends_read_the_pages_that_the_reference_reads(self, model: Any, backend: str) -> None:
        plan, kept = self.plan(model, read=3 / 16), self.plan(model)
        ids, sizes = torch.from_numpy(np.random.default_rng(0).integers(1, VOCABULARY, (2, N))), [N - 40, 1, 16, 17, 6]
        want = self.logits(model, plan, "reference", ids, sizes)
        torch.testing.assert_close(self.logits(model, plan, backend, ids, sizes), want, rtol=1e-9, atol=1e-9)
        assert (want - self.logits(model, kept, "reference", ids, sizes)).abs().max() > 1e-3

    @pytest.mark.parametrize("backend", READS)
    def test_back_ends_in_float32_read_the_pages_that_the_reference_reads(self, model: Any, backend: str) -> None:
        """By drafts, a call too long to read, and a step; of a short text, since emulations are slow."""
        model.float()
        plan, kept, ids, sizes = self.plan(model, read=5 / 16), self.plan(model), text()[:, :234], [200, 16, 17, 1]
        want = self.logits(model, plan, "reference", ids, sizes)
        torch.testing.assert_close(self.logits(model, plan, backend, ids, sizes), want, rtol=1e-4, atol=1e-4)
        assert (want - self.logits(model, kept, "reference", ids, sizes)).abs().max() > 0.1

    def test_bytes_predicted_are_those_allocated(self, model: Any) -> None:
        plan = self.plan(model)
        with torch.no_grad(), moa.apply(model, plan, backend="torch"):
            cache = moa.KVCache(plan, max_length=N)
            model(torch.ones(2, N, dtype=torch.int64), past_key_values=cache)
        assert cache.nbytes == plan.kv_bytes(N, 2, dtype="float64")

    def test_its_table_in_a_profile_is_that_of_a_direct_loop(self, model: Any) -> None:
        name, sink = self.rules[0].variant
        keys: dict[int, tuple[Tensor, Tensor]] = {}
        sample = whole_text([random.Random(0).randrange(VOCABULARY) for _ in range(256)])
        with recording(model, [("sink_window", 128), (name, sink)], mass) as recorder:
            recorder.watch = lambda layer, q, k: keys.__setitem__(layer, (q.detach(), k.detach()))
            run_backward(model, sample, "given", "nll", torch.Generator())
            table = recorder.take()[1]  # [layers, groups, rows, edges]
        held = history(PATTERNS[name].holds)
        for layer, (q, k) in keys.items():
            scores = (q @ k.repeat_interleave(2, 0).mT / 4).masked_fill(~torch.ones(256, 256).tril().bool(), -torch.inf)
            weights = scores.softmax(-1).unflatten(0, (2, 2)).sum(1)  # the heads of a group together
            for group in range(2):
                for row in range(256):
                    weights[group, row, row + 1 :] = 0
                for edge in range(4):
                    dropped = torch.ones(256, dtype=torch.bool)
                    dropped[BLOCK * edge :] = False
                    own = k[group : group + 1]
                    dropped[torch.arange(sink) if held is None else held(own, sink, BLOCK)[edge, 0]] = False
                    lost = weights[group][:, dropped].sum(1) if edge * BLOCK > sink else torch.zeros(256).double()
                    want = lost.unflatten(0, (4, 64)).sum(1)[edge:]
                    torch.testing.assert_close(
                        table[layer, group, edge:, edge].double(),
                        want,
                        rtol=1e-5,
                        atol=1e-5,
                        msg=f"{layer} {group} {edge}",
                    )

    def test_its_sinks_hold_in_a_run_what_a_profile_measures(self, model: Any) -> None:
        self.runs_as_masked(model, self.plan(model))

    def test_its_time_is_that_of_its_own_terms(self) -> None:
        ms = made_up_costs()
        assert not (self.kind.moves_keys() and self.kind.terms == IN_PLACE), "moving keys takes time of its own"
        for rule in self.rules:
            sees, rows = reach([rule])[0], np.arange(1, N + 1)
            pairs = [sees.span(each) for each in np.split(rows, range(BLOCK, N, BLOCK))]
            windowed = [int(each[-1]) < n for each, n in zip(pairs, [*rows[BLOCK - 1 :: BLOCK], N], strict=True)]
            blocks = 3 * int(sees.cache_blocks(N))
            decode = sum(ms.terms["decode"][name] * count(blocks) for name, count in rule.terms.decode.items())
            prefill = sum(
                ms.terms["prefill"][name] * count(np.array([float(each.sum()) for each in pairs]), np.array(windowed))
                for name, count in rule.terms.prefill.items()
            )
            assert ms.per_group(Work("decode", N, 3), [rule]) == pytest.approx([decode])
            assert ms.per_group(Work("prefill", N, 3), [rule]) == pytest.approx([3 * prefill])

    def test_costs_measured_by_its_probes_predict_its_time(self) -> None:
        ms, works = made_up_costs(), [Work(kind, n) for kind in FIXED for n in (512, 2048)]
        plans = probes(ms.model, 2048).values()
        assert (
            sum({type(rule) for rules in plan.groups.values() for rule in rules} == {self.kind} for plan in plans) > 1
        )
        found = measure(ms.model, works, lambda plan, work: [ms.predict(plan, work)], environment=ms.environment)
        plan = Plan.from_rules(ms.model, {}, defaults=self.rules[0])
        for work in (Work("decode", 1000), Work("prefill", 1000)):
            assert found.predict(plan, work) == pytest.approx(ms.predict(plan, work), rel=1e-6)

    def test_costs_measured_before_it_was_there_price_the_others(self, tmp_path: Path) -> None:
        ms, known = made_up_costs(), [kind for kind in PATTERNS.values() if kind is not self.kind]
        others = {name for kind in known for name in (*kind.terms.decode, *kind.terms.prefill)}
        own = {*self.kind.terms.decode, *self.kind.terms.prefill} - others
        if not own or self.kind is type(FULL):
            return  # its time is what others take, or every plan needs its terms
        terms = {kind: {name: n for name, n in each.items() if name not in own} for kind, each in ms.terms.items()}
        (tmp_path / "costs.json").write_text(ms.model_copy(update={"terms": terms}).model_dump_json())
        before, step = Costs.load(tmp_path / "costs.json"), Work("decode", N)
        assert before.predict(Plan.dense(ms.model), step) == ms.predict(Plan.dense(ms.model), step)
        with pytest.raises(MoaError, match=f"lack .* terms of {self.rules[0].pattern}: measure again"):
            before.check(ms.model, self.rules)

    def test_the_search_can_choose_it(self) -> None:
        rules = grid((512, 2048), [self.rules[0].variant]).rules
        assert len(rules) > 10
        assert {type(rule) for rule in rules} == {self.kind}
        assert len({rule.variant for rule in rules}) == 1
        spans = reach(rules).span(2048)
        assert spans.max() == 2048
        assert spans.min() <= 256

    def logits(self, model: Any, plan: Plan, backend: str, ids: Tensor, sizes: list[int]) -> Tensor:
        with torch.no_grad(), moa.apply(model, plan, backend=backend):
            cache = moa.KVCache(plan)
            return torch.cat([model(part, past_key_values=cache).logits for part in ids.split(sizes, 1)], 1)

    def runs_as_masked(self, model: Any, plan: Plan) -> None:
        """With a cache, without, and in the profiler."""
        want, ids = self.masked(model, plan), text()
        same = partial(torch.testing.assert_close, expected=want, rtol=1e-9, atol=1e-9)
        for sizes in ([N], [130, 1, 63, 64, 65, 77]):
            same(self.logits(model, plan, "torch", ids, sizes))
        with torch.no_grad(), moa.apply(model, plan, backend="torch"):
            same(model(ids, use_cache=False).logits)
        with recording(model, [], mass, plan):
            same(model(ids, use_cache=False).logits.detach())

    def masked(self, model: Any, plan: Plan) -> Tensor:
        """Logits of full attention under masks that a loop writes out; sinks hold the keys that profiles measure."""
        AttentionInterface.register("masked", partial(masked_attention, plan))
        AttentionMaskInterface.register("masked", sdpa_mask)
        before = model.config._attn_implementation
        model.set_attn_implementation("masked")
        with torch.no_grad():
            logits: Tensor = model(text(), use_cache=False).logits
        model.set_attn_implementation(before)
        return logits


def masked_attention(
    plan: Plan, module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **kwargs: Any
) -> tuple[Tensor, None]:
    seen = torch.ones(key.shape[1], N, N, dtype=torch.bool).tril()
    first = plan.first_table(module.layer_idx, -(-N // BLOCK))
    for group, rule in enumerate(plan.groups[module.layer_idx]):
        of = history(rule.holds)
        held = None if of is None else of(key[0, group : group + 1], rule.sink, BLOCK)[:, 0]
        for row in range(N):
            edge = int(first[group, row // BLOCK])
            hidden = torch.arange(N) < BLOCK * edge
            hidden[torch.arange(rule.sink) if held is None else held[edge]] = False
            seen[group, row] &= ~hidden
    heads = query.shape[1] // key.shape[1]
    key, value, seen = (x.repeat_interleave(heads, -3) for x in (key, value, seen))
    out = scaled_dot_product_attention(query, key, value, seen, scale=kwargs["scaling"])
    return out.transpose(1, 2), None


def made_up_costs() -> Costs:
    """Costs with a figure of its own for every term, of the patterns that are known by now."""
    rope: dict[str, Any] = {"theta": 1e4, "type": "default"}
    info = ModelInfo(architecture="Any", layers=4, query_heads=4, kv_heads=2, head_size=16, rope=rope)
    terms = {kind: {name: 1.5**i for i, name in enumerate(term_names(kind))} for kind in FIXED}
    place = {"device": "abacus", "threads": 1, "backend": "torch", "dtype": "float32"}
    return Costs(model=info, environment=place, terms=terms, error={}, measured=())


def text() -> Tensor:
    """A text of `N` tokens."""
    return torch.from_numpy(np.random.default_rng(0).integers(1, VOCABULARY, (1, N)))


def kinds() -> set[type[Rule]]:
    """The patterns that have a class in a test file of this folder, those of tests among them."""
    for path in Path(__file__).parent.glob("test_*.py"):
        import_module(path.stem)
    return {each.kind for each in Contract.__subclasses__()}
