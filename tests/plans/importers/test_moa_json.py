"""Plans made from the file of rules that MoA's authors publish."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moa.plans.errors import PlanError, Unsupported
from moa.plans.model import ModelInfo, Sliding
from moa.plans.plan import FULL, Plan

MODEL = ModelInfo(
    architecture="LlamaForCausalLM", layers=4, query_heads=6, kv_heads=2, head_size=8, rope={"type": "default"}
)
HYBRID = MODEL.model_copy(update={"sliding": Sliding(window=32, layers=(0, 2))})
MHA = MODEL.model_copy(update={"kv_heads": 6})


class TestMoaJson:
    @staticmethod
    def document():
        alphas, betas = [0.0, -1024.0, 128.0, 0.5, 0, 64], [0.25, 1.0, 0.0, 0.3, 0.125, 1 / 512]
        return {"alphas": [alphas] * 4, "betas": [betas] * 4}

    def test_reach_is_kept_and_beta_rounded(self):
        plan = Plan.import_from("moa", self.document(), MHA)
        rules = [(r.sink, r.alpha, r.beta256) for r in plan.groups[3]]
        assert rules == [(64, 0, 64), (64, -1024, 256), (64, 128, 0), (64, 1, 77), (64, 0, 32), (64, 64, 1)]

    @settings(deadline=None)
    @given(st.integers(2, 256), st.integers(-32, 64), st.integers(0, 8))
    def test_the_query_at_the_prompt_s_end_keeps_what_the_original_keeps(self, blocks, alpha, beta):
        n = 64 * blocks + 1  # at a block's first row nothing but the edge's rounding differs
        document = {"alphas": [[64 * alpha] * 6] * 4, "betas": [[beta / 8] * 6] * 4}
        theirs = min(n, max(64 * alpha + beta / 8 * n, 128))
        ours = int(Plan.import_from("moa", document, MHA).spans(n)[0, 0])
        assert theirs <= ours < theirs + 64 or ours == n

    def test_a_file_is_read(self, tmp_path):
        path = tmp_path / "moa.json"
        path.write_text('{"alphas": [[0, 0, 0, 0, 0, 0]], "betas": [[1, 1, 1, 1, 1, 1]]}')
        one = MHA.model_copy(update={"layers": 1})
        assert Plan.import_from("moa", path, one).rule(0, 5) == FULL
        path.write_text("{")
        with pytest.raises(PlanError, match="not JSON"):
            Plan.import_from("moa", path, one)
        with pytest.raises(PlanError, match=r"cannot read .*: No such file"):
            Plan.import_from("moa", tmp_path / "none.json", one)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"alphas": None}, "alphas"),
            ({"betas": [[0.5] * 6] * 3}, r"betas must be \[4\]\[6\], found shape \[3, 6\]"),
            ({"betas": [[0.5] * 6] * 3 + [[0.5]]}, "betas, a table of numbers"),
            ({"betas": [[1.5] * 6] * 4}, "betas must be from 0 to 1, found 1.5 to 1.5"),
            ({"alphas": [[float("nan")] * 6] * 4}, "alphas must be from"),
            ({"alphas": [["x"] * 6] * 4}, "alphas, a table of numbers"),
        ],
    )
    def test_other_content_is_refused(self, change, message):
        with pytest.raises(PlanError, match=message):
            Plan.import_from("moa", self.document() | change, MHA)

    def test_other_models_are_refused(self):
        with pytest.raises(Unsupported, match="shares each KV head between 3 query heads"):
            Plan.import_from("moa", self.document(), MODEL)
        with pytest.raises(Unsupported, match="some of LlamaForCausalLM take none"):
            Plan.import_from("moa", self.document(), HYBRID.model_copy(update={"kv_heads": 6}))
